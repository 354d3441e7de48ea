//! How many blocks a kernel runs on, and how a map's channels are divided among threads. Constants are those of `kernels.cu`.

use super::super::EngineError;

/// Threads of every block.
pub(super) const THREADS: usize = 256;
/// Channels that one thread reads at once.
pub(super) const OCTET: usize = 8;
/// Blocks in a row at most; beyond that each goes through several places.
const BLOCKS: usize = 8192;
/// The driver's bound on the other two sides of a grid.
const SIDE: usize = 65535;
/// Blocks that the statistics of one map are divided among where it is large enough: several for each multiprocessor.
const STATISTICS: usize = 1024;
/// Pixels of a chunk that one thread reads: enough to outweigh adding up the threads' sums, and few enough for sums in f32.
const PER_THREAD: (usize, usize) = (4, 64);

/// A pass of statistics: the chunks of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunks {
    pub(super) count: usize,
    /// Pixels of each but the last.
    pub(super) pixels: usize,
}

/// Channels in memory for `c` of a map.
pub(super) fn stored(c: usize) -> usize {
    c.next_multiple_of(OCTET)
}

/// Groups of eight channels of a map of `c`.
pub(super) fn octets(c: usize) -> usize {
    c.div_ceil(OCTET)
}

/// Blocks that share the octets of a pixel.
pub(super) fn slabs(octets: usize) -> usize {
    octets.div_ceil(THREADS)
}

/// A thread for every pixel of each of `n` images.
pub(super) fn of_pixels(pixels: usize, n: usize) -> Result<[u32; 3], EngineError> {
    grid(pixels.div_ceil(THREADS), [n, 1])
}

/// A thread for every octet of each of `n` images.
pub(super) fn of_octets(pixels: usize, octets: usize, n: usize) -> Result<[u32; 3], EngineError> {
    grid(pixels.div_ceil(rows(octets)), [n, slabs(octets)])
}

/// A thread for every octet of a row, for each row of height `h` of `n` images.
pub(super) fn of_rows([n, h, w]: [usize; 3], octets: usize) -> Result<[u32; 3], EngineError> {
    grid(w.div_ceil(rows(octets)), [h, n * slabs(octets)])
}

/// A block for every row of scores.
pub(super) fn of_lines(lines: usize) -> [u32; 3] {
    [lines as u32, 1, 1]
}

/// A block for every group of each of `n` images.
pub(super) fn of_groups(groups: usize, n: usize) -> Result<[u32; 3], EngineError> {
    grid(groups, [n, 1])
}

/// Chunks of an image for statistics, and the grid of one block for each.
pub(super) fn of_chunks(pixels: usize, octets: usize, n: usize) -> Result<(Chunks, [u32; 3]), EngineError> {
    let rows = rows(octets);
    let each = pixels.div_ceil(rows * STATISTICS).clamp(PER_THREAD.0, PER_THREAD.1);
    let chunks = Chunks { count: pixels.div_ceil(rows * each), pixels: rows * each };
    // A block is one chunk, so their number is not bounded as that of other blocks is.
    let [_, y, z] = grid(1, [n, 1])?;
    Ok((chunks, [int(chunks.count, "chunks of a map")?, y, z]))
}

/// Pixels that a block works on at a time.
fn rows(octets: usize) -> usize {
    THREADS / octets.min(THREADS)
}

fn grid(blocks: usize, [y, z]: [usize; 2]) -> Result<[u32; 3], EngineError> {
    if y > SIDE || z > SIDE {
        return Err(EngineError::Unsupported { what: format!("{} rows or images at once", y.max(z)) });
    }
    Ok([blocks.clamp(1, BLOCKS) as u32, y as u32, z as u32])
}

fn int(value: usize, what: &str) -> Result<u32, EngineError> {
    u32::try_from(value)
        .ok()
        .filter(|&v| i32::try_from(v).is_ok())
        .ok_or_else(|| EngineError::Unsupported { what: format!("{value} {what}") })
}
