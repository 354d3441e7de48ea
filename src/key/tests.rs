//! Same meaning, same key; any change of the result, another.

use bytes::Bytes;
use half::{bf16, f16};
use proptest::prelude::*;

use super::*;
use crate::{
    job::{Batch, DecodeSpec, EncodeInput, EncodeSpec, Limits, ScalingWish, Spec},
    model::{ModelSpec, ModelTable},
    picture::Range,
    render,
    tensor::Shape,
};

impl ContentKey {
    /// A key that no job has, for tests of what holds keys.
    pub(crate) fn sample(n: u8) -> Self {
        Self([n; 32])
    }
}

const LIMITS: Limits = Limits { max_pixels: 1 << 22, max_batch: 4, max_input_bytes: 1 << 24 };

fn job(spec: Spec, data: impl Into<Bytes>) -> Job {
    spec.check(&ModelTable::known(), &LIMITS).unwrap().canonicalise(data.into()).unwrap()
}

fn key(spec: Spec, data: impl Into<Bytes>) -> ContentKey {
    ContentKey::of(&job(spec, data), "")
}

fn decode(dims: &[i64]) -> DecodeSpec {
    DecodeSpec {
        model: "flux".to_owned(),
        dtype: DType::F32,
        shape: Shape::try_from_wire(dims).unwrap(),
        picture: None,
        scaling: ScalingWish::ModelDefault,
        output: Output::Png,
        batch: Batch::Whole,
    }
}

fn encode(input: EncodeInput) -> EncodeSpec {
    EncodeSpec {
        model: "sd-v1".to_owned(),
        input,
        mode: EncodeMode::Mean,
        scaling: ScalingWish::ModelDefault,
        dtype: DType::F16,
    }
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// `[1,16,h,w]` to `[1, h/2*w/2, 64]`, by the formula of the protocol.
fn pack(z: &[f32], h: usize, w: usize) -> Vec<f32> {
    let mut packed = Vec::new();
    for (i, j) in (0..h / 2).flat_map(|i| (0..w / 2).map(move |j| (i, j))) {
        for (c, dy, dx) in (0..16).flat_map(|c| (0..2).flat_map(move |dy| (0..2).map(move |dx| (c, dy, dx)))) {
            packed.push(z[c * h * w + (2 * i + dy) * w + 2 * j + dx]);
        }
    }
    packed
}

fn latents(h: usize, w: usize) -> impl Strategy<Value = Vec<f32>> {
    // Quarters are exact in every dtype.
    prop::collection::vec((-12i8..12).prop_map(|v| f32::from(v) / 4.0), 16 * h * w)
}

fn pixels() -> Tensor {
    let data: Vec<u8> = (0..16 * 24 * 3).map(|i| (i * 7 % 251) as u8).collect();
    Tensor::try_new(DType::U8, Shape::try_new(&[1, 16, 24, 3]).unwrap(), data.into()).unwrap()
}

#[test]
fn the_golden_key_is_stable() {
    let z: Vec<f32> = (0..16 * 2 * 2).map(|i| i as f32 / 8.0).collect();
    let golden = key(Spec::Decode(decode(&[1, 16, 2, 2])), f32s(&z));
    assert_eq!(golden.to_string(), GOLDEN);
    assert_eq!(format!("{golden:?}"), GOLDEN[..16]);
}

/// Changes with [`CONTEXT`] and with nothing else.
const GOLDEN: &str = "c05253a1755f837c8b1a976490fbab44010c640378f02a9db15a6aeb147af690";

proptest! {
    #[test]
    fn spelling_does_not_matter(z in latents(4, 6)) {
        let plain = key(Spec::Decode(decode(&[1, 16, 4, 6])), f32s(&z));
        // Packed, with sizes that lose their rest.
        let packed = DecodeSpec { picture: Some((39, 48 + 15)), ..decode(&[1, 6, 64]) };
        prop_assert_eq!(plain, key(Spec::Decode(packed), f32s(&pack(&z, 4, 6))));
        // Height and width on latents that are not packed.
        let sized = DecodeSpec { picture: Some((7, 9)), ..decode(&[1, 16, 4, 6]) };
        prop_assert_eq!(plain, key(Spec::Decode(sized), f32s(&z)));
        // The model's numbers, given.
        let given = DecodeSpec { scaling: ScalingWish::Given { factor: 0.3611, shift: 0.1159 }, ..decode(&[1, 16, 4, 6]) };
        prop_assert_eq!(plain, key(Spec::Decode(given), f32s(&z)));
        // The same numbers in 16 bits.
        let halves: Vec<u8> = z.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
        prop_assert_eq!(plain, key(Spec::Decode(DecodeSpec { dtype: DType::F16, ..decode(&[1, 16, 4, 6]) }), halves));
        let brains: Vec<u8> = z.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect();
        prop_assert_eq!(plain, key(Spec::Decode(DecodeSpec { dtype: DType::BF16, ..decode(&[1, 16, 4, 6]) }), brains));
    }

    #[test]
    fn any_other_number_is_another_key(z in latents(2, 2), at in 0usize..64, bit in 0u32..23) {
        let mut other = z.clone();
        other[at] = f32::from_bits(other[at].to_bits() ^ (1 << bit));
        prop_assume!(other[at].is_finite());
        let spec = || Spec::Decode(decode(&[1, 16, 2, 2]));
        prop_assert_ne!(key(spec(), f32s(&z)), key(spec(), f32s(&other)));
    }
}

#[test]
fn no_shift_and_a_shift_of_zero_are_one() {
    let with = |scaling| key(Spec::Decode(DecodeSpec { scaling, ..decode(&[1, 16, 2, 2]) }), f32s(&[1.0; 64]));
    assert_eq!(
        with(ScalingWish::Given { factor: 2.0, shift: 0.0 }),
        with(ScalingWish::Given { factor: 2.0, shift: -0.0 })
    );
    assert_eq!(with(ScalingWish::Applied), with(ScalingWish::Given { factor: 1.0, shift: 0.0 }));
}

#[test]
fn every_field_that_changes_the_result_changes_the_key() {
    let z = f32s(&[0.5; 64]);
    let base = || decode(&[1, 16, 2, 2]);
    let outputs = [
        Output::Tensor(DType::F32),
        Output::Tensor(DType::F16),
        Output::Tensor(DType::BF16),
        Output::Uint8,
        Output::Png,
        Output::Jpeg(75),
        Output::Jpeg(76),
        Output::Webp,
    ];
    let mut keys: Vec<_> = outputs.map(|output| key(Spec::Decode(DecodeSpec { output, ..base() }), z.clone())).into();
    keys.push(key(Spec::Decode(DecodeSpec { model: "taef1".to_owned(), ..base() }), z.clone()));
    keys.push(key(Spec::Decode(DecodeSpec { scaling: ScalingWish::Applied, ..base() }), z.clone()));
    let lifted = ScalingWish::Given { factor: 0.3611, shift: 0.116 };
    keys.push(key(Spec::Decode(DecodeSpec { scaling: lifted, ..base() }), z.clone()));
    // The same bytes in another shape.
    keys.push(key(Spec::Decode(decode(&[1, 16, 1, 4])), z.clone()));
    keys.push(key(Spec::Decode(DecodeSpec { output: Output::Uint8, ..decode(&[2, 16, 1, 2]) }), z.clone()));
    let revised = |revision: &str| {
        let job = job(Spec::Decode(base()), z.clone());
        let model = ModelSpec { revision: revision.to_owned(), ..(*job.model).clone() };
        ContentKey::of(&Job::new(model.into(), job.scaling, job.work), "")
    };
    keys.push(revised("next"));
    keys.push(ContentKey::of(&job(Spec::Decode(base()), z.clone()), "tenant"));
    let image = |mode, dtype| {
        let file = render::png(&pixels()).unwrap();
        let input = EncodeInput::Image { length: file.len() as u64 };
        key(Spec::Encode(EncodeSpec { mode, dtype, ..encode(input) }), file)
    };
    keys.push(image(EncodeMode::Mean, DType::F16));
    keys.push(image(EncodeMode::Mean, DType::F32));
    keys.push(image(EncodeMode::Sample { seed: 0 }, DType::F16));
    keys.push(image(EncodeMode::Sample { seed: 1 }, DType::F16));
    let distinct: std::collections::HashSet<_> = keys.iter().collect();
    assert_eq!(distinct.len(), keys.len());
}

#[test]
fn the_same_pixels_in_other_files_and_as_a_tensor_are_one() {
    let pixels = pixels();
    let of_file = |file: Bytes| key(Spec::Encode(encode(EncodeInput::Image { length: file.len() as u64 })), file);
    let png = render::png(&pixels).unwrap();
    // The same picture with a text chunk after its header chunk (8 + 25 bytes in).
    let mut noted = png[..33].to_vec();
    noted.extend_from_slice(&[0, 0, 0, 3]);
    noted.extend_from_slice(b"tEXta\0b");
    noted.extend_from_slice(&crc32(b"tEXta\0b").to_be_bytes());
    noted.extend_from_slice(&png[33..]);
    assert_eq!(of_file(png.clone()), of_file(noted.into()));
    assert_eq!(of_file(png.clone()), of_file(render::webp(&pixels).unwrap()));
    // [1,3,h,w] of uint8.
    let planar: Vec<u8> =
        (0..3).flat_map(|c| pixels.data().iter().skip(c).step_by(3).copied().collect::<Vec<_>>()).collect();
    let shape = Shape::try_new(&[1, 3, 16, 24]).unwrap();
    let input = EncodeInput::Pixels { dtype: DType::U8, shape, range: Range::Auto };
    assert_eq!(of_file(png), key(Spec::Encode(encode(input)), planar));
}

/// PNG's checksum, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}
