//! The upstream backend against a right endpoint: every form of answer is the one that follows from the same numbers.

use bytes::Bytes;
use latentgate::{
    backend::{Backend as _, Others},
    body::Body,
    float,
    job::{EncodeMode, Output},
    meta::ContentType,
    model::Endpoints,
    render,
    tensor::{DType, Tensor},
};

use crate::support::{
    origin::{Behaviour, Origin, decoded, encoded, frames},
    rig::{Rig, decode_at, encode_at, floats, quick, read},
};

/// The answer that follows from the decoder's numbers.
fn finished(y: &Tensor, output: Output) -> Bytes {
    let pixels = || render::uint8(&frames(y)).unwrap();
    match output {
        Output::Tensor(dtype) => float::cast(y, dtype).unwrap().into_data(),
        Output::Unit => render::unit(&frames(y)).unwrap().into_data(),
        Output::Uint8 => pixels().into_data(),
        Output::Png => render::png(&pixels()).unwrap(),
        Output::Jpeg(quality) => render::jpeg(&pixels(), quality).unwrap(),
        Output::Webp => render::webp(&pixels()).unwrap(),
        Output::Mp4(_) => unreachable!("the origin's own"),
    }
}

const PICTURES: [Output; 8] = [
    Output::Tensor(DType::F16),
    Output::Tensor(DType::F32),
    Output::Tensor(DType::BF16),
    Output::Unit,
    Output::Uint8,
    Output::Png,
    Output::Jpeg(80),
    Output::Webp,
];

#[tokio::test]
async fn every_picture_output_follows_from_the_same_numbers() {
    let origin = Origin::start().await;
    let rig = Rig::new("flux", decode_at([origin.decode_url()]), &quick());
    let latents = floats(&[1, 16, 4, 6], 1);
    let y = decoded(&latents, "0.3611", "0.1159");
    for output in PICTURES {
        let job = rig.decode(&latents, output);
        let predicted = job.predicted().unwrap();
        let (meta, bytes) = rig.run(job).await.unwrap();
        assert_eq!(bytes, finished(&y, output), "{output:?}");
        assert_eq!((meta.dtype, meta.shape), (predicted.dtype, predicted.shape), "{output:?}");
        assert_eq!((meta.content_type, &*meta.provenance.backend), (ContentType::from(output), "upstream"));
        assert!(!meta.provenance.computed.is_zero());
    }
    assert_eq!(origin.count(), PICTURES.len());
    assert_eq!(rig.metric("latentgate_upstream_attempts_total", &[r#"code="ok""#]), 8.0);
    assert_eq!(rig.metric("latentgate_backend_requests_total", &[r#"backend="upstream""#, r#"code="ok""#]), 8.0);
}

#[tokio::test]
async fn a_batch_is_answered_whole() {
    let origin = Origin::start().await;
    let rig = Rig::new("sd-v1", decode_at([origin.decode_url()]), &quick());
    let latents = floats(&[3, 4, 2, 5], 2);
    let y = decoded(&latents, "0.18215", "");
    for output in [Output::Tensor(DType::F16), Output::Unit, Output::Uint8] {
        let (_, bytes) = rig.run(rig.decode(&latents, output)).await.unwrap();
        assert_eq!(bytes, finished(&y, output), "{output:?}");
    }
}

#[tokio::test]
async fn a_video_is_answered_in_every_form() {
    let origin = Origin::start().await;
    let rig = Rig::new("hunyuan-video", decode_at([origin.decode_url()]), &quick());
    let latents = floats(&[1, 16, 2, 2, 3], 3);
    let y = decoded(&latents, "0.476986", "");
    for output in [Output::Tensor(DType::F16), Output::Tensor(DType::F32), Output::Unit, Output::Uint8] {
        let (_, bytes) = rig.run(rig.decode(&latents, output)).await.unwrap();
        assert_eq!(bytes, finished(&y, output), "{output:?}");
    }
    let (meta, bytes) = rig.run(rig.decode(&latents, Output::Mp4(Output::DEFAULT_FPS))).await.unwrap();
    assert_eq!((meta.content_type, meta.length), (ContentType::Mp4, bytes.len() as u64));
    assert_eq!(&bytes[4..8], b"ftyp");
    let other = rig.decode(&latents, Output::Mp4(24));
    assert!(rig.backend.supports(&other).unwrap_err().message().contains("10 frames a second"));
}

#[tokio::test]
async fn the_request_is_what_the_protocol_says() {
    let origin = Origin::start().await;
    let rig = Rig::new("sd-v1", decode_at([origin.decode_url()]), &quick());
    let halves = float::cast(&floats(&[1, 4, 2, 2], 4), DType::F16).unwrap();
    rig.run(rig.decode(&float::cast(&halves, DType::F32).unwrap(), Output::Png)).await.unwrap();
    let [asked] = &origin.requests()[..] else { panic!("one request") };
    assert_eq!(
        asked.target,
        "/decode?tenant=a%20b&image_format=png&output_type=pil&partial_postprocess=False&shape=1&shape=4&shape=2\
         &shape=2&dtype=float16&scaling_factor=0.18215"
    );
    assert_eq!(asked.body, **halves.data());
    for (name, value) in [
        ("accept", "image/png"),
        ("content-type", "tensor/binary"),
        ("accept-encoding", "identity"),
        ("content-length", "32"),
    ] {
        assert_eq!(asked.header(name), Some(value));
    }
    assert!(asked.header("user-agent").is_some_and(|agent| agent.starts_with("latentgate/")));
    assert_eq!(asked.header("authorization"), None);
}

#[tokio::test]
async fn every_kind_of_pixels_is_encoded_to_the_same_latents() {
    let origin = Origin::start().await;
    let rig = Rig::new("flux", encode_at([origin.encode_url(16)]), &quick());
    let signed = floats(&[2, 3, 16, 24], 5);
    let bytes: Vec<u8> = (0..3 * 16 * 24).map(|i| (i * 31 % 256) as u8).collect();
    let one = Tensor::try_new(DType::U8, floats(&[1, 3, 16, 24], 0).shape().clone(), bytes.clone().into()).unwrap();
    let two = [&bytes[..], &bytes[..]].concat();
    let two = Tensor::try_new(DType::U8, signed.shape().clone(), two.into()).unwrap();
    let bright: Vec<u8> = float::values(signed.data()).flat_map(|x| x.abs().to_le_bytes()).collect();
    let bright = Tensor::try_new(DType::F32, signed.shape().clone(), bright.into()).unwrap();
    for (pixels, is_file) in [(&one, true), (&two, false), (&signed, false), (&bright, false)] {
        let job = rig.encode(pixels, EncodeMode::Mean, DType::F16);
        let z = encoded(job.input(), 16, "0.3611", "0.1159");
        let (meta, bytes) = rig.run(job).await.unwrap();
        assert_eq!((&bytes, &meta.shape, meta.dtype), (z.data(), z.shape(), DType::F16), "{pixels:?}");
        let wide = rig.run(rig.encode(pixels, EncodeMode::Mean, DType::F32)).await.unwrap().1;
        assert_eq!(wide, float::cast(&z, DType::F32).unwrap().into_data());
        let asked = origin.requests().pop().unwrap();
        assert_eq!((asked.header("content-type").is_none(), asked.header("accept")), (is_file, Some("*/*")));
        assert_eq!(asked.parameter("channels"), ["16"]);
    }
    let sampled = rig.encode(&one, EncodeMode::Sample { seed: 1 }, DType::F16);
    assert!(rig.backend.supports(&sampled).unwrap_err().message().contains("no seed"));
    let latents = floats(&[1, 16, 2, 2], 0);
    let why = rig.backend.supports(&rig.decode(&latents, Output::Png)).unwrap_err();
    assert_eq!(why.message(), "model flux has no upstream endpoint to decode");
}

#[tokio::test]
async fn a_length_that_is_not_said_or_a_trickle_changes_nothing() {
    let origin = Origin::start().await;
    let rig = Rig::new("sd-v1", decode_at([origin.decode_url()]), &quick());
    let latents = floats(&[1, 4, 3, 3], 6);
    let y = decoded(&latents, "0.18215", "");
    for output in PICTURES {
        for behaviour in [Behaviour::Unsized, Behaviour::Chunked, Behaviour::Trickle(97)] {
            origin.script([behaviour.clone()]);
            let (meta, bytes) = rig.run(rig.decode(&latents, output)).await.unwrap();
            assert_eq!(bytes, finished(&y, output), "{output:?} {behaviour:?}");
            assert_eq!(meta.length, bytes.len() as u64);
        }
    }
}

#[tokio::test]
async fn the_first_bytes_are_published_while_the_rest_is_still_awaited() {
    let origin = Origin::start().await;
    let rig = Rig::new("sd-v1", decode_at([origin.decode_url()]), &quick());
    let latents = floats(&[1, 4, 16, 16], 7);
    let y = decoded(&latents, "0.18215", "");
    for output in [Output::Tensor(DType::F16), Output::Png] {
        origin.script([Behaviour::Pause(5_000)]);
        let (mut writer, body) = Body::channel();
        let mut reader = body.reader();
        let early = async {
            let meta = reader.meta().await.unwrap();
            let first = reader.next().await.unwrap().unwrap();
            assert!(!first.is_empty() && (first.len() as u64) < meta.length);
            origin.release(1);
        };
        let (ended, ()) = tokio::join!(rig.fill(rig.decode(&latents, output), Others::None, &mut writer), early);
        ended.unwrap();
        writer.finish(|_, _, _| ()).unwrap();
        assert_eq!(read(body.reader()).await.unwrap().1, finished(&y, output));
    }
}

#[tokio::test]
async fn models_without_endpoints_are_not_this_backends() {
    let rig = Rig::new("sd-v1", Endpoints::default(), &quick());
    assert!(rig.backend.health().borrow().is_empty());
    assert!(rig.run(rig.decode(&floats(&[1, 4, 2, 2], 0), Output::Png)).await.is_err());
}
