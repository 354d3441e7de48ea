//! Formats and sizes from files' first bytes, without a decoder and without allocating.
//!
//! Decoders read more than a size before they tell it, and some allocate by what inner headers say. These readers touch
//! only the frame of each format, and refuse what would let a small file cost much: WebP frames that are larger than
//! their canvas, JPEGs with hundreds of scans.

use super::{Format, PictureError};

const PNG_MAGIC: &[u8] = b"\x89PNG\r\n\x1a\n";

/// Scans of one JPEG. Progressive files have about ten; each costs a pass over the whole picture.
const MAX_SCANS: usize = 100;

/// The flag of an extended WebP header that says animation.
const WEBP_ANIMATED: u8 = 0b10;

/// Width and height of a PNG, JPEG or WebP, from its header alone.
pub fn dimensions(file: &[u8]) -> Result<(u32, u32), PictureError> {
    let (width, height) = match format(file)? {
        Format::Png => png(file)?,
        Format::Jpeg => jpeg(file)?,
        Format::WebP => webp(file)?,
    };
    if width == 0 || height == 0 {
        return Err(PictureError::TooSmall { width: width.into(), height: height.into() });
    }
    Ok((width, height))
}

/// The format, by magic bytes: names and media types that clients claim are not asked.
pub(super) fn format(file: &[u8]) -> Result<Format, PictureError> {
    match file {
        [0xff, 0xd8, 0xff, ..] => Ok(Format::Jpeg),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Ok(Format::WebP),
        _ if file.starts_with(PNG_MAGIC) => Ok(Format::Png),
        _ => Err(PictureError::Format),
    }
}

fn png(file: &[u8]) -> Result<(u32, u32), PictureError> {
    let ihdr = file.get(8..24).ok_or_else(|| truncated(Format::Png, file))?;
    if &ihdr[..8] != b"\0\0\0\x0dIHDR" {
        return Err(broken(Format::Png, "the first chunk is not IHDR"));
    }
    let side = |at: usize| u32::from_be_bytes([ihdr[at], ihdr[at + 1], ihdr[at + 2], ihdr[at + 3]]);
    Ok((side(8), side(12)))
}

// ## JPEG: segments of marker and length; entropy-coded data after each start of scan, in which 0xFF is escaped.

/// A JPEG marker and the bytes of its segment.
struct Segments<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Segments<'a> {
    /// `None` inside: cut short.
    type Item = Option<(u8, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        // Between segments there is nothing, after a scan there is entropy-coded data: both end at the next real
        // marker.
        let rest = self.file.get(self.at..)?;
        let marker = rest.windows(2).position(|w| w[0] == 0xff && !matches!(w[1], 0x00 | 0x01 | 0xd0..=0xd7 | 0xff));
        let Some(start) = marker.map(|found| self.at + found) else {
            self.at = self.file.len() + 1;
            return Some(None);
        };
        let code = self.file[start + 1];
        if code == 0xd9 {
            self.at = self.file.len() + 1;
            return Some(Some((code, &[])));
        }
        let length = self.file.get(start + 2..start + 4).map(|l| usize::from(u16::from_be_bytes([l[0], l[1]])));
        let body = length.and_then(|l| self.file.get(start + 4..start + 2 + l));
        self.at = start + 2 + length.unwrap_or(0).max(2);
        Some(body.map(|body| (code, body)))
    }
}

fn segments(file: &[u8]) -> Segments<'_> {
    Segments { file, at: 2 }
}

/// Whether the marker starts a frame: the place of a JPEG's size.
fn is_frame(code: u8) -> bool {
    matches!(code, 0xc0..=0xcf) && !matches!(code, 0xc4 | 0xc8 | 0xcc)
}

fn jpeg(file: &[u8]) -> Result<(u32, u32), PictureError> {
    for segment in segments(file) {
        match segment.ok_or_else(|| truncated(Format::Jpeg, file))? {
            (code, &[_, h0, h1, w0, w1, ..]) if is_frame(code) => {
                return Ok((u16::from_be_bytes([w0, w1]).into(), u16::from_be_bytes([h0, h1]).into()));
            }
            (0xda | 0xd9, _) => break,
            _ => {}
        }
    }
    Err(broken(Format::Jpeg, "no frame header before the first scan"))
}

/// Walks a whole JPEG: decoders fill what is missing with grey, and pay for every scan.
pub(super) fn check_jpeg(file: &[u8]) -> Result<(), PictureError> {
    let (mut frames, mut scans) = (0, 0);
    for segment in segments(file) {
        match segment.ok_or_else(|| truncated(Format::Jpeg, file))?.0 {
            0xd9 if scans > 0 => return Ok(()),
            0xda => scans += 1,
            code if is_frame(code) => frames += 1,
            _ => {}
        }
        if frames > 1 {
            return Err(broken(Format::Jpeg, "more than one frame"));
        }
        if scans > MAX_SCANS {
            return Err(broken(Format::Jpeg, "more than 100 scans"));
        }
    }
    Err(truncated(Format::Jpeg, file))
}

// ## WebP: RIFF chunks; either one frame, or an extended header with a canvas and the frame somewhere behind it.

/// The first chunk of a run of them.
struct Chunk<'a> {
    kind: &'a [u8],
    body: &'a [u8],
    /// What follows it.
    rest: &'a [u8],
}

fn webp(file: &[u8]) -> Result<(u32, u32), PictureError> {
    let cut_short = || truncated(Format::WebP, file);
    let mut chunk = webp_chunk(&file[12..]).ok_or_else(cut_short)?;
    if chunk.kind != b"VP8X" {
        return webp_frame(&chunk).ok_or_else(cut_short);
    }
    let &[flags, _, _, _, w0, w1, w2, h0, h1, h2, ..] = chunk.body else {
        return Err(cut_short());
    };
    if flags & WEBP_ANIMATED != 0 {
        return Err(PictureError::Unsupported { what: "an animated WebP" });
    }
    let canvas = (u32::from_le_bytes([w0, w1, w2, 0]) + 1, u32::from_le_bytes([h0, h1, h2, 0]) + 1);
    // Decoders allocate by the frame's own size, so that must be found too. Every step consumes bytes of the file.
    while !matches!(chunk.kind, b"VP8 " | b"VP8L") {
        chunk = webp_chunk(chunk.rest).ok_or_else(cut_short)?;
    }
    if webp_frame(&chunk).ok_or_else(cut_short)? == canvas {
        Ok(canvas)
    } else {
        Err(broken(Format::WebP, "the frame is not of the canvas's size"))
    }
}

/// Whether all that the RIFF header announces is there: a lossy decoder makes up what is missing.
pub(super) fn check_webp(file: &[u8]) -> Result<(), PictureError> {
    match file.get(4..8) {
        Some(&[a, b, c, d]) if u64::from(u32::from_le_bytes([a, b, c, d])) + 8 <= file.len() as u64 => Ok(()),
        _ => Err(truncated(Format::WebP, file)),
    }
}

/// The chunk at the start of `at`; none if not even its name and length are there.
fn webp_chunk(at: &[u8]) -> Option<Chunk<'_>> {
    let (kind, rest) = at.split_at_checked(4)?;
    let (length, rest) = rest.split_first_chunk()?;
    let length = u32::from_le_bytes(*length) as usize;
    // A size is told from as much of the body as there is. Chunks are padded to even lengths.
    let body = rest.get(..length).unwrap_or(rest);
    Some(Chunk { kind, body, rest: rest.get(length + length % 2..).unwrap_or_default() })
}

/// Size of a lossy or lossless frame; none if it is too short to say, or neither.
fn webp_frame(frame: &Chunk<'_>) -> Option<(u32, u32)> {
    match (frame.kind, frame.body) {
        (b"VP8 ", &[_, _, _, 0x9d, 0x01, 0x2a, w0, w1, h0, h1, ..]) => {
            // The upper two bits ask for scaling, which decoders leave to the viewer.
            let side = |low, high| u32::from(u16::from_le_bytes([low, high]) & 0x3fff);
            Some((side(w0, w1), side(h0, h1)))
        }
        (b"VP8L", &[0x2f, b0, b1, b2, b3, ..]) => {
            let bits = u32::from_le_bytes([b0, b1, b2, b3]);
            Some(((bits & 0x3fff) + 1, (bits >> 14 & 0x3fff) + 1))
        }
        _ => None,
    }
}

fn truncated(format: Format, file: &[u8]) -> PictureError {
    PictureError::Truncated { format, got: file.len() as u64 }
}

fn broken(format: Format, reason: &str) -> PictureError {
    PictureError::Broken { format, reason: reason.to_owned() }
}
