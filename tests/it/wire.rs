//! The order and shape of what goes over the wire, with the real engine behind it.

use latentgate::{
    job::{CachePolicy, DecodeSpec as TypedSpec, Output as Form, ScalingWish, Spec},
    metrics::Outcome,
    pipeline::{Reply, Request},
    proto::{
        DecodeRequest, DecodeSpec, Dtype, EncodeSpec, ListModelsRequest, Output, Source, TensorSpec, Wants, backend,
        decode_response::Event, encode_spec, output,
    },
    tensor::{DType, Shape},
};

use crate::support::{TestApp, config, decode_spec, encode_spec, latents};

fn form(kind: output::Kind) -> Option<Output> {
    Some(Output { kind: Some(kind) })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_come_in_the_order_the_proto_promises() {
    let app = TestApp::start(config()).await;
    let client = app.client().await;
    let spec = DecodeSpec { wants: Some(Wants { progress: true, preview: true }), ..decode_spec(24, 16) };
    let message = DecodeRequest { spec: Some(spec), data: latents(24, 16, 1) };
    let mut stream = client.open_decode(tokio_stream::iter([message]), None).await.unwrap();
    let mut order = Vec::new();
    let mut done = 0;
    while let Some(response) = stream.message().await.unwrap() {
        order.push(match response.event.unwrap() {
            Event::NeedData(_) => panic!("the data were there"),
            Event::Accepted(accepted) => {
                assert_eq!(accepted.content_key.len(), 32);
                "accepted"
            }
            Event::Preview(preview) => {
                assert_eq!((preview.width, preview.height), (16, 24));
                assert!(preview.jpeg.starts_with(&[0xff, 0xd8]));
                "preview"
            }
            Event::Progress(progress) => {
                assert!(progress.done > done && progress.done <= progress.total, "{progress:?} after {done}");
                done = progress.done;
                "progress"
            }
            Event::Header(header) => {
                assert_eq!(header.content_type, "image/png");
                assert_eq!(header.tensor.unwrap().shape, [1, 192, 128, 3]);
                "header"
            }
            Event::Chunk(_) => "chunk",
            Event::Trailer(trailer) => {
                let timings = trailer.timings.unwrap();
                assert!(timings.compute_us > 0 && timings.total_us >= timings.compute_us, "{timings:?}");
                "trailer"
            }
        });
    }
    order.dedup();
    let without_progress: Vec<_> = order.into_iter().filter(|&event| event != "progress").collect();
    assert_eq!(without_progress, ["accepted", "preview", "header", "chunk", "trailer"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_output_has_its_bytes() {
    let app = TestApp::start(config()).await;
    let client = app.client().await;
    let tensor = |dtype: Dtype| output::Kind::Tensor(output::Tensor { dtype: dtype as i32 });
    let decoded = |kind: output::Kind| {
        let client = client.clone();
        async move {
            client.decode(DecodeSpec { output: form(kind), ..decode_spec(6, 10) }, latents(6, 10, 1)).await.unwrap()
        }
    };
    for (dtype, size) in [(Dtype::F32, 4), (Dtype::F16, 2), (Dtype::Bf16, 2)] {
        let answer = decoded(tensor(dtype)).await;
        let described = answer.header.tensor.clone().unwrap();
        assert_eq!((described.dtype, described.shape), (dtype as i32, vec![1, 3, 48, 80]));
        assert_eq!(answer.bytes().len(), 3 * 48 * 80 * size);
    }
    let pixels = decoded(output::Kind::Uint8(output::Uint8 {})).await;
    assert_eq!(pixels.header.tensor.clone().unwrap().shape, [1, 48, 80, 3]);
    // Lossless files show exactly the finished pixels; JPEG comes close.
    for kind in [output::Kind::Png(output::Png {}), output::Kind::Webp(output::Webp {})] {
        let file = decoded(kind).await;
        let shown = image::load_from_memory(&file.bytes()).unwrap().into_rgb8();
        assert_eq!(shown.into_raw(), pixels.bytes());
    }
    let jpeg = decoded(output::Kind::Jpeg(output::Jpeg { quality: 95 })).await;
    let shown = image::load_from_memory(&jpeg.bytes()).unwrap().into_rgb8().into_raw();
    let error: f64 = shown.iter().zip(pixels.bytes()).map(|(&a, b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
    assert!(error / (shown.len() as f64) < 300.0, "mean squared error {}", error / shown.len() as f64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_picture_goes_to_latents_and_back_and_the_second_time_comes_from_memory() {
    let app = TestApp::start(config()).await;
    let client = app.client().await;
    let picture = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/demo.jpg")).unwrap();
    let encoded = client.encode(encode_spec(picture.len()), picture.clone()).await.unwrap();
    let described = encoded.header.tensor.clone().unwrap();
    assert_eq!((described.dtype, described.shape), (Dtype::F16 as i32, vec![1, 4, 64, 64]));
    let latents = TensorSpec { dtype: Dtype::F16 as i32, shape: vec![1, 4, 64, 64] };
    let spec = DecodeSpec {
        latents: Some(latents),
        output: form(output::Kind::Uint8(output::Uint8 {})),
        ..decode_spec(64, 64)
    };
    let decoded = client.decode(spec.clone(), encoded.bytes()).await.unwrap();
    let original = image::load_from_memory(&picture).unwrap().into_rgb8().into_raw();
    let squares = original.iter().zip(decoded.bytes()).map(|(&a, b)| (f64::from(a) - f64::from(b)).powi(2));
    let psnr = 10.0 * (255.0 * 255.0 / (squares.sum::<f64>() / original.len() as f64)).log10();
    assert!(psnr >= 22.0, "the builtin model brings the demo picture back at {psnr:.2} dB");
    let again = client.encode(encode_spec(picture.len()), picture).await.unwrap();
    assert_eq!((again.source(), again.bytes()), (Source::Memory, encoded.bytes()));
    let again = client.decode(spec, encoded.bytes()).await.unwrap();
    assert_eq!((again.source(), again.bytes()), (Source::Memory, decoded.bytes()));
    app.until("latentgate_engine_run_seconds_count", &[], 2.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spellings_share_an_answer_across_requests() {
    let app = TestApp::start(config()).await;
    let client = app.client().await;
    let data = latents(8, 8, 1);
    let first = client.decode(decode_spec(8, 8), data.clone()).await.unwrap();
    assert_eq!(first.source(), Source::Computed);
    // Chunked, with a model's default spelled out.
    let mut messages = vec![DecodeRequest { spec: Some(decode_spec(8, 8)), data: data.slice(..5) }];
    messages.extend(data[5..].chunks(100).map(|part| DecodeRequest { spec: None, data: part.to_vec().into() }));
    let chunked = client.decode_messages(messages).await.unwrap();
    assert_eq!((chunked.source(), &chunked.accepted.content_key), (Source::Memory, &first.accepted.content_key));
}

/// The claim "a hit copies no payload", taken at its word: the slices a hit hands out lie where the first answer's did.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hit_hands_out_the_very_bytes_of_the_first_answer() {
    let app = TestApp::start(config()).await;
    let serve = async || -> Reply {
        let spec = TypedSpec {
            model: "builtin".to_owned(),
            dtype: DType::F32,
            shape: Shape::try_new(&[1, 4, 48, 48]).unwrap(),
            picture: None,
            scaling: ScalingWish::ModelDefault,
            output: Form::Tensor(DType::F32),
            batch: latentgate::job::Batch::Whole,
        };
        let checked = app.pipeline.check(Spec::Decode(spec)).unwrap();
        let data = latents(48, 48, 1);
        let digest = *blake3::hash(&data).as_bytes();
        let (permit, held) = (app.pipeline.admit().unwrap(), app.pipeline.reserve(data.len() as u64).unwrap());
        app.pipeline
            .serve(Request {
                checked,
                data,
                digest,
                policy: CachePolicy::Default,
                permit,
                held,
                hops: latentgate::hops::Hops::default(),
            })
            .await
            .unwrap()
    };
    let places = async |mut reply: Reply| {
        let mut places = Vec::new();
        while let Some(slice) = reply.reader.next().await.unwrap() {
            places.push((slice.as_ptr() as usize, slice.len()));
        }
        places
    };
    let first = serve().await;
    assert_eq!(first.outcome(), Outcome::Computed);
    let first = places(first).await;
    let second = serve().await;
    assert_eq!(second.outcome(), Outcome::HitMemory);
    assert_eq!(places(second).await, first);
    assert_eq!(first.iter().map(|(_, length)| length).sum::<usize>(), 3 * 384 * 384 * 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_list_of_models_says_what_can_be_done_now() {
    let app = TestApp::start(config()).await;
    let models = app.client().await.grpc.list_models(ListModelsRequest {}).await.unwrap().into_inner().models;
    let names: Vec<_> = models.iter().map(|model| model.id.as_str()).collect();
    assert_eq!(
        names,
        ["builtin", "flux", "hunyuan-video", "sd-v1", "sd-xl", "taef1", "taef2", "taesd", "taesd3", "taesdxl"]
    );
    let builtin = &models[0];
    assert_eq!((builtin.latent_channels, builtin.spatial_scale, builtin.tasks.len()), (4, 8, 2));
    assert_eq!(builtin.backends[0].state, backend::State::Idle as i32, "loads on first use");
    let taef2 = models.iter().find(|model| model.id == "taef2").unwrap();
    assert_eq!(taef2.backends[0].state, backend::State::Unavailable as i32);
    assert!(taef2.backends[0].detail.contains("models.taef2.weights"), "the remedy is told: {:?}", taef2.backends[0]);
    let flux = models.iter().find(|model| model.id == "flux").unwrap();
    assert!((flux.scaling_factor - 0.3611).abs() < 1e-12 && (flux.shift_factor - 0.1159).abs() < 1e-12);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_without_weights_is_unavailable_and_says_why() {
    let app = TestApp::start(config()).await;
    let latents = TensorSpec { dtype: Dtype::F32 as i32, shape: vec![1, 32, 2, 2] };
    let spec = DecodeSpec { model: "taef2".to_owned(), latents: Some(latents), ..decode_spec(2, 2) };
    let status = app.client().await.decode(spec, vec![0; 512]).await.err().unwrap();
    assert_eq!(status.code(), tonic::Code::Unavailable);
    assert!(status.message().contains("models.taef2.weights"), "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pixel_tensors_encode_like_the_file_of_the_same_pixels() {
    let app = TestApp::start(config()).await;
    let client = app.client().await;
    let picture = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/demo.jpg")).unwrap();
    let pixels = image::load_from_memory(&picture).unwrap().into_rgb8();
    let (w, h) = pixels.dimensions();
    let planar: Vec<u8> = (0..3).flat_map(|c| pixels.pixels().map(move |pixel| pixel[c])).collect();
    let tensor = TensorSpec { dtype: Dtype::U8 as i32, shape: vec![1, 3, i64::from(h), i64::from(w)] };
    let input = encode_spec::Input::Pixels(encode_spec::Pixels { tensor: Some(tensor), range: 0 });
    let of_tensor = client.encode(EncodeSpec { input: Some(input), ..encode_spec(0) }, planar).await.unwrap();
    let of_file = client.encode(encode_spec(picture.len()), picture).await.unwrap();
    assert_eq!((of_file.source(), of_file.bytes()), (Source::Memory, of_tensor.bytes()));
}
