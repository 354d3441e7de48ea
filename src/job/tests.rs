use bytes::Bytes;

use super::*;
use crate::{error::ErrorKind, model::ModelTable, tensor::TensorError};

fn limits() -> Limits {
    Limits { max_pixels: 2048 * 2048, max_batch: 4, max_input_bytes: 64 << 20 }
}

fn decode(model: &str, dims: &[i64]) -> DecodeSpec {
    DecodeSpec {
        model: model.to_owned(),
        dtype: DType::F16,
        shape: Shape::try_from_wire(dims).unwrap(),
        picture: None,
        scaling: ScalingWish::ModelDefault,
        output: Output::Png,
        batch: Batch::Whole,
    }
}

fn encode(model: &str, input: EncodeInput) -> EncodeSpec {
    EncodeSpec {
        model: model.to_owned(),
        input,
        mode: EncodeMode::Mean,
        scaling: ScalingWish::ModelDefault,
        dtype: DType::F16,
    }
}

#[track_caller]
fn refused(spec: Spec) -> Error {
    spec.check(&ModelTable::known(), &limits()).unwrap_err()
}

type Change = dyn Fn(&mut DecodeSpec);

#[test]
fn a_specs_faults_are_found_without_its_payload() {
    let spec = |change: &dyn Fn(&mut DecodeSpec)| {
        let mut spec = decode("sd-v1", &[1, 4, 8, 8]);
        change(&mut spec);
        Spec::Decode(spec)
    };
    let cases: [(&Change, ErrorKind, Option<&str>); 11] = [
        (&|s| s.model = "nope".to_owned(), ErrorKind::UnknownModel, None),
        (&|s| s.dtype = DType::U8, ErrorKind::BadRequest, Some("latents.dtype")),
        (&|s| s.shape = Shape::try_from_wire(&[1, 16, 8, 8]).unwrap(), ErrorKind::BadRequest, Some("latents.shape")),
        (&|s| s.shape = Shape::try_from_wire(&[4, 8]).unwrap(), ErrorKind::BadRequest, Some("latents.shape")),
        (&|s| s.shape = Shape::try_from_wire(&[1, 16, 16]).unwrap(), ErrorKind::BadRequest, Some("height")),
        (&|s| s.shape = Shape::try_from_wire(&[5, 4, 8, 8]).unwrap(), ErrorKind::TooLarge, Some("latents.shape")),
        (
            &|s| s.shape = Shape::try_from_wire(&[1, 4, 1_000_000, 1_000_000]).unwrap(),
            ErrorKind::TooLarge,
            Some("latents.shape"),
        ),
        (&|s| s.shape = Shape::try_from_wire(&[2, 4, 8, 8]).unwrap(), ErrorKind::OutputUnsupported, Some("output")),
        (&|s| s.output = Output::Mp4(10), ErrorKind::OutputUnsupported, Some("output")),
        (&|s| s.output = Output::Jpeg(101), ErrorKind::BadRequest, Some("output.jpeg.quality")),
        (
            &|s| s.scaling = ScalingWish::Given { factor: 0.0, shift: 0.0 },
            ErrorKind::BadRequest,
            Some("scaling.given.factor"),
        ),
    ];
    for (change, kind, field) in cases {
        let error = refused(spec(change));
        assert_eq!((error.kind(), error.field_name()), (kind, field), "{error}");
    }
    let long = |output, dims: &[i64]| refused(Spec::Decode(DecodeSpec { output, ..decode("sd-v1", dims) })).kind();
    assert_eq!(long(Output::Webp, &[1, 4, 2048, 8]), ErrorKind::OutputUnsupported);
    assert_eq!(long(Output::Jpeg(75), &[1, 4, 8192, 1]), ErrorKind::OutputUnsupported);
    for (factor, shift) in [(f64::NAN, 0.0), (f64::INFINITY, 0.0), (1e-60, 0.0), (1.0, f64::NAN)] {
        let error = refused(spec(&|s| s.scaling = ScalingWish::Given { factor, shift }));
        assert_eq!(error.kind(), ErrorKind::BadRequest, "{factor} {shift}");
    }
}

#[test]
fn an_encodes_faults_too() {
    let pixels = |dims: &[i64]| EncodeInput::Pixels {
        dtype: DType::F32,
        shape: Shape::try_from_wire(dims).unwrap(),
        range: Range::Auto,
    };
    let kind = |spec: EncodeSpec| refused(Spec::Encode(spec)).kind();
    assert_eq!(kind(encode("sd-v1", EncodeInput::Image { length: 0 })), ErrorKind::BadRequest);
    assert_eq!(kind(encode("sd-v1", EncodeInput::Image { length: 1 << 40 })), ErrorKind::TooLarge);
    assert_eq!(kind(encode("sd-v1", pixels(&[1, 4, 8, 8]))), ErrorKind::BadRequest);
    assert_eq!(kind(encode("sd-v1", pixels(&[1, 3, 7, 8]))), ErrorKind::BadRequest);
    assert_eq!(kind(encode("sd-v1", pixels(&[1, 3, 1 << 20, 1 << 20]))), ErrorKind::TooLarge);
    let sample =
        EncodeSpec { mode: EncodeMode::Sample { seed: 1 }, ..encode("taesd", EncodeInput::Image { length: 9 }) };
    assert_eq!(kind(sample), ErrorKind::BadRequest, "a tiny autoencoder has no posterior");
}

#[test]
fn the_wrong_number_of_bytes_never_becomes_a_job() {
    let checked = Spec::Decode(decode("sd-v1", &[1, 4, 8, 8])).check(&ModelTable::known(), &limits()).unwrap();
    assert_eq!(checked.input_bytes(), 512);
    let error = checked.canonicalise(Bytes::from_static(&[0; 511])).unwrap_err();
    let want = TensorError::Length {
        dtype: DType::F16,
        shape: Shape::try_from_wire(&[1, 4, 8, 8]).unwrap(),
        want: 512,
        got: 511,
    };
    assert_eq!(error.message(), format!("data: {want}"));
}

#[test]
fn nan_and_infinity_are_refused_by_place() {
    let checked = Spec::Decode(decode("sd-v1", &[1, 4, 8, 8])).check(&ModelTable::known(), &limits()).unwrap();
    for bits in [0x7e00u16, 0x7c00, 0xfc00] {
        let mut data = vec![0u8; 512];
        data[20..22].copy_from_slice(&bits.to_le_bytes());
        let error = checked.canonicalise(data.into()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadRequest);
        assert!(error.message().contains("10"), "{error}");
    }
}

#[test]
fn predictions_are_exact_for_tensors_and_bounds_for_pictures() {
    let predicted = |output| {
        let spec = Spec::Decode(DecodeSpec { output, ..decode("sd-v1", &[1, 4, 8, 16]) });
        let checked = spec.check(&ModelTable::known(), &limits()).unwrap();
        checked.canonicalise(vec![0; 1024].into()).unwrap().predicted().unwrap()
    };
    let tensor = predicted(Output::Tensor(DType::F32));
    assert_eq!((tensor.bytes, tensor.shape.dims()), (3 * 64 * 128 * 4, &[1, 3, 64, 128][..]));
    let finished = predicted(Output::Uint8);
    assert_eq!((finished.bytes, finished.shape.dims()), (3 * 64 * 128, &[1, 64, 128, 3][..]));
    assert!(predicted(Output::Png).bytes > 3 * 64 * 128);
    assert!(predicted(Output::Png).held_bytes > predicted(Output::Png).bytes);
}
