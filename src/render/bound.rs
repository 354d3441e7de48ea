//! How large a file can become, known from the size of the picture alone.
//!
//! Memory for an answer is reserved before anything is computed, so these are upper bounds for any pixels, noise
//! included, and not estimates of what a photo needs. Heights and widths are in pixels, results in bytes.

/// Signature, chunk frames, zlib frame, RIFF and JFIF headers with their tables: all well below this.
const HEADERS: u64 = 4096;

/// The largest PNG of `h` x `w` RGB pixels: deflate falls back to stored blocks on what it cannot shrink, which costs
/// 5 bytes for at most 31 KiB; a 16th more leaves the encoder room for poorer fallbacks.
pub fn png_bound(h: u32, w: u32) -> u64 {
    // Each row starts with the number of its filter.
    let raw = u64::from(h).saturating_mul(1 + 3 * u64::from(w));
    raw.saturating_add(raw / 16).saturating_add(HEADERS)
}

/// The largest 4:2:0 JPEG of `h` x `w` pixels at any quality.
///
/// The samples of a block bound its energy, `sum(c^2) <= 64 * 128^2 = 2^20`. Under that sum the standard tables spend
/// most when all 63 AC coefficients need 8 bits, 18 bits each with their code, and 20 for the DC: 145 bytes a block. A
/// 16x16 macroblock has six blocks, its last row and column may be padding. Escaped 0xFF bytes, 1 of 256 in noise, get
/// a 16th.
pub fn jpeg_bound(h: u32, w: u32) -> u64 {
    let macroblocks = u64::from(h.div_ceil(16)).saturating_mul(u64::from(w.div_ceil(16)));
    let bytes = macroblocks.saturating_mul(6 * 145);
    bytes.saturating_add(bytes / 16).saturating_add(HEADERS)
}

/// The largest lossless WebP of `h` x `w` RGB pixels: a literal costs at most 9 bits for green, whose alphabet also has
/// the 24 run lengths, and 8 each for red and blue, since the flat code is always among the candidates.
pub fn webp_bound(h: u32, w: u32) -> u64 {
    let pixels = u64::from(h).saturating_mul(u64::from(w));
    pixels.saturating_mul(3).saturating_add(pixels / 4).saturating_add(HEADERS)
}
