//! Video passes through: no engine here, an endpoint that has one, and the cache in between.

use latentgate::{
    Config,
    config::{ModelConfig, UpstreamUrls},
    proto::{DecodeSpec, Dtype, Output, Source, TensorSpec, output},
    route::Name,
};
use tonic::Code;

use crate::support::{TestApp, config, decode_spec, latents, origin::Origin, reason};

const QUERY: &str = "/decode/hunyuanvideo?shape=[1,16,3,4,5]&dtype=float32&do_scaling=True";
/// Three latent frames are nine.
const FRAMES: usize = 9;

fn with_video(origin: &Origin) -> Config {
    let mut config = config();
    let upstream = UpstreamUrls { decode: vec![origin.decode_url()], ..UpstreamUrls::default() };
    let backends = Some(vec![Name::Local, Name::Upstream]);
    let model = ModelConfig { backends, upstream: Some(upstream), ..ModelConfig::default() };
    config.models.insert("hunyuan-video".to_owned(), model);
    config
}

/// 16 channels, 3 frames, 4 x 5: as many numbers as `[1,4,12,20]`.
fn z(seed: u32) -> bytes::Bytes {
    latents(12, 20, seed)
}

fn spec(kind: output::Kind) -> DecodeSpec {
    let tensor = TensorSpec { dtype: Dtype::F32 as i32, shape: vec![1, 16, 3, 4, 5] };
    let output = Some(Output { kind: Some(kind) });
    DecodeSpec { model: "hunyuan-video".to_owned(), latents: Some(tensor), output, ..decode_spec(4, 5) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tensors_frames_and_files_come_from_upstream_once() {
    let origin = Origin::start().await;
    let app = TestApp::start(with_video(&origin)).await;
    let client = app.client().await;
    let f16 = output::Kind::Tensor(output::Tensor { dtype: Dtype::F16 as i32 });
    let cases = [
        ("&output_type=pt", "tensor/binary", f16, Some((vec![1, 3, FRAMES, 32, 40], 2))),
        (
            "&output_type=pt&partial_postprocess=True",
            "tensor/binary",
            output::Kind::Uint8(output::Uint8 {}),
            Some((vec![FRAMES, 32, 40, 3], 1)),
        ),
        ("&output_type=pil", "tensor/binary", output::Kind::Unit(output::Unit {}), Some((vec![FRAMES, 3, 32, 40], 2))),
        ("&output_type=mp4", "text/plain", output::Kind::Mp4(output::Mp4 { fps: 0 }), None),
    ];
    for (count, (rest, accept, kind, tensor)) in (1..).zip(cases) {
        let headers = [("Accept", accept), ("Content-Type", "tensor/binary")];
        let target = format!("{QUERY}{rest}");
        let cold = app.http("POST", &target, &headers, &z(1)).await.whole();
        assert_eq!((cold.status, origin.count()), (200, count), "{rest}: {}", String::from_utf8_lossy(&cold.body));
        if let Some((shape, size)) = tensor {
            assert_eq!((cold.shape(), cold.body.len()), (shape.clone(), shape.iter().product::<usize>() * size));
        } else {
            assert_eq!(cold.header("content-type"), Some("text/plain; charset=utf-8"));
            assert_eq!(&cold.body[4..8], b"ftyp");
        }
        let warm = app.http("POST", &target, &headers, &z(1)).await.whole();
        assert_eq!((warm.header("cache-status"), &warm.body), (Some("latentgate; hit; detail=memory"), &cold.body));
        let grpc = client.decode(spec(kind), z(1)).await.unwrap();
        assert_eq!((grpc.source(), grpc.bytes(), origin.count()), (Source::Memory, cold.body.to_vec(), count));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_video_cannot_be_is_refused_without_asking() {
    let origin = Origin::start().await;
    let app = TestApp::start(with_video(&origin)).await;
    let client = app.client().await;
    let refused = async |spec| reason(&client.decode(spec, z(1)).await.err().unwrap());
    let bad = (Code::InvalidArgument, "BAD_REQUEST".to_owned());
    assert_eq!(refused(spec(output::Kind::Png(output::Png {}))).await, (bad.0, "OUTPUT_UNSUPPORTED".to_owned()));
    let flat = TensorSpec { dtype: Dtype::F32 as i32, shape: vec![1, 16, 4, 5] };
    let mp4 = |fps| output::Kind::Mp4(output::Mp4 { fps });
    assert_eq!(refused(DecodeSpec { latents: Some(flat), ..spec(mp4(0)) }).await, bad);
    // A rate that no endpoint takes.
    assert_eq!(refused(spec(mp4(24))).await, (Code::InvalidArgument, "OUTPUT_UNSUPPORTED".to_owned()));
    let headers = [("Accept", "image/png")];
    let picture = app.http("POST", QUERY, &headers, &z(1)).await.whole();
    assert_eq!((picture.status, origin.count()), (400, 0), "{}", picture.error());
    // Sizes mean nothing to five dimensions, whatever a client says.
    let target = format!("{QUERY}&output_type=mp4&height=24&width=nonsense");
    let answer = app.http("POST", &target, &[("Accept", "text/plain")], &z(1)).await.whole();
    assert_eq!((answer.status, origin.count()), (200, 1));
}
