use std::{collections::BTreeMap, sync::Arc};

use half::{bf16, f16};
use proptest::prelude::*;

use super::*;
use crate::{
    job::EncodeMode,
    model::{ModelSpec, ModelTable},
};

fn model(name: &str) -> Arc<ModelSpec> {
    ModelTable::known().get(name).unwrap().clone()
}

fn tensor(dims: &[usize], values: impl Iterator<Item = f32>) -> Tensor {
    let data: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
    Tensor::try_new(DType::F32, Shape::try_new(dims).unwrap(), data.into()).unwrap()
}

fn latents(dims: &[usize]) -> Tensor {
    let count: usize = dims.iter().product();
    tensor(dims, (0..count).map(|i| i as f32 / 8.0))
}

fn decode(name: &str, latents: Tensor, output: Output) -> Plan {
    let scaling = Scaling::new(0.182_15, 0.0);
    Plan::of(&Job::new(model(name), scaling, Work::Decode { latents, output })).unwrap()
}

fn encode(pixels: Tensor, scaling: Scaling) -> Plan {
    let work = Work::Encode { pixels, mode: EncodeMode::Mean, dtype: DType::F16 };
    Plan::of(&Job::new(model("flux"), scaling, work)).unwrap()
}

fn u8_pixels(n: usize) -> Tensor {
    let data: Vec<u8> = (0..n * 8 * 16 * 3).map(|i| (i * 13 % 256) as u8).collect();
    Tensor::try_new(DType::U8, Shape::try_new(&[n, 8, 16, 3]).unwrap(), data.into()).unwrap()
}

/// Model, latents, output; what is asked for, and what is made of it.
type Case<'a> = (&'a str, &'a [usize], Output, &'a str, Accept, Finish);

#[test]
fn every_output_is_asked_for_in_the_cheapest_form_it_follows_from() {
    let (one, two, video) = ([1, 4, 2, 3], [2, 4, 2, 3], [1, 16, 2, 2, 3]);
    let cases: [Case<'_>; 11] = [
        ("sd-v1", &one, Output::Tensor(DType::F32), "pt/False", Accept::Tensor, Finish::Cast(DType::F32)),
        ("hunyuan-video", &video, Output::Tensor(DType::F16), "pt/False", Accept::Tensor, Finish::Cast(DType::F16)),
        ("sd-v1", &two, Output::Unit, "pt/False", Accept::Tensor, Finish::Unit),
        ("hunyuan-video", &video, Output::Unit, "pil/False", Accept::Tensor, Finish::Cast(DType::F16)),
        ("sd-v1", &one, Output::Uint8, "pil/False", Accept::Png, Finish::Pixels),
        ("sd-v1", &two, Output::Uint8, "pt/True", Accept::Tensor, Finish::None),
        ("hunyuan-video", &video, Output::Uint8, "pt/True", Accept::Tensor, Finish::None),
        ("sd-v1", &one, Output::Png, "pil/False", Accept::Png, Finish::None),
        ("sd-v1", &one, Output::Jpeg(80), "pil/False", Accept::Png, Finish::Jpeg(80)),
        ("sd-v1", &one, Output::Webp, "pil/False", Accept::Png, Finish::Webp),
        ("hunyuan-video", &video, Output::Mp4(10), "mp4/False", Accept::Text, Finish::None),
    ];
    for (name, dims, output, asked, accept, finish) in cases {
        let plan = decode(name, latents(dims), output);
        let query: BTreeMap<_, _> = form_urlencoded::parse(plan.query.as_bytes()).into_owned().collect();
        let got = format!("{}/{}", query["output_type"], query["partial_postprocess"]);
        assert_eq!((&*got, plan.accept, plan.finish), (asked, accept, finish), "{name} {output:?}");
        match plan.form {
            Form::Tensor { shape, is_bytes } => {
                assert_eq!((shape, is_bytes), (plan.predicted.shape, output == Output::Uint8), "{output:?}");
            }
            Form::Png { width, height, .. } => assert_eq!((width, height), (24, 16)),
            Form::Mp4 { most } => assert_eq!(most, plan.predicted.bytes),
        }
    }
}

#[test]
fn a_decode_is_spelled_like_the_clients_do() {
    let plan = decode("sd-v1", latents(&[1, 4, 2, 3]), Output::Png);
    assert_eq!(
        plan.query,
        "image_format=png&output_type=pil&partial_postprocess=False&shape=1&shape=4&shape=2&shape=3&dtype=float16\
         &scaling_factor=0.18215"
    );
    assert_eq!((plan.content_type, plan.body.len()), (Some("tensor/binary"), 48));
}

#[test]
fn scaling_is_numbers_or_nothing() {
    let query = |scaling| encode(u8_pixels(1), scaling).query;
    assert_eq!(query(Scaling::NONE), "");
    assert_eq!(query(Scaling::new(0.3611, 0.1159)), "scaling_factor=0.3611&shift_factor=0.1159");
    assert_eq!(query(Scaling::new(0.130_25, 0.0)), "scaling_factor=0.13025");
    assert_eq!(query(Scaling::new(1.0, 0.5)), "scaling_factor=1&shift_factor=0.5");
    assert_eq!(query(Scaling::new(1e-7, 0.0)), "scaling_factor=0.0000001");
}

#[test]
fn latents_go_in_the_narrowest_type_that_holds_them_exactly() {
    let dtype = |values: &[f32]| narrowest(&tensor(&[values.len()], values.iter().copied())).dtype();
    assert_eq!(dtype(&[1.0, -0.5, 65504.0, -0.0, 2f32.powi(-24)]), DType::F16);
    assert_eq!(dtype(&[1.0, 65536.0]), DType::BF16);
    assert_eq!(dtype(&[1.0, 2f32.powi(-30)]), DType::BF16);
    assert_eq!(dtype(&[1.0, 0.1]), DType::F32);
    // One needs the range of the one type, the other the digits of the other.
    assert_eq!(dtype(&[65536.0, 1.0 + 2f32.powi(-10)]), DType::F32);
}

#[test]
fn one_picture_is_encoded_from_a_png_without_a_content_type() {
    let plan = encode(u8_pixels(1), Scaling::NONE);
    assert_eq!((plan.content_type, plan.accept), (None, Accept::Any));
    let limits = PictureLimits { max_pixels: 1000, max_side: 100 };
    assert_eq!(picture::read(&plan.body, &limits).unwrap(), u8_pixels(1));
    assert_eq!(plan.form, Form::Tensor { shape: Shape::try_new(&[1, 16, 1, 2]).unwrap(), is_bytes: false });
}

#[test]
fn other_pixels_are_encoded_from_a_tensor_whose_range_the_endpoint_guesses_right() {
    let plan = encode(u8_pixels(2), Scaling::NONE);
    assert_eq!(plan.query, "shape=2&shape=3&shape=8&shape=16&dtype=float32");
    let sent: Vec<f32> = float::values(&plan.body).collect();
    let pixels = u8_pixels(2);
    // The last green of the second picture.
    let (plane, last) = (8 * 16, pixels.data()[pixels.data().len() - 2]);
    assert_eq!(sent[plane * 5 - 1].to_bits(), (f32::from(last) / 255.0).to_bits());
    assert!(sent.iter().all(|x| (0.0..=1.0).contains(x)));

    let dims = [1, 3, 8, 8];
    let signed = tensor(&dims, (0..192).map(|i| i as f32 / 96.0 - 1.0));
    assert_eq!(for_the_wire(&signed).unwrap(), signed);
    let bright = tensor(&dims, (0..192).map(|i| i as f32 / 191.0));
    let sent = for_the_wire(&bright).unwrap();
    for (x, y) in float::values(bright.data()).zip(float::values(sent.data())) {
        assert!((0.5..=1.0).contains(&y) && (2.0 * y - 1.0 - x).abs() < 1e-6);
    }
}

#[test]
fn replies_become_answers() {
    let y = tensor(&[1, 3, 8, 8], (0..192).map(|i| (i as f32 - 96.0) / 64.0));
    let half = float::cast(&y, DType::F16).unwrap();
    let apply = |finish: Finish, reply: &Tensor| {
        finish.apply(reply.dtype(), reply.data().clone(), reply.shape()).map_err(|_| "unfinished").unwrap()
    };
    assert_eq!(apply(Finish::Cast(DType::F16), &y), *half.data());
    assert_eq!(apply(Finish::Cast(DType::F32), &half), *float::cast(&half, DType::F32).unwrap().data());
    assert_eq!(apply(Finish::Unit, &half), *render::unit(&half).unwrap().data());

    let large = tensor(&[1, 3, 8, 8], (0..192).map(|_| 1e30));
    let refused = Finish::Cast(DType::F16).apply(DType::F32, large.data().clone(), large.shape());
    assert!(matches!(refused, Err(Unfinished::NonFinite)));
    assert_eq!(apply(Finish::Cast(DType::F32), &large), *large.data());

    let pixels = render::uint8(&half).unwrap();
    let file = render::png(&pixels).unwrap();
    let apply =
        |finish: Finish| finish.apply(DType::U8, file.clone(), pixels.shape()).map_err(|_| "unfinished").unwrap();
    assert_eq!(apply(Finish::Pixels), *pixels.data());
    assert_eq!(apply(Finish::Jpeg(90)), render::jpeg(&pixels, 90).unwrap());
    assert_eq!(apply(Finish::Webp), render::webp(&pixels).unwrap());
    assert_eq!(apply(Finish::None), file);
    let broken = Finish::Pixels.apply(DType::U8, file.slice(..60), pixels.shape());
    assert!(matches!(broken, Err(Unfinished::Picture(_))));
}

proptest! {
    #[test]
    fn narrowing_never_changes_a_number(bits in prop::collection::vec(any::<u16>(), 1..2000), which in 0..3) {
        let widen = |bits: u16| match which {
            0 => f16::from_bits(bits).to_f32(),
            1 => bf16::from_bits(bits).to_f32(),
            _ => f32::from_bits(u32::from(bits) << 12 | 0x3000_0000),
        };
        let values: Vec<f32> = bits.into_iter().map(widen).filter(|v| v.is_finite()).collect();
        prop_assume!(!values.is_empty());
        let wide = tensor(&[values.len()], values.into_iter());
        let narrow = narrowest(&wide);
        prop_assert_eq!(float::cast(&narrow, DType::F32).unwrap(), wide);
        prop_assert!(which != 0 || narrow.dtype() == DType::F16);
    }
}
