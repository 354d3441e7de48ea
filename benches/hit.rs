//! What a cached answer costs: a 512x512 PNG out of the memory tier, in process and over gRPC; and the latents of a
//! photograph, whose file is not decoded again.
//!
//! The same request each time, its 64 KiB of latents sent along. Over gRPC: one connection on loopback, one request at a
//! time, from the call to the trailer. The percentiles over all measured requests are printed beside criterion's mean.

mod support;

use std::time::Duration;

use bytes::Bytes;
use criterion::Criterion;
use latentgate::{
    App, Config,
    job::{CachePolicy, Output, Spec},
    metrics::Outcome,
    pipeline::Pipeline,
    proto::{self, DecodeRequest, DecodeSpec, Dtype, Source, TensorSpec, latents_client::LatentsClient, output::Kind},
    task,
};
use tokio::{runtime::Runtime, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tracing::Span;

const SIDE: usize = 512;

fn main() {
    let mut criterion = support::quick();
    // Server and client have threads of their own, as in two processes.
    let [theirs, ours] = [runtime(), runtime()];
    let mut config = Config::default();
    config.listen.data.set_port(0);
    config.listen.admin.set_port(0);
    let app = theirs.block_on(App::bind(config)).expect("the app binds");
    let (url, pipeline) = (format!("http://{}", app.addresses().data), app.pipeline().clone());
    let stop = CancellationToken::new();
    let until = stop.clone();
    let serving = theirs.block_on(async { task::spawn(Span::none(), app.serve(until)) });

    let data = support::noise(4 * (SIDE / 8) * (SIDE / 8) * 4, 1);
    measure_in_process(&mut criterion, &theirs, &pipeline, &data);
    measure_over_grpc(&mut criterion, &ours, &url, &data);
    criterion.final_summary();
    stop.cancel();
    theirs.block_on(serving.join()).expect("the app ends in order");
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime")
}

fn measure_in_process(criterion: &mut Criterion, runtime: &Runtime, pipeline: &Pipeline, data: &Bytes) {
    let photograph = Bytes::from_static(support::PICTURE);
    for (name, spec, data) in [
        ("hit 512x512 png, in process", support::decode(SIDE, Output::Png), data),
        ("hit encode 512x512 jpeg, in process", support::encode(&photograph), &photograph),
    ] {
        // The miss.
        runtime.block_on(in_process(pipeline, &spec, data));
        criterion.bench_function(name, |bencher| {
            bencher.to_async(runtime).iter(|| async {
                assert_eq!(in_process(pipeline, &spec, data).await, Outcome::HitMemory);
            });
        });
    }
}

async fn in_process(pipeline: &Pipeline, spec: &Spec, data: &Bytes) -> Outcome {
    let request = support::request(pipeline, spec.clone(), data.clone(), CachePolicy::Default);
    let mut reply = pipeline.serve(request).await.expect("the request is served");
    reply.reader.meta().await.expect("an answer");
    while let Some(slice) = reply.reader.next().await.expect("an answer") {
        std::hint::black_box(slice);
    }
    reply.reader.seal().await.expect("a whole answer");
    reply.outcome()
}

fn measure_over_grpc(criterion: &mut Criterion, runtime: &Runtime, url: &str, data: &Bytes) {
    let client = runtime.block_on(connect(url));
    let mut all = Vec::new();
    criterion.bench_function("hit 512x512 png, over gRPC", |bencher| {
        bencher.iter_custom(|requests| {
            let measured = runtime.block_on(async {
                let mut measured = Vec::with_capacity(requests as usize);
                for _ in 0..requests {
                    let began = Instant::now();
                    assert_eq!(over_grpc(client.clone(), data).await, Source::Memory);
                    measured.push(began.elapsed());
                }
                measured
            });
            let sum = measured.iter().sum();
            all.extend(measured);
            sum
        });
    });
    tell(&mut all);
}

async fn connect(url: &str) -> LatentsClient<Channel> {
    let endpoint = Channel::from_shared(url.to_owned()).expect("a URL");
    // As the program's own client: large frames are the lever for throughput.
    let endpoint = endpoint
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(16 << 20)
        .max_frame_size(1 << 20)
        .tcp_nodelay(true);
    LatentsClient::new(endpoint.connect().await.expect("the data port answers"))
}

/// One request, to the trailer.
async fn over_grpc(mut client: LatentsClient<Channel>, data: &Bytes) -> Source {
    let side = (SIDE / 8) as i64;
    let spec = DecodeSpec {
        model: "builtin".to_owned(),
        latents: Some(TensorSpec { dtype: Dtype::F32 as i32, shape: vec![1, 4, side, side] }),
        output: Some(proto::Output { kind: Some(Kind::Png(proto::output::Png {})) }),
        ..DecodeSpec::default()
    };
    let request = DecodeRequest { spec: Some(spec), data: data.clone() };
    let mut stream = client.decode(tokio_stream::iter([request])).await.expect("an answer").into_inner();
    let mut source = Source::Unspecified;
    while let Some(message) = stream.message().await.expect("a whole answer") {
        if let Some(proto::decode_response::Event::Trailer(trailer)) = message.event {
            source = trailer.source();
        }
    }
    source
}

#[expect(clippy::print_stdout, reason = "a bench talks to people")]
fn tell(all: &mut [Duration]) {
    all.sort_unstable();
    let at = |share: f64| all.get(((all.len() as f64 * share).ceil() as usize).saturating_sub(1));
    if let (Some(p50), Some(p99)) = (at(0.5), at(0.99)) {
        println!("hit 512x512 png, over gRPC: p50 {p50:?}, p99 {p99:?} of {} requests", all.len());
    }
}
