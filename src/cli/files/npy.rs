//! `.npy`: one array of NumPy's.

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use npyz::{NpyHeader, Order, TypeStr, WriterBuilder as _};

use crate::tensor::{DType, Shape, Tensor};

/// The array, in C order, of little-endian f32, f16 or u8. Shares the file's bytes: only the header is parsed.
pub(super) fn read(file: &Bytes) -> anyhow::Result<Tensor> {
    let mut rest = &file[..];
    // The parser's own words are a dump of the header, many lines long.
    let header =
        NpyHeader::from_reader(&mut rest).map_err(|_| anyhow!("not a .npy file that NumPy could have written"))?;
    let described = header.dtype().descr();
    let dtype = match described.trim_matches('\'') {
        "<f4" => DType::F32,
        "<f2" => DType::F16,
        "|u1" => DType::U8,
        other => {
            bail!("the array's dtype is {other}; wanted float32, float16 or uint8: save array.astype(\"float32\")")
        }
    };
    if header.order() != Order::C {
        bail!("the array is in Fortran order; wanted C order: save numpy.ascontiguousarray(array)");
    }
    let dims: Vec<usize> = header.shape().iter().map(|&d| usize::try_from(d).unwrap_or(usize::MAX)).collect();
    let shape = Shape::try_new(&dims).context("the array")?;
    Tensor::try_new(dtype, shape, file.slice_ref(rest)).context("the array")
}

/// A file with the tensor. NumPy has no bf16.
pub(super) fn write(tensor: &Tensor) -> anyhow::Result<Bytes> {
    let described = match tensor.dtype() {
        DType::F32 => "<f4",
        DType::F16 => "<f2",
        DType::U8 => "|u1",
        DType::BF16 => bail!("NumPy has no bf16; wanted --dtype f32 or f16, or a .safetensors file"),
    };
    let described: TypeStr = described.parse().context("a dtype of NumPy's")?;
    let shape: Vec<u64> = tensor.shape().dims().iter().map(|&d| d as u64).collect();
    let mut file = npyz::WriteOptions::new_header_only()
        .dtype(npyz::DType::new_scalar(described))
        .shape(&shape)
        .writer(Vec::with_capacity(tensor.data().len() + 128))
        .write_header_only()?;
    file.extend_from_slice(tensor.data());
    Ok(file.into())
}
