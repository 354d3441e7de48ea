//! `.safetensors`: named tensors behind a JSON header.

use ::safetensors::{Dtype, SafeTensors, tensor::TensorView};
use anyhow::{Context as _, bail};
use bytes::Bytes;

use crate::tensor::{DType, Shape, Tensor};

/// What pipelines call what they save, most telling first.
const USUAL_NAMES: [&str; 4] = ["latents", "latent", "samples", "pixels"];

/// The tensor called `name`; without a name the only one, or else one with a usual name. Shares the file's bytes.
pub(super) fn read(file: &Bytes, name: Option<&str>) -> anyhow::Result<Tensor> {
    let tensors = SafeTensors::deserialize(file).context("not a .safetensors file")?;
    let mut names = tensors.names();
    names.sort_unstable();
    let chosen = match (name, &names[..]) {
        (Some(name), names) if names.contains(&name) => name,
        (Some(name), names) => bail!("there is no tensor {name:?}; there are {}", list(names)),
        (None, []) => bail!("there is no tensor in it"),
        (None, [only]) => only,
        (None, names) => match USUAL_NAMES.iter().find(|usual| names.contains(usual)) {
            Some(usual) => usual,
            None => bail!("which tensor? --tensor NAME chooses; there are {}", list(names)),
        },
    };
    let view = tensors.tensor(chosen).context("not a .safetensors file")?;
    let dtype = match view.dtype() {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::U8 => DType::U8,
        other => bail!("tensor {chosen:?} is {other:?}; wanted F32, F16, BF16 or U8, so cast it before saving"),
    };
    let shape = Shape::try_new(view.shape()).with_context(|| format!("tensor {chosen:?}"))?;
    Tensor::try_new(dtype, shape, file.slice_ref(view.data())).with_context(|| format!("tensor {chosen:?}"))
}

/// A file with one tensor. Equal tensors make equal files.
pub(super) fn write(name: &str, tensor: &Tensor) -> anyhow::Result<Bytes> {
    let dtype = match tensor.dtype() {
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::U8 => Dtype::U8,
    };
    let view = TensorView::new(dtype, tensor.shape().dims().to_vec(), tensor.data())?;
    Ok(::safetensors::serialize([(name, view)], None)?.into())
}

/// Names for a message: enough to recognise a file by.
fn list(names: &[&str]) -> String {
    const SHOWN: usize = 8;
    let more = names.len().saturating_sub(SHOWN);
    let shown = names.iter().take(SHOWN).map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}
