//! Latents as they came to latents as models take them: f32, finite, unpacked.
//!
//! Equal numbers must give equal content keys however they were spelled, so every spelling ends here as one canonical
//! tensor: any float type becomes f32 (exactly), packed tokens become `[n, c, h, w]`. NaN and infinity are refused
//! before they can cost a computation and poison a cache. Scaling is not done here: it is the model's arithmetic.

use bytes::Bytes;

use crate::float;
use crate::tensor::{DType, Shape, Tensor};

/// Pixels a side of the square that one packed token covers: 2x2 latents of 8x8 pixels.
const TOKEN_PIXELS: u32 = 16;

/// Why a tensor is no latents.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum LatentsError {
    /// Bytes instead of floats.
    #[error("latents are float tensors, got {got}")]
    DType {
        /// What came.
        got: DType,
    },
    /// Neither pictures nor video.
    #[error("latents are [n,c,h,w] or [n,c,f,h,w], got {got}")]
    Rank {
        /// What came.
        got: Shape,
    },
    /// A NaN or an infinity.
    #[error("latents must be finite, got {got} at index {index}")]
    NotFinite {
        /// Flat index of the first one.
        index: u64,
        /// What is there.
        got: f32,
    },
    /// Not the packed layout.
    #[error("packed latents are [n,l,4c], got {got}")]
    NotPacked {
        /// What came.
        got: Shape,
    },
    /// A picture of another size than the tokens make.
    #[error("a {width}x{height} picture has {want} packed tokens, got {got}")]
    Tokens {
        /// Picture height in pixels.
        height: u32,
        /// Picture width in pixels.
        width: u32,
        /// Tokens of such a picture.
        want: u64,
        /// Tokens that came.
        got: u64,
    },
}

/// `[n,c,h,w]` or `[n,c,f,h,w]` floats to f32, refusing NaN and infinity. f32 is returned without copying.
pub fn widen(latents: &Tensor) -> Result<Tensor, LatentsError> {
    if !matches!(latents.shape().rank(), 4 | 5) {
        return Err(LatentsError::Rank { got: latents.shape().clone() });
    }
    let wide = float::cast(latents, DType::F32).map_err(|e| LatentsError::DType { got: e.from })?;
    match float::first_non_finite(wide.data()) {
        Some((index, got)) => Err(LatentsError::NotFinite { index, got }),
        None => Ok(wide),
    }
}

/// Packed `[n, l, 4c]` of a `width` x `height` pixel picture to `[n, c, 2*h2, 2*w2]` with `h2 = height/16`,
/// `w2 = width/16`, so sizes that are no multiple of 16 lose the rest, as in diffusers' `FluxPipeline._unpack_latents`.
///
/// Token `i*w2 + j` holds a 2x2 block: its value `c*4 + dy*2 + dx` goes to row `2i+dy`, column `2j+dx` of channel `c`.
pub fn unpack(packed: &Tensor, height: u32, width: u32) -> Result<Tensor, LatentsError> {
    if !packed.dtype().is_float() {
        return Err(LatentsError::DType { got: packed.dtype() });
    }
    let shape = unpacked_shape(packed.shape(), height, width)?;
    let (h2, w2, depth) = (shape.dims()[2] / 2, shape.dims()[3] / 2, shape.dims()[1] * 4);
    let data = match packed.dtype().size() {
        2 => spread::<2>(packed.data(), h2, w2, depth),
        _ => spread::<4>(packed.data(), h2, w2, depth),
    };
    Ok(Tensor::try_new(packed.dtype(), shape, data).expect("unpacking keeps the number of elements"))
}

/// The shape that [`unpack`] gives, or why it will refuse: known before the bytes are there.
pub fn unpacked_shape(packed: &Shape, height: u32, width: u32) -> Result<Shape, LatentsError> {
    let &[n, tokens, depth] = packed.dims() else {
        return Err(LatentsError::NotPacked { got: packed.clone() });
    };
    if depth % 4 != 0 {
        return Err(LatentsError::NotPacked { got: packed.clone() });
    }
    let (h2, w2) = (height / TOKEN_PIXELS, width / TOKEN_PIXELS);
    let want = u64::from(h2) * u64::from(w2);
    if want != tokens as u64 {
        return Err(LatentsError::Tokens { height, width, want, got: tokens as u64 });
    }
    let dims = [n, depth / 4, 2 * h2 as usize, 2 * w2 as usize];
    Ok(Shape::try_new(&dims).expect("as many elements as the packed tensor"))
}

/// Moves the values of all tokens, `SIZE` bytes each, to their places; the output is written in order.
fn spread<const SIZE: usize>(packed: &Bytes, h2: usize, w2: usize, depth: usize) -> Bytes {
    let mut out = Vec::with_capacity(packed.len());
    for picture in packed.as_chunks::<SIZE>().0.chunks_exact(h2 * w2 * depth) {
        for c in 0..depth / 4 {
            for row in picture.chunks_exact(w2 * depth) {
                for dy in 0..2 {
                    for token in row.chunks_exact(depth) {
                        let at = c * 4 + dy * 2;
                        out.extend_from_slice(token[at..at + 2].as_flattened());
                    }
                }
            }
        }
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tensor(dims: &[usize], values: impl Iterator<Item = f32>) -> Tensor {
        let data: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
        Tensor::try_new(DType::F32, Shape::try_new(dims).unwrap(), data.into()).unwrap()
    }

    /// The inverse of `unpack`, spelled by the formula and not by the loops above.
    fn pack(latents: &Tensor) -> Tensor {
        let &[n, c, h, w] = latents.shape().dims() else { panic!("four dimensions") };
        let z: Vec<f32> = float::values(latents.data()).collect();
        let (h2, w2) = (h / 2, w / 2);
        let mut packed = vec![0f32; z.len()];
        for b in 0..n {
            for ch in 0..c {
                for y in 0..h {
                    for x in 0..w {
                        let token = (y / 2) * w2 + x / 2;
                        let value = ch * 4 + (y % 2) * 2 + x % 2;
                        packed[(b * h2 * w2 + token) * 4 * c + value] = z[((b * c + ch) * h + y) * w + x];
                    }
                }
            }
        }
        tensor(&[n, h2 * w2, 4 * c], packed.into_iter())
    }

    #[test]
    fn a_token_is_a_square_of_two_by_two() {
        // One channel, 2x4 latents: tokens 0..4 left, 4..8 right.
        let packed = tensor(&[1, 2, 4], (0u8..8).map(f32::from));
        let latents = unpack(&packed, 16, 32).unwrap();
        assert_eq!(latents.shape().dims(), [1, 1, 2, 4]);
        assert_eq!(float::values(latents.data()).collect::<Vec<_>>(), [0., 1., 4., 5., 2., 3., 6., 7.]);
    }

    #[test]
    fn a_picture_of_another_size_is_refused_with_both_counts() {
        let packed = tensor(&[1, 240, 64], (0..240 * 64).map(|_| 0.0));
        // 200x328 pixels are 12x20 tokens: the rest below a multiple of 16 is lost.
        assert_eq!(unpack(&packed, 200, 328).unwrap().shape().dims(), [1, 16, 24, 40]);
        let refused = unpack(&packed, 512, 512).unwrap_err();
        assert_eq!(refused.to_string(), "a 512x512 picture has 1024 packed tokens, got 240");
        assert!(matches!(unpack(&packed, 15, 512), Err(LatentsError::Tokens { want: 0, .. })));
        assert!(matches!(unpack(&packed, u32::MAX, u32::MAX), Err(LatentsError::Tokens { .. })));
        let odd = tensor(&[1, 1, 6], (0..6).map(|_| 0.0));
        assert_eq!(unpack(&odd, 16, 16).unwrap_err().to_string(), "packed latents are [n,l,4c], got [1,1,6]");
    }

    #[test]
    fn what_is_no_number_is_named_by_its_place() {
        let mut z = vec![0.25f32; 64];
        z[37] = f32::NAN;
        let refused = widen(&tensor(&[1, 4, 4, 4], z.into_iter())).unwrap_err();
        assert_eq!(refused.to_string(), "latents must be finite, got NaN at index 37");
        // An f16 infinity is one after widening too.
        let half = Tensor::try_new(
            DType::F16,
            Shape::try_new(&[1, 1, 1, 2]).unwrap(),
            Bytes::from_static(&[0x00, 0x3c, 0x00, 0x7c]),
        );
        assert_eq!(widen(&half.unwrap()), Err(LatentsError::NotFinite { index: 1, got: f32::INFINITY }));
    }

    #[test]
    fn f32_latents_are_not_copied() {
        let latents = tensor(&[1, 1, 1, 2, 2], [1.0, 2.0, 3.0, 4.0].into_iter());
        assert_eq!(widen(&latents).unwrap().data().as_ptr(), latents.data().as_ptr());
        let flat = tensor(&[4], [0.0; 4].into_iter());
        assert_eq!(widen(&flat).unwrap_err().to_string(), "latents are [n,c,h,w] or [n,c,f,h,w], got [4]");
    }

    proptest! {
        #[test]
        fn unpacking_undoes_packing(n in 1usize..3, c in 1usize..5, h2 in 1usize..6, w2 in 1usize..6, rest in 0u32..16) {
            let latents = tensor(&[n, c, 2 * h2, 2 * w2], (0..n * c * 4 * h2 * w2).map(|i| i as f32));
            let (height, width) = (h2 as u32 * 16 + rest, w2 as u32 * 16 + rest);
            prop_assert_eq!(&unpack(&pack(&latents), height, width).unwrap(), &latents);
            for dtype in [DType::F16, DType::BF16] {
                let packed = float::cast(&pack(&latents), dtype).unwrap();
                prop_assert_eq!(unpack(&packed, height, width).unwrap(), float::cast(&latents, dtype).unwrap());
            }
        }
    }
}
