//! Several inputs of one height and width in one run of the network.
//!
//! A small picture may leave a device idle where several would not (the CPU it does not: docs/BENCHMARKS.md). What differs from
//! input to input, scaling, dtype and noise, is applied to each by itself before and after, so on the CPU an answer has the
//! bits that it has alone, whatever else is in the run.

use super::cuda::{CudaMap, Range};
use super::map::Map;
use super::place::Accelerator;
use super::{Autoencoder, EncodeMode, EngineError, Observer, Scaling, Task, values};
use crate::tensor::{DType, Tensor};

/// Something to decode.
#[derive(Clone, Copy)]
pub struct Latents<'a> {
    /// `[n, c, h, w]` of any float type.
    pub latents: &'a Tensor,
    /// Undone before the network.
    pub scaling: Scaling,
    /// Of the answer; a float type, or bytes where [`Autoencoder::decoded_dtype`] asks for them.
    pub dtype: DType,
}

/// Something to encode.
#[derive(Clone, Copy)]
pub struct Pictures<'a> {
    /// `[n, 3, h, w]` floats in -1..1 or `[n, h, w, 3]` bytes.
    pub pictures: &'a Tensor,
    /// Which of the latents are answered.
    pub mode: EncodeMode,
    /// Applied after the network.
    pub scaling: Scaling,
    /// Of the answer; a float type.
    pub dtype: DType,
}

/// Several inputs, one after the other.
#[derive(Default)]
pub(super) struct Joined {
    /// `[n, c, h, w]` of all together.
    pub(super) dims: [usize; 4],
    /// How many of `n` are each input's.
    pub(super) counts: Vec<usize>,
}

// === impl Autoencoder ===

impl Autoencoder {
    /// Latents `[n, c, h, w]` of any float type to pictures `[n, 3, s h, s w]`, nominally in -1..1 and not clamped, in
    /// `dtype`.
    pub fn decode(
        &self,
        latents: &Tensor,
        scaling: Scaling,
        dtype: DType,
        observer: &mut dyn Observer,
    ) -> Result<Tensor, EngineError> {
        let one = self.decode_all(&[Latents { latents, scaling, dtype }], observer)?;
        Ok(one.into_iter().next().expect("an answer for each input"))
    }

    /// Pictures, `[n, 3, h, w]` floats in -1..1 or `[n, h, w, 3]` bytes, to scaled latents `[n, c, h / s, w / s]` in
    /// `dtype`.
    pub fn encode(
        &self,
        pictures: &Tensor,
        (mode, scaling): (EncodeMode, Scaling),
        dtype: DType,
        observer: &mut dyn Observer,
    ) -> Result<Tensor, EngineError> {
        let one = self.encode_all(&[Pictures { pictures, mode, scaling, dtype }], observer)?;
        Ok(one.into_iter().next().expect("an answer for each input"))
    }

    /// Whether one run of `n` pictures of `height` x `width` pixels stays within the memory it may take, without bands:
    /// those are another way to the same numbers, but for their last bits.
    pub fn runs_whole(&self, task: Task, n: usize, height: usize, width: usize) -> bool {
        let plan = self.plan(task, [n, height, width]);
        plan.in_bands.is_none() && plan.foretold.bytes <= self.memory
    }

    /// All pictures together, which must fit the model and each other.
    pub(super) fn joined(&self, inputs: &[Pictures<'_>]) -> Result<Joined, EngineError> {
        let mut joined = Joined::default();
        for &Pictures { pictures, .. } in inputs {
            let scale = self.spatial_scale(Task::Encode);
            joined.add(pictures, values::picture_dims(pictures, self.picture_channels(), scale)?)?;
        }
        Ok(joined)
    }

    /// What an encoder reads.
    pub(super) fn pictures(&self, inputs: &[Pictures<'_>], joined: &Joined) -> Result<Map, EngineError> {
        let [_, c, h, w] = joined.dims;
        if let (Some(Accelerator::Cuda(machine)), [Pictures { pictures, .. }]) = (&self.site.device, inputs)
            && pictures.dtype() == DType::U8
        {
            let form = (self.site.precision, self.range());
            return Ok(Map::Cuda(CudaMap::from_bytes(machine, pictures.data(), joined.dims, form)?));
        }
        let mut planes = Vec::new();
        for (&Pictures { pictures, .. }, &n) in inputs.iter().zip(&joined.counts) {
            let mut pixels = values::pictures(pictures, [n, c, h, w]);
            if self.is_tiny() {
                for x in &mut pixels {
                    *x = f32::midpoint(*x, 1.0);
                }
            }
            append(&mut planes, pixels);
        }
        Map::from_planes(&planes, joined.dims, &self.site, &self.arena)
    }
}

// === impl Joined ===

impl Joined {
    /// Adds an input of `dims`, which must be those of the others but for their number.
    pub(super) fn add(&mut self, input: &Tensor, dims: [usize; 4]) -> Result<(), EngineError> {
        if self.counts.is_empty() {
            self.dims[1..].copy_from_slice(&dims[1..]);
        }
        let [_, c, h, w] = self.dims;
        if dims[1..] != [c, h, w] {
            return Err(values::misfit(input, &format!("planes of [n,{c},{h},{w}] like the others of the run")));
        }
        self.dims[0] += dims[0];
        self.counts.push(dims[0]);
        Ok(())
    }
}

/// Puts planes behind others; those of the first input are not copied.
pub(super) fn append(planes: &mut Vec<f32>, more: Vec<f32>) {
    if planes.is_empty() {
        *planes = more;
    } else {
        planes.extend_from_slice(&more);
    }
}

/// The pictures of each input, `counts` each, from a GPU's map. What is answered in one type comes over in one piece.
pub(super) fn pictures_of(
    map: &CudaMap,
    range: Range,
    inputs: &[Latents<'_>],
    counts: &[usize],
) -> Result<Vec<Tensor>, EngineError> {
    let mut made: Vec<(DType, Tensor)> = Vec::new();
    let mut first = 0;
    let each = inputs.iter().zip(counts).map(|(input, &count)| {
        let known = made.iter().find(|(dtype, _)| *dtype == input.dtype);
        let all = if let Some((_, all)) = known {
            all.clone()
        } else {
            let all = map.to_pictures(range, input.dtype)?;
            made.push((input.dtype, all.clone()));
            all
        };
        let part = all.some(first..first + count);
        first += count;
        Ok(part)
    });
    each.collect()
}

/// The planes `[n, c, h, w]` of each input, `counts` of `n` each.
pub(super) fn parts<'a>(
    planes: &'a mut [f32],
    n: usize,
    counts: &'a [usize],
) -> impl Iterator<Item = &'a mut [f32]> + use<'a> {
    let each = planes.len() / n.max(1);
    let mut rest = planes;
    counts.iter().map(move |count| {
        let (part, after) = std::mem::take(&mut rest).split_at_mut(count * each);
        rest = after;
        part
    })
}
