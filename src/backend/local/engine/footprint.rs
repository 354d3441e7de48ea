//! How much memory a run takes at its widest point, and in how many steps it goes.
//!
//! On the CPU the network itself tells: it runs with an arena that only counts. Elsewhere the widths of the stages do: a
//! residual block holds three maps at once (its input, the map a convolution reads and the one it writes), so the peak is
//! three maps of the widest stage, counting channels times pixels; attention holds eight maps of the smallest size.

use super::config::Config;
use super::cuda;
use super::host::arena::Arena;
use super::map::Map;
use super::place::Accelerator;
use super::{Autoencoder, Cancelled, Decoder, Encoder, EngineError, Observer, Run, Site, Task};

/// Maps of a residual block.
const MAPS: u64 = 3;
/// Maps of attention: input, queries, keys, values, the two packed, the result, the output.
const ATTENTION_MAPS: u64 = 8;
/// candle's convolution on a device gathers nine taps for every input value, besides the maps.
const DEVICE_MAPS: u64 = 9;
/// Where cuDNN does not add to the block's input in place, the sum is a map of its own.
const CUDA_MAPS: u64 = 1;
/// Results on their way between device and host.
const SCRATCH: u64 = 48 << 20;
/// Picture channels, each in f32 as planes and once more as the tensor that is given or answered.
const ENDS: u64 = 3 * (4 + 4);

/// What a run will take, before it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Foretold {
    /// Memory besides the weights: on the CPU what there will be at the widest point, elsewhere an upper estimate.
    pub bytes: u64,
    /// How often its observer is called; 0 where the half is missing.
    pub steps: u32,
    /// Of the bytes, those of maps and scratch: what is given and answered stands beside them.
    pub(super) inner: u64,
}

/// Counts the steps of a rehearsal, which is over too soon to be stopped.
struct Steps(u32);

impl Observer for Steps {
    fn step_done(&mut self) -> Result<(), Cancelled> {
        self.0 += 1;
        Ok(())
    }
}

/// For `n` pictures of `h` x `w` pixels.
pub(super) fn foretell(model: &Autoencoder, task: Task, [n, h, w]: [usize; 3], in_bands: Option<usize>) -> Foretold {
    let pixels = (h * w) as u64;
    let by_widths = |maps: u64| by_widths(&model.config, &model.site, (task, maps), pixels) * n as u64;
    let (inner, steps) = match &model.site.device {
        // A run that cannot be rehearsed is refused by its memory.
        None => rehearse(model, task, [n, h, w], in_bands).unwrap_or((u64::MAX, 0)),
        Some(Accelerator::Candle(_)) => (by_widths(MAPS + DEVICE_MAPS) + SCRATCH, blocks(model, task)),
        Some(Accelerator::Cuda(_)) => {
            let scores = cuda::SCORES as u64 * (4 + model.site.weight_bytes());
            (by_widths(MAPS + CUDA_MAPS) + scores + cuda::WORKSPACE as u64, blocks(model, task))
        }
    };
    Foretold { bytes: inner.saturating_add(n as u64 * pixels * ENDS), steps, inner }
}

/// Steps of a run on a device.
fn blocks(model: &Autoencoder, task: Task) -> u32 {
    match task {
        Task::Decode => model.decoder.as_ref().map_or(0, Decoder::blocks),
        Task::Encode => model.encoder.as_ref().map_or(0, Encoder::blocks),
    }
}

/// The run itself, without its arithmetic and its buffers.
fn rehearse(
    model: &Autoencoder,
    task: Task,
    [n, h, w]: [usize; 3],
    in_bands: Option<usize>,
) -> Result<(u64, u32), EngineError> {
    let arena = Arena::rehearsal();
    let scale = model.spatial_scale(task);
    let map = |dims| Map::from_planes(&[], dims, &model.site, &arena);
    let mut steps = Steps(0);
    let mut run = Run { observer: &mut steps, in_bands };
    match (task, &model.encoder, &model.decoder) {
        (Task::Encode, Some(encoder), _) => drop(encoder.run(map([n, model.picture_channels(), h, w])?, &mut run)?),
        (Task::Decode, _, Some(decoder)) => {
            drop(decoder.run(map([n, model.latent_channels(), h / scale, w / scale])?, &mut run)?);
        }
        (Task::Encode, None, _) | (Task::Decode, _, None) => {}
    }
    Ok((arena.peak_bytes(rayon::current_num_threads()), steps.0))
}

/// Upper estimate for one picture on a device.
fn by_widths(config: &Config, site: &Site, (task, maps): (Task, u64), pixels: u64) -> u64 {
    let bytes = site.weight_bytes();
    let widest = stages(config, task).into_iter().map(|(channels, shrink)| {
        let pixels = pixels.div_ceil(shrink * shrink);
        channels * pixels * maps * bytes
    });
    let attention = match config {
        Config::AutoencoderKL(c) if c.mid_block_add_attention => {
            let top = c.block_out_channels.last().copied().unwrap_or(0) as u64;
            let shrink = 1u64 << (c.block_out_channels.len() - 1);
            top * pixels.div_ceil(shrink * shrink) * ATTENTION_MAPS * bytes
        }
        _ => 0,
    };
    widest.max().unwrap_or(0).max(attention)
}

/// Widest map of each stage as channels, and by how much its sides are smaller than the picture's.
fn stages(config: &Config, task: Task) -> Vec<(u64, u64)> {
    match config {
        Config::AutoencoderKL(c) => {
            let widths = &c.block_out_channels;
            let at = |i: usize| widths[i.min(widths.len() - 1)] as u64;
            (0..widths.len())
                .map(|i| match task {
                    Task::Decode => (at(i).max(at(i + 1)), 1 << i),
                    Task::Encode => (at(i).max(at(i.saturating_sub(1))), 1 << i),
                })
                .collect()
        }
        Config::AutoencoderTiny(c) => match task {
            Task::Decode => vec![(c.decoder_block_out_channels[0] as u64, 1)],
            Task::Encode => vec![(c.encoder_block_out_channels[0] as u64, 1)],
        },
        // The pools quadruple the width of the input and the map they read.
        Config::Taef2(c) => vec![(c.width as u64, 1), (3 * c.width as u64, 8)],
    }
}
