//! How much memory a run takes at its widest point, from the widths alone.
//!
//! A residual block holds three maps at once (its input, the map a convolution reads and the one it writes), so the peak
//! is three maps of the widest stage, counting channels times pixels; attention holds eight maps of the smallest size.

use super::config::Config;
use super::{Site, Task};

/// Maps of a residual block.
const MAPS: u64 = 3;
/// Maps of attention: input, queries, keys, values, the two packed, the result, the output.
const ATTENTION_MAPS: u64 = 8;
/// candle's convolution on a device gathers nine taps for every input value, besides the maps.
const DEVICE_MAPS: u64 = 9;
/// Scratch of the CPU kernels in each thread, and the transformed weights of a convolution beside them.
const THREAD_SCRATCH: u64 = 16 << 20;
const SHARED_SCRATCH: u64 = 48 << 20;

/// Upper estimate in bytes for `n` pictures of `pixels` pixels each.
pub(super) fn working_set(config: &Config, site: &Site, task: Task, n: u64, pixels: u64) -> u64 {
    let (bytes, maps, scratch) = match &site.device {
        None => (4, MAPS, SHARED_SCRATCH + rayon::current_num_threads() as u64 * THREAD_SCRATCH),
        Some(_) => (site.weight_bytes(), MAPS + DEVICE_MAPS, SHARED_SCRATCH),
    };
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
    // The picture itself as planes in f32, as given or answered, and once more on its way.
    let ends = pixels * 3 * 4 * 3;
    n * (widest.max().unwrap_or(0).max(attention) + ends) + scratch
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
