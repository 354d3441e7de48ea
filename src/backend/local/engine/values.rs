//! Between tensors at rest and f32 numbers.

use bytes::Bytes;
use half::{bf16, f16};

use super::EngineError;
use crate::tensor::{DType, Shape, Tensor};

/// The four dimensions of a tensor, or why it does not fit.
pub(super) fn dims4(tensor: &Tensor, want: &str) -> Result<[usize; 4], EngineError> {
    match *tensor.shape().dims() {
        [n, c, h, w] => Ok([n, c, h, w]),
        _ => Err(misfit(tensor, want)),
    }
}

/// The input does not fit.
pub(super) fn misfit(tensor: &Tensor, want: &str) -> EngineError {
    EngineError::Input { got: tensor.shape().clone(), want: want.to_owned() }
}

/// A float tensor's elements in f32; bytes as they are.
pub(super) fn to_f32(tensor: &Tensor) -> Vec<f32> {
    let data = tensor.data();
    match tensor.dtype() {
        DType::F32 => data.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        DType::F16 => data.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
        DType::BF16 => data.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
        DType::U8 => data.iter().map(|&b| f32::from(b)).collect(),
    }
}

/// A float tensor of these numbers, each rounded once.
pub(super) fn from_f32(values: &[f32], dims: [usize; 4], dtype: DType) -> Result<Tensor, EngineError> {
    let mut data = Vec::with_capacity(values.len() * dtype.size());
    match dtype {
        DType::F32 => values.iter().for_each(|v| data.extend_from_slice(&v.to_le_bytes())),
        DType::F16 => values.iter().for_each(|&v| data.extend_from_slice(&f16::from_f32(v).to_le_bytes())),
        DType::BF16 => values.iter().for_each(|&v| data.extend_from_slice(&bf16::from_f32(v).to_le_bytes())),
        DType::U8 => {
            return Err(EngineError::Unsupported { what: "uint8 results: rendering is not the engine's".into() });
        }
    }
    Ok(Tensor::try_new(dtype, Shape::try_new(&dims)?, Bytes::from(data))?)
}

/// The dimensions `[n, c, h, w]` of pictures `[n, 3, h, w]` or of bytes `[n, h, w, 3]`, which must fit.
pub(super) fn picture_dims(tensor: &Tensor, channels: usize, scale: usize) -> Result<[usize; 4], EngineError> {
    let want = format!("[n,{channels},h,w] in floats or [n,h,w,{channels}] in bytes, h and w multiples of {scale}");
    let [n, a, b, c] = dims4(tensor, &want)?;
    let dims = if tensor.dtype() == DType::U8 { [n, c, a, b] } else { [n, a, b, c] };
    let [_, got, h, w] = dims;
    if got != channels || !h.is_multiple_of(scale) || !w.is_multiple_of(scale) {
        return Err(misfit(tensor, &want));
    }
    Ok(dims)
}

/// Pictures of these dimensions, floats in -1..1 or bytes, as planes in -1..1.
pub(super) fn pictures(tensor: &Tensor, [n, channels, h, w]: [usize; 4]) -> Vec<f32> {
    if tensor.dtype() != DType::U8 {
        return to_f32(tensor);
    }
    let pixels = h * w;
    let mut planes = vec![0.0; n * channels * pixels];
    for (planes, image) in planes.chunks_exact_mut(channels * pixels).zip(tensor.data().chunks_exact(channels * pixels))
    {
        for (p, pixel) in image.chunks_exact(channels).enumerate() {
            for (k, &byte) in pixel.iter().enumerate() {
                planes[k * pixels + p] = f32::from(byte) / 255.0 * 2.0 - 1.0;
            }
        }
    }
    planes
}
