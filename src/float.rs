//! Float elements of tensors at rest: reading, casting, and finding what is no number.
//!
//! Four rooms of the ground need the same three moves (latents, pictures, render, preview), and two spellings of "round
//! to bf16" would be two answers to one request. Bytes are little-endian and of any alignment, so elements are read
//! through small stack blocks instead of by reinterpreting the payload, which would need `unsafe` and luck; the slice
//! conversions of `half` inside a block use the CPU's own instructions where it has them.

use bytes::Bytes;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};

use crate::tensor::{DType, Tensor};

/// Elements converted at once: 4 KiB of f32 stays in the first-level cache.
const BLOCK: usize = 1024;

/// Exponent bits of an f32; all set means infinity or NaN.
const EXPONENT: u32 = 0x7f80_0000;

/// A cast from or to a type that is no float.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("only float tensors can be cast to each other, got {from} to {to}")]
pub struct NotFloat {
    /// What the tensor holds.
    pub from: DType,
    /// What was wanted.
    pub to: DType,
}

/// Casts between f32, f16 and bf16, rounding to nearest even; too large becomes infinity, NaN stays NaN. The same type
/// costs nothing: the bytes are shared.
pub fn cast(tensor: &Tensor, to: DType) -> Result<Tensor, NotFloat> {
    let from = tensor.dtype();
    if !from.is_float() || !to.is_float() {
        return Err(NotFloat { from, to });
    }
    if from == to {
        return Ok(tensor.clone());
    }
    let data = if to == DType::F32 { widen(tensor.data(), from) } else { narrow(tensor, to) };
    Ok(Tensor::try_new(to, tensor.shape().clone(), data).expect("a cast keeps the number of elements"))
}

/// The f32 values of little-endian f32 bytes.
pub fn values(data: &[u8]) -> impl ExactSizeIterator<Item = f32> + '_ {
    data.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b))
}

/// Index and value of the first NaN or infinity among little-endian f32 bytes.
pub fn first_non_finite(data: &[u8]) -> Option<(u64, f32)> {
    let is_bad = |b: &[u8; 4]| u32::from_le_bytes(*b) & EXPONENT == EXPONENT;
    // A fold without an early exit is vectorised; the exact place is looked for only in a block known to be bad.
    let (words, _) = data.as_chunks::<4>();
    let block = words.chunks(BLOCK).position(|block| block.iter().fold(false, |bad, b| bad | is_bad(b)))?;
    let index = block * BLOCK + words[block * BLOCK..].iter().position(is_bad)?;
    Some((index as u64, f32::from_le_bytes(words[index])))
}

/// 16-bit floats to f32: exact.
fn widen(data: &[u8], from: DType) -> Bytes {
    let mut out = Vec::with_capacity(data.len() * 2);
    let mut bits = [0u16; BLOCK];
    let mut wide = [0f32; BLOCK];
    let mut bytes = [[0u8; 4]; BLOCK];
    for block in data.as_chunks::<2>().0.chunks(BLOCK) {
        let (bits, wide) = (&mut bits[..block.len()], &mut wide[..block.len()]);
        bits.iter_mut().zip(block).for_each(|(to, &b)| *to = u16::from_le_bytes(b));
        widen_block(bits, wide, from);
        let bytes = &mut bytes[..block.len()];
        bytes.iter_mut().zip(&*wide).for_each(|(to, v)| *to = v.to_le_bytes());
        out.extend_from_slice(bytes.as_flattened());
    }
    out.into()
}

/// Any other float to a 16-bit one. The way leads through f32, which holds every 16-bit value exactly, so it rounds
/// once.
fn narrow(tensor: &Tensor, to: DType) -> Bytes {
    let wide = match tensor.dtype() {
        DType::F32 => tensor.data().clone(),
        from => widen(tensor.data(), from),
    };
    narrow_while(&wide, to, |_, _| true).expect("nothing is refused").into()
}

/// The same numbers in a 16-bit type, if it holds every one of them exactly; looks no further than the first block
/// that has one it does not hold.
pub fn narrow_exactly(tensor: &Tensor, to: DType) -> Option<Tensor> {
    if tensor.dtype() != DType::F32 || !matches!(to, DType::F16 | DType::BF16) {
        return None;
    }
    let mut back = [0f32; BLOCK];
    let is_exact = |wide: &[f32], bits: &[u16]| {
        let back = &mut back[..wide.len()];
        widen_block(bits, back, to);
        wide.iter().zip(back).all(|(number, back)| number.to_bits() == back.to_bits())
    };
    let data = narrow_while(tensor.data(), to, is_exact)?;
    Some(Tensor::try_new(to, tensor.shape().clone(), data.into()).expect("a cast keeps the number of elements"))
}

/// f32 bytes to a 16-bit type, block by block, as long as `is_fine` says so of each.
fn narrow_while(data: &[u8], to: DType, mut is_fine: impl FnMut(&[f32], &[u16]) -> bool) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(data.len() / 2);
    let mut bits = [0u16; BLOCK];
    let mut wide = [0f32; BLOCK];
    for block in data.as_chunks::<4>().0.chunks(BLOCK) {
        let (bits, wide) = (&mut bits[..block.len()], &mut wide[..block.len()]);
        wide.iter_mut().zip(block).for_each(|(to, &b)| *to = f32::from_le_bytes(b));
        if to == DType::F16 {
            bits.reinterpret_cast_mut::<f16>().convert_from_f32_slice(wide);
        } else {
            bits.reinterpret_cast_mut::<bf16>().convert_from_f32_slice(wide);
        }
        if !is_fine(wide, bits) {
            return None;
        }
        out.extend(bits.iter().flat_map(|v| v.to_le_bytes()));
    }
    Some(out)
}

fn widen_block(bits: &[u16], wide: &mut [f32], from: DType) {
    if from == DType::F16 {
        bits.reinterpret_cast::<f16>().convert_to_f32_slice(wide);
    } else {
        bits.reinterpret_cast::<bf16>().convert_to_f32_slice(wide);
    }
}

/// The exponent's bits in the upper two bytes of an element; infinity and NaN have all of them set. Bytes have none.
pub const fn exponent(dtype: DType) -> Option<u16> {
    match dtype {
        DType::F32 | DType::BF16 => Some(0x7f80),
        DType::F16 => Some(0x7c00),
        DType::U8 => None,
    }
}

/// Whether a tensor holds neither NaN nor infinity; bytes never do.
pub fn is_finite(tensor: &Tensor) -> bool {
    let Some(exponent) = exponent(tensor.dtype()) else { return true };
    let is_bad = |upper: [u8; 2]| u16::from_le_bytes(upper) & exponent == exponent;
    match tensor.dtype().size() {
        2 => !tensor.data().as_chunks::<2>().0.iter().any(|&element| is_bad(element)),
        _ => !tensor.data().as_chunks::<4>().0.iter().any(|&[_, _, low, high]| is_bad([low, high])),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tensor::Shape;

    fn f32_tensor(values: &[f32]) -> Tensor {
        let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor::try_new(DType::F32, Shape::try_new(&[values.len()]).unwrap(), data.into()).unwrap()
    }

    fn words(tensor: &Tensor) -> Vec<u16> {
        tensor.data().as_chunks::<2>().0.iter().map(|&b| u16::from_le_bytes(b)).collect()
    }

    #[test]
    fn narrow_exactly_is_the_cast_that_loses_nothing() {
        let long: Vec<f32> = (0..3 * BLOCK as u16).map(|n| f32::from(n % 2048)).collect();
        let mut last_is_odd = long.clone();
        last_is_odd[3 * BLOCK - 1] = 2049.0;
        for (values, half, brain) in [
            (vec![1.0, -0.0, 0.5, 65504.0], true, false),
            ([1e30f32, -2.0].iter().map(|&v| bf16::from_f32(v).to_f32()).collect(), false, true),
            (vec![0.1], false, false),
            (long, true, false),
            (last_is_odd, false, false),
        ] {
            let wide = f32_tensor(&values);
            for (dtype, fits) in [(DType::F16, half), (DType::BF16, brain)] {
                let narrow = narrow_exactly(&wide, dtype);
                assert_eq!(narrow.is_some(), fits, "{dtype} {values:.9?}");
                if let Some(narrow) = narrow {
                    assert_eq!(narrow, cast(&wide, dtype).unwrap());
                    assert_eq!(cast(&narrow, DType::F32).unwrap(), wide);
                }
            }
        }
        assert_eq!(narrow_exactly(&f32_tensor(&[1.0]), DType::U8), None);
    }

    #[test]
    fn ties_go_to_even_and_overflow_to_infinity() {
        // One and a half steps above 1.0 in each type, then the largest finite value's upper neighbour.
        let half = cast(&f32_tensor(&[1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, 65520.0, 65519.9]), DType::F16).unwrap();
        assert_eq!(words(&half), [0x3c00, 0x3c02, 0x7c00, 0x7bff]);
        let brain = cast(&f32_tensor(&[1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, f32::MAX]), DType::BF16).unwrap();
        assert_eq!(words(&brain), [0x3f80, 0x3f82, 0x7f80]);
    }

    #[test]
    fn the_same_type_shares_the_bytes() {
        let tensor = f32_tensor(&[1.0, 2.0]);
        assert_eq!(cast(&tensor, DType::F32).unwrap().data().as_ptr(), tensor.data().as_ptr());
        let refused = cast(&tensor, DType::U8).unwrap_err();
        assert_eq!(refused.to_string(), "only float tensors can be cast to each other, got float32 to uint8");
    }

    #[test]
    fn every_half_survives_the_way_through_f32() {
        let data: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        for dtype in [DType::F16, DType::BF16] {
            let shape = Shape::try_new(&[256, 256]).unwrap();
            let tensor = Tensor::try_new(dtype, shape, data.clone().into()).unwrap();
            let back = cast(&cast(&tensor, DType::F32).unwrap(), dtype).unwrap();
            for (bits, got) in words(&tensor).into_iter().zip(words(&back)) {
                let is_nan = if dtype == DType::F16 {
                    f16::from_bits(bits).is_nan() && f16::from_bits(got).is_nan()
                } else {
                    bf16::from_bits(bits).is_nan() && bf16::from_bits(got).is_nan()
                };
                assert!(bits == got || is_nan, "{dtype} {bits:#06x} came back as {got:#06x}");
            }
        }
    }

    #[test]
    fn the_first_bad_number_is_named_wherever_it_is() {
        for index in [0usize, 1023, 1024, 2500] {
            let mut values = vec![0.5f32; 2501];
            values[index] = f32::NEG_INFINITY;
            values[2500] = f32::NEG_INFINITY;
            assert_eq!(first_non_finite(f32_tensor(&values).data()), Some((index as u64, f32::NEG_INFINITY)));
        }
        assert_eq!(first_non_finite(f32_tensor(&[f32::MAX, -0.0]).data()), None);
    }

    proptest! {
        #[test]
        fn casting_blocks_equals_casting_one_by_one(bits in prop::collection::vec(any::<u32>(), 1..3000)) {
            let values: Vec<f32> = bits.into_iter().map(f32::from_bits).filter(|v| !v.is_nan()).collect();
            prop_assume!(!values.is_empty());
            let tensor = f32_tensor(&values);
            let half: Vec<u16> = values.iter().map(|&v| f16::from_f32(v).to_bits()).collect();
            let brain: Vec<u16> = values.iter().map(|&v| bf16::from_f32(v).to_bits()).collect();
            prop_assert_eq!(words(&cast(&tensor, DType::F16).unwrap()), half.clone());
            prop_assert_eq!(words(&cast(&tensor, DType::BF16).unwrap()), brain);
            let crossed: Vec<u16> = half.iter().map(|&b| bf16::from_f32(f16::from_bits(b).to_f32()).to_bits()).collect();
            let halves = cast(&tensor, DType::F16).unwrap();
            prop_assert_eq!(words(&cast(&halves, DType::BF16).unwrap()), crossed);
        }
    }
}
