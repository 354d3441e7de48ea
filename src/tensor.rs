//! Tensors at rest: element type, shape and bytes, with sizes checked and no arithmetic.
//!
//! A tensor here is what the wire and the cache hold: row-major, little-endian, contiguous, validated once. Candle's
//! tensors exist only inside a compute call. Nothing in this file allocates by a size that a client declared.

use std::{fmt, ops::Range};

use bytes::Bytes;

/// Most dimensions a shape may have: video latents use five, one more is room for error messages to be exact.
pub const MAX_RANK: usize = 6;

/// Element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE 754 single.
    F32,
    /// IEEE 754 half.
    F16,
    /// Upper half of a single.
    BF16,
    /// Unsigned byte.
    U8,
}

/// Dimensions, outermost first; one to [`MAX_RANK`] of them, each at least 1, product and byte size within `u64`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Shape {
    rank: u8,
    dims: [usize; MAX_RANK],
}

/// A dtype, a shape and exactly the bytes they announce.
#[derive(Clone, PartialEq, Eq)]
pub struct Tensor {
    dtype: DType,
    shape: Shape,
    data: Bytes,
}

/// Why dimensions are no shape, or bytes no tensor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// No dimension, or more than [`MAX_RANK`].
    #[error("a shape has 1 to {MAX_RANK} dimensions, got {0}")]
    Rank(usize),
    /// A dimension of zero or less.
    #[error("dimension {index} must be at least 1, got {got}")]
    Dimension {
        /// Which dimension, from 0.
        index: usize,
        /// What came.
        got: i64,
    },
    /// The product of the dimensions, in bytes, does not fit 63 bits.
    #[error("the product of the dimensions overflows")]
    Overflow,
    /// The byte count is not the announced one.
    #[error("{dtype} {shape} needs {want} bytes, got {got}")]
    Length {
        /// The announced type.
        dtype: DType,
        /// The announced shape.
        shape: Shape,
        /// Bytes announced.
        want: u64,
        /// Bytes found.
        got: u64,
    },
}

// === impl DType ===

impl DType {
    /// Every dtype.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::BF16, Self::U8];

    /// Bytes an element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::U8 => 1,
        }
    }

    /// Whether it is a floating-point type.
    pub const fn is_float(self) -> bool {
        !matches!(self, Self::U8)
    }

    /// The name PyTorch, safetensors' users and the HTTP protocol know: `float32`, `float16`, `bfloat16`, `uint8`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
            Self::U8 => "uint8",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

// === impl Shape ===

impl Shape {
    /// Checks dimensions as they came over a wire.
    pub fn try_from_wire(dims: &[i64]) -> Result<Self, TensorError> {
        if dims.is_empty() || dims.len() > MAX_RANK {
            return Err(TensorError::Rank(dims.len()));
        }
        let mut checked = [1usize; MAX_RANK];
        for (index, (slot, &got)) in checked.iter_mut().zip(dims).enumerate() {
            *slot = usize::try_from(got).ok().filter(|&d| d > 0).ok_or(TensorError::Dimension { index, got })?;
        }
        // Four bytes is the largest element, so every byte size of a valid shape fits an i64 too.
        let elements = checked.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or(TensorError::Overflow)?;
        elements.checked_mul(4).and_then(|n| i64::try_from(n).ok()).ok_or(TensorError::Overflow)?;
        Ok(Self { rank: dims.len() as u8, dims: checked })
    }

    /// Checks dimensions of our own making.
    pub fn try_new(dims: &[usize]) -> Result<Self, TensorError> {
        let wide: Vec<i64> = dims.iter().map(|&d| i64::try_from(d).unwrap_or(i64::MAX)).collect();
        Self::try_from_wire(&wide)
    }

    /// The dimensions, outermost first.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..usize::from(self.rank)]
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        usize::from(self.rank)
    }

    /// Elements in all.
    pub fn elements(&self) -> u64 {
        self.dims().iter().map(|&d| d as u64).product()
    }

    /// Bytes in all, for elements of `dtype`.
    pub fn bytes(&self, dtype: DType) -> u64 {
        self.elements() * dtype.size() as u64
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, d) in self.dims().iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{d}")?;
        }
        f.write_str("]")
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// === impl Tensor ===

impl Tensor {
    /// Takes `data` as a tensor of `dtype` and `shape`, if its length is exactly what they announce.
    pub fn try_new(dtype: DType, shape: Shape, data: Bytes) -> Result<Self, TensorError> {
        let (want, got) = (shape.bytes(dtype), data.len() as u64);
        if want == got { Ok(Self { dtype, shape, data }) } else { Err(TensorError::Length { dtype, shape, want, got }) }
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Dimensions.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The bytes, shared and not copied.
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// The first along the outermost dimension, which stays as a dimension of 1: `[n, ...]` to `[1, ...]`. No copy.
    #[must_use]
    pub fn first(&self) -> Self {
        self.some(0..1)
    }

    /// Those along the outermost dimension that `range` names, which it must have. No copy.
    #[must_use]
    pub fn some(&self, range: Range<usize>) -> Self {
        let mut shape = self.shape.clone();
        shape.dims[0] = 1;
        let each = shape.bytes(self.dtype) as usize;
        shape.dims[0] = range.len();
        let data = self.data.slice(range.start * each..range.end * each);
        Self { dtype: self.dtype, shape, data }
    }

    /// The bytes, by value.
    pub fn into_data(self) -> Bytes {
        self.data
    }
}

impl fmt::Debug for Tensor {
    /// Type and shape only: payloads never reach a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} {})", self.dtype, self.shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_that_are_none_name_what_is_wrong() {
        assert_eq!(Shape::try_from_wire(&[]), Err(TensorError::Rank(0)));
        assert_eq!(Shape::try_from_wire(&[1; 7]), Err(TensorError::Rank(7)));
        assert_eq!(Shape::try_from_wire(&[1, -4, 8]), Err(TensorError::Dimension { index: 1, got: -4 }));
        assert_eq!(Shape::try_from_wire(&[1, 0]), Err(TensorError::Dimension { index: 1, got: 0 }));
        assert_eq!(Shape::try_from_wire(&[i64::MAX, 2]), Err(TensorError::Overflow));
        assert_eq!(Shape::try_from_wire(&[1 << 31, 1 << 31]), Err(TensorError::Overflow));
    }

    #[test]
    fn a_tensor_holds_exactly_the_bytes_its_shape_announces() {
        let shape = Shape::try_from_wire(&[1, 4, 2, 2]).unwrap();
        assert_eq!(shape.bytes(DType::F16), 32);
        let short = Tensor::try_new(DType::F16, shape.clone(), Bytes::from_static(&[0; 31])).unwrap_err();
        assert_eq!(short.to_string(), "float16 [1,4,2,2] needs 32 bytes, got 31");
        let whole = Tensor::try_new(DType::F16, shape, Bytes::from_static(&[7; 32])).unwrap();
        assert_eq!(format!("{whole:?}"), "Tensor(float16 [1,4,2,2])");
    }

    #[test]
    fn the_first_of_a_batch_is_a_slice_of_it() {
        let shape = Shape::try_from_wire(&[3, 2, 1]).unwrap();
        let batch = Tensor::try_new(DType::F16, shape, Bytes::from_static(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]));
        let batch = batch.unwrap();
        let first = batch.first();
        assert_eq!((first.shape().dims(), &first.data()[..]), (&[1, 2, 1][..], &[1, 2, 3, 4][..]));
        assert_eq!(first.data().as_ptr(), batch.data().as_ptr());
    }
}
