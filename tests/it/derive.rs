//! One decode serves every form: what can be made of a kept form is made of it, without a run or a request upstream, and
//! bit for bit as a run would have made it.

use latentgate::{
    Config,
    config::UpstreamUrls,
    pipeline::Keep,
    proto::{
        CachePolicy, DecodeSpec, Dtype, Output, Source,
        output::{self, Kind},
    },
    route,
};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::support::{Client, TestApp, config, decode_spec, latents, origin::Origin};

fn tensor(dtype: Dtype) -> Kind {
    Kind::Tensor(output::Tensor { dtype: dtype as i32 })
}

fn forms() -> [Kind; 8] {
    [
        tensor(Dtype::F32),
        tensor(Dtype::F16),
        tensor(Dtype::Bf16),
        Kind::Unit(output::Unit {}),
        Kind::Uint8(output::Uint8 {}),
        Kind::Png(output::Png {}),
        Kind::Jpeg(output::Jpeg { quality: 80 }),
        Kind::Webp(output::Webp {}),
    ]
}

async fn ask(client: &Client, kind: Kind, seed: u32, policy: CachePolicy) -> (Source, Vec<u8>) {
    let spec = DecodeSpec { output: Some(Output { kind: Some(kind) }), cache: policy as i32, ..decode_spec(6, 5) };
    let answer = client.decode(spec, latents(6, 5, seed)).await.expect("an answer");
    (answer.source(), answer.bytes())
}

#[cfg(feature = "local")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_form_is_made_of_the_numbers_and_equals_a_run() {
    let app = TestApp::start(config()).await;
    let client = app.client().await;
    ask(&client, tensor(Dtype::F32), 1, CachePolicy::Default).await;
    for kind in &forms()[1..] {
        let (source, derived) = ask(&client, *kind, 1, CachePolicy::Default).await;
        assert_eq!(source, Source::Derived, "{kind:?}");
        let (source, direct) = ask(&client, *kind, 1, CachePolicy::Bypass).await;
        assert_eq!(source, Source::Computed, "{kind:?}");
        assert!(derived == direct, "{kind:?} is not what a run makes");
        assert_eq!(ask(&client, *kind, 1, CachePolicy::Default).await.0, Source::Memory);
    }
    assert_eq!(app.metric("latentgate_requests_total", &["outcome=\"derived\""]).await as usize, 7);
}

#[cfg(feature = "local")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_png_gives_the_other_files_and_no_numbers() {
    let app = TestApp::start(config()).await;
    let client = app.client().await;
    ask(&client, Kind::Png(output::Png {}), 1, CachePolicy::Default).await;
    let sources =
        [Kind::Uint8(output::Uint8 {}), Kind::Jpeg(output::Jpeg { quality: 80 }), Kind::Webp(output::Webp {})];
    for kind in sources {
        let (source, derived) = ask(&client, kind, 1, CachePolicy::Default).await;
        assert_eq!(source, Source::Derived, "{kind:?}");
        assert!(derived == ask(&client, kind, 1, CachePolicy::Bypass).await.1);
    }
    assert_eq!(ask(&client, tensor(Dtype::F16), 1, CachePolicy::Default).await.0, Source::Computed);
    // Who only wants what is kept gets what follows from it, and nothing that needs a run.
    let spec = |kind| DecodeSpec {
        output: Some(Output { kind: Some(kind) }),
        cache: CachePolicy::OnlyIfCached as i32,
        ..decode_spec(6, 5)
    };
    let jpeg = Kind::Jpeg(output::Jpeg { quality: 33 });
    assert_eq!(client.decode(spec(jpeg), latents(6, 5, 1)).await.unwrap().source(), Source::Derived);
    client.decode(spec(Kind::Unit(output::Unit {})), latents(6, 5, 2)).await.err().expect("nothing is kept of these");
}

#[cfg(feature = "local")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kept_pixels_make_one_run_of_all_forms_at_once_and_of_those_after_a_restart() {
    for keep in [Keep::Pixels, Keep::Both] {
        let folder = TempDir::new().unwrap();
        let mut config = config();
        config.cache.keep = keep;
        config.cache.disk.path = Some(folder.path().to_owned());
        let mut app = TestApp::start(config.clone()).await;
        let client = app.client().await;
        let runs = async |app: &TestApp| app.metric("latentgate_backend_requests_total", &["backend=\"local\""]).await;
        let mut asking = JoinSet::new();
        for kind in forms().into_iter().skip(3) {
            let client = client.clone();
            asking.spawn(async move { ask(&client, kind, 1, CachePolicy::Default).await.0 });
        }
        asking.join_all().await;
        assert_eq!(runs(&app).await as usize, 1, "{keep:?}: five forms at once, one run");
        let wanted = if keep == Keep::Both { Source::Memory } else { Source::Derived };
        assert_eq!(ask(&client, Kind::Png(output::Png {}), 1, CachePolicy::Default).await.0, wanted);
        drop(client);
        app.stop();
        app.stopped().await;
        let again = TestApp::start(config).await;
        let client = again.client().await;
        let jpeg = Kind::Jpeg(output::Jpeg { quality: 61 });
        assert_eq!(ask(&client, jpeg, 1, CachePolicy::Default).await.0, Source::Derived);
        assert_eq!(ask(&client, tensor(Dtype::F16), 1, CachePolicy::Default).await.0, Source::Disk);
        assert_eq!(runs(&again).await as usize, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_is_asked_once_for_all_that_follows_from_its_answer() {
    let origin = Origin::start().await;
    let mut config: Config = config();
    let model = config.models.entry("sd-v1".to_owned()).or_default();
    model.upstream = Some(UpstreamUrls { decode: vec![origin.decode_url()], encode: Vec::new() });
    model.backends = Some(vec![route::Name::Upstream]);
    let app = TestApp::start(config).await;
    let client = app.client().await;
    let ask = async |kind, seed, policy: CachePolicy| {
        let spec = DecodeSpec {
            model: "sd-v1".to_owned(),
            output: Some(Output { kind: Some(kind) }),
            cache: policy as i32,
            ..decode_spec(6, 5)
        };
        let answer = client.decode(spec, latents(6, 5, seed)).await.expect("an answer");
        (answer.source(), answer.bytes())
    };
    ask(tensor(Dtype::F16), 1, CachePolicy::Default).await;
    for kind in forms().into_iter().skip(3) {
        let (source, derived) = ask(kind, 1, CachePolicy::Default).await;
        assert_eq!(source, Source::Derived, "{kind:?}");
        assert!(derived == ask(kind, 1, CachePolicy::Bypass).await.1);
    }
    assert_eq!(origin.count(), 1 + 5, "one, and those that wanted it fresh");
}
