use bytes::Bytes;
use proptest::{option, prelude::*, sample::select};

use super::*;
use crate::error::ErrorKind;

fn decode(query: &str, accept: &str) -> Result<DecodeSpec, Error> {
    Ok(Parameters::parse(query)?.decode("sd-v1", Accept::parse(Some(accept))?)?.0)
}

fn sizes(shape: &Shape) -> impl Strategy<Value = [Option<u32>; 2]> + use<> {
    let packed = shape.rank() == 3;
    [option::of(any::<u32>()), option::of(any::<u32>())].prop_map(move |both| both.map(|one| one.filter(|_| packed)))
}

fn finite() -> impl Strategy<Value = f64> {
    any::<f64>().prop_filter("a factor", |x| x.is_finite() && *x != 0.0)
}

prop_compose! {
    fn parameters()(dims in proptest::collection::vec(1usize..500, 1..6))(
        shape in option::of(Just(Shape::try_new(&dims).unwrap())),
        [height, width] in sizes(&Shape::try_new(&dims).unwrap()),
        dtype in option::of(select(&DType::ALL[..])),
        output_type in option::of(select(&[OutputType::Pil, OutputType::Pt, OutputType::Mp4][..])),
        image_format in option::of(select(&[ImageFormat::Jpeg, ImageFormat::Png][..])),
        [partial_postprocess, do_scaling] in [option::of(any::<bool>()), option::of(any::<bool>())],
        (scaling_factor, shift_factor) in (option::of(finite()), option::of(finite())),
    ) -> Parameters {
        let (height, width) = if shape.is_some() { (height, width) } else { (None, None) };
        Parameters {
            shape, dtype, output_type, image_format, partial_postprocess, scaling_factor, shift_factor, do_scaling,
            height, width,
        }
    }
}

proptest! {
    #[test]
    fn parsing_undoes_formatting(parameters in parameters()) {
        prop_assert_eq!(Parameters::parse(&parameters.to_query()).unwrap(), parameters);
    }

    #[test]
    fn no_query_breaks_the_parser(query in "\\PC{0,200}") {
        let _ = Parameters::parse(&query);
    }

    #[test]
    fn a_reply_in_base64_is_as_long_as_announced(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
        let head = ReplyHead { dtype: DType::U8, shape: Shape::try_new(&[1, 2]).unwrap() };
        let reply = Base64Reply::of(&head);
        let body = [Base64Reply::BEFORE, &Base64Reply::encode(&payload), reply.after()].concat();
        prop_assert_eq!(body.len() as u64, reply.length(payload.len() as u64));
        let read = Envelope::parse(body.as_bytes()).unwrap();
        prop_assert_eq!(read.inputs, Bytes::from(payload));
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        prop_assert_eq!(read.parameters, [pair("dtype", "uint8"), pair("shape", "1"), pair("shape", "2")]);
    }
}

#[test]
fn the_requests_of_the_protocols_examples() {
    let sd = decode(
        "image_format=jpg&output_type=pil&partial_postprocess=False&shape=1&shape=4&shape=64&shape=64&dtype=float16\
         &scaling_factor=0.18215",
        "image/jpeg",
    )
    .unwrap();
    assert_eq!((sd.shape.dims(), sd.dtype, sd.output), (&[1, 4, 64, 64][..], DType::F16, Output::Jpeg(75)));
    assert_eq!(sd.scaling, ScalingWish::Given { factor: 0.18215, shift: 0.0 });
    let flux = decode(
        "image_format=png&output_type=pil&partial_postprocess=False&shape=1&shape=4096&shape=64&dtype=bfloat16\
         &scaling_factor=0.3611&shift_factor=0.1159&height=1024&width=1024",
        "image/png",
    )
    .unwrap();
    assert_eq!((flux.picture, flux.output), (Some((1024, 1024)), Output::Png));
    assert_eq!(flux.scaling, ScalingWish::Given { factor: 0.3611, shift: 0.1159 });
}

#[test]
fn a_shape_has_three_spellings() {
    for query in ["shape=1&shape=4&shape=8&shape=6", "shape=[1,4,8,6]", "shape=%5B1%2C%204%2C+8,6%5D", "shape=1,4,8,6"]
    {
        let shape = Parameters::parse(query).unwrap().shape.unwrap();
        assert_eq!(shape.dims(), [1, 4, 8, 6], "{query}");
    }
    assert_eq!(Parameters::parse("shape=5").unwrap().shape.unwrap().dims(), [5]);
}

#[test]
fn absence_has_four_spellings_and_unknown_keys_mean_nothing() {
    for query in ["", "shape=None&dtype=NULL&height=&do_scaling=none", "input_tensor_type=binary&x=y"] {
        assert_eq!(Parameters::parse(query).unwrap(), Parameters::default(), "{query}");
    }
}

#[test]
fn sizes_are_read_for_packed_latents_alone() {
    let four = Parameters::parse("shape=[1,16,8,8]&height=nonsense&width=7").unwrap();
    assert_eq!((four.height, four.width), (None, None));
    assert_eq!(Parameters::parse("shape=[1,16,64]&height=64&width=72").unwrap().height, Some(64));
    assert_eq!(Parameters::parse("shape=[1,16,64]&height=6x").unwrap_err().field_name(), Some("height"));
}

#[test]
fn every_garbled_value_is_refused_by_name() {
    let many = "x=1&".repeat(65);
    for (query, field) in [
        ("shape=1&shape=x", "shape"),
        ("shape=[1,4,8,8", "shape"),
        ("shape=1,4,8,8]", "shape"),
        ("shape=[[1,4,8,8]]", "shape"),
        ("shape=%2B1", "shape"),
        ("shape=-1&shape=4", "shape"),
        ("shape=0", "shape"),
        ("shape=[1,4,[8],8]", "shape"),
        ("shape=9223372036854775807&shape=9223372036854775807", "shape"),
        ("shape=99999999999999999999", "shape"),
        ("shape=1&shape=1&shape=1&shape=1&shape=1&shape=1&shape=1", "shape"),
        ("dtype=float64", "dtype"),
        ("dtype=float16&dtype=float16", "dtype"),
        ("output_type=gif", "output_type"),
        ("partial_postprocess=yes", "partial_postprocess"),
        ("do_scaling=2", "do_scaling"),
        ("scaling_factor=0", "scaling_factor"),
        ("scaling_factor=nan", "scaling_factor"),
        ("scaling_factor=inf", "scaling_factor"),
        ("scaling_factor=1e999", "scaling_factor"),
        ("shift_factor=one", "shift_factor"),
        (many.as_str(), "query"),
    ] {
        let error = Parameters::parse(query).unwrap_err();
        assert_eq!((error.kind(), error.field_name()), (ErrorKind::BadRequest, Some(field)), "{query}: {error}");
    }
}

#[test]
fn output_type_partial_postprocess_and_accept_choose_the_output() {
    let wanted = |rest: &str, accept: &str| {
        decode(&format!("shape=[1,4,8,8]&dtype=float16{rest}"), accept).map(|spec| spec.output).ok()
    };
    for (rest, accept, output) in [
        ("&output_type=pt", "tensor/binary", Some(Output::Tensor(DType::F16))),
        ("&output_type=pt&partial_postprocess=False", "tensor/base64", Some(Output::Tensor(DType::F16))),
        ("&output_type=pt&partial_postprocess=true", "tensor/binary", Some(Output::Uint8)),
        ("&output_type=pil&partial_postprocess=True", "image/png", Some(Output::Png)),
        ("", "image/jpeg", Some(Output::Jpeg(75))),
        ("", "tensor/binary", Some(Output::Unit)),
        ("", "*/*", Some(Output::Png)),
        ("&image_format=jpg", "*/*", Some(Output::Jpeg(75))),
        ("", "image/avif, image/webp;q=0.9, */*", Some(Output::Webp)),
        ("", "image/png;q=0, image/jpeg", Some(Output::Jpeg(75))),
        ("", "image/*", Some(Output::Png)),
        ("", "", Some(Output::Png)),
        ("&output_type=mp4", "text/plain", Some(Output::Mp4(10))),
        ("&output_type=mp4", "video/mp4", Some(Output::Mp4(10))),
        ("&output_type=mp4", "tensor/binary", None),
        ("&output_type=pt", "image/png", None),
        ("&output_type=pil", "text/plain", None),
        ("&output_type=pil", "image/bmp", None),
    ] {
        assert_eq!(wanted(rest, accept), output, "{rest} {accept}");
    }
}

#[test]
fn scaling_is_a_factor_or_the_servers_or_done() {
    use ScalingWish as W;
    let wish = |rest: &str| decode(&format!("shape=[1,4,8,8]&dtype=float16{rest}"), "*/*").unwrap().scaling;
    for (rest, scaling) in [
        ("", W::Applied),
        ("&do_scaling=False", W::Applied),
        ("&do_scaling=True", W::ModelDefault),
        ("&scaling_factor=0.5", W::Given { factor: 0.5, shift: 0.0 }),
        ("&scaling_factor=0.5&shift_factor=1e-07", W::Given { factor: 0.5, shift: 1e-7 }),
        ("&do_scaling=False&scaling_factor=0.5", W::Given { factor: 0.5, shift: 0.0 }),
        ("&shift_factor=0.25", W::Given { factor: 1.0, shift: 0.25 }),
    ] {
        assert_eq!(wish(rest), scaling, "{rest}");
    }
}

#[test]
fn what_the_query_says_stands_over_the_body() {
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let body = vec![pair("shape", "9"), pair("shape", "9"), pair("dtype", "float16"), pair("do_scaling", "true")];
    let both = Parameters::parse_with("shape=1&shape=4&dtype=float32", body.clone()).unwrap();
    assert_eq!((both.shape.unwrap().dims(), both.dtype, both.do_scaling), (&[1, 4][..], Some(DType::F32), Some(true)));
    assert_eq!(Parameters::parse_with("", body).unwrap().shape.unwrap().dims(), [9, 9]);
}

#[test]
fn an_encode_is_a_tensor_if_it_says_so() {
    let encode = |query: &str, accept| Parameters::parse(query)?.encode("flux", accept, 77).map(|(spec, _)| spec);
    let picture = encode("scaling_factor=0.3611&shift_factor=0.1159", Accept::Any).unwrap();
    assert_eq!(picture.input, EncodeInput::Image { length: 77 });
    assert_eq!(picture.scaling, ScalingWish::Given { factor: 0.3611, shift: 0.1159 });
    let tensor = encode("shape=[1,3,8,8]&dtype=float32", Accept::Any).unwrap();
    assert!(matches!(tensor.input, EncodeInput::Pixels { dtype: DType::F32, .. }));
    assert_eq!(tensor.scaling, ScalingWish::Applied);
    assert_eq!(encode("shape=[1,3,8,8]", Accept::Any).unwrap_err().field_name(), Some("dtype"));
    assert_eq!(encode("dtype=float32", Accept::Any).unwrap_err().field_name(), Some("shape"));
    assert_eq!(encode("", Accept::Png).unwrap_err().field_name(), Some("accept"));
}

#[test]
fn content_types_are_known_or_refused() {
    for (name, form) in [
        (None, Some(BodyForm::Raw)),
        (Some("tensor/binary"), Some(BodyForm::Raw)),
        (Some("Image/PNG"), Some(BodyForm::Raw)),
        (Some("tensor/base64"), Some(BodyForm::Envelope)),
        (Some("application/json; charset=utf-8"), Some(BodyForm::Envelope)),
        (Some("application/x-www-form-urlencoded"), None),
        (Some("text/html"), None),
        (Some(""), Some(BodyForm::Raw)),
    ] {
        assert_eq!(BodyForm::parse(name).ok(), form, "{name:?}");
    }
}

#[test]
fn envelopes_that_are_none_say_why() {
    for (body, field) in [
        ("", "body"),
        ("{\"inputs\": 3}", "body"),
        ("{}", "inputs"),
        ("{\"inputs\":\"a\"}", "inputs"),
        ("{\"inputs\":\"%%%%\"}", "inputs"),
        ("{\"inputs\":\"AAAA\",\"parameters\":[]}", "parameters"),
    ] {
        assert_eq!(Envelope::parse(body.as_bytes()).unwrap_err().field_name(), Some(field), "{body}");
    }
    assert_eq!(Envelope::parse(br#"{"inputs":"AQI\u0044"}"#).unwrap().inputs, Bytes::from_static(&[1, 2, 3]));
}

#[test]
fn a_refused_envelope_does_not_repeat_its_payload() {
    let payload = "QUJD".repeat(1000);
    for body in [
        format!("\"{payload}\""),
        format!("{{\"inputs\":[\"{payload}\"]}}"),
        format!("{{\"inputs\":\"\",\"parameters\":\"{payload}\"}}"),
        format!("{{\"inputs\":\"{payload}%\"}}"),
        format!("{{\"inputs\":\"{payload}"),
    ] {
        let error = Envelope::parse(body.as_bytes()).unwrap_err();
        assert!(error.message().len() < 200, "{error}");
    }
}

#[test]
fn what_stands_beside_the_inputs_is_bounded() {
    let with = |parameters: &str| {
        let body = format!("{{\"inputs\":\"AAAA\",\"x\":[[],{{}}],\"parameters\":{parameters}}}");
        Envelope::parse(body.as_bytes()).map(|envelope| envelope.parameters.len())
    };
    assert_eq!(with("null").unwrap(), 0);
    assert_eq!(with("{\"shape\":[1,4,8,8],\"dtype\":\"float16\"}").unwrap(), 5);
    for parameters in
        [format!("{{\"x\":[{}0]}}", "0,".repeat(2100)), format!("{{\"shape\":\"{}1\"}}", "1,".repeat(2100))]
    {
        assert_eq!(with(&parameters).unwrap_err().field_name(), Some("parameters"));
    }
}

#[test]
fn errors_go_round() {
    assert_eq!(error_text(&error_body("shape: \"x\"\nis none")).unwrap(), "shape: \"x\" is none");
    assert_eq!(error_text(b"<html>"), None);
    assert_eq!(error_text(&error_body(&"x".repeat(5000))).unwrap().len(), 300);
}

#[test]
fn the_two_headers_of_a_reply() {
    let head = ReplyHead::parse("[1, 3, 512,512]", "float16").unwrap();
    assert_eq!((head.shape_value().as_str(), head.dtype), ("[1,3,512,512]", DType::F16));
    assert!(ReplyHead::parse("1 3", "float16").is_err());
    assert!(ReplyHead::parse("[1]", "int8").is_err());
}
