//! Is a reply what was asked for? Judged from its head, and piece by piece as the body comes.
//!
//! Whatever is published can be read by a waiter at once, and a whole body is cached for good; so nothing is published
//! before the head fits the prediction and the first bytes are of the right kind, and a body that turns out wrong later
//! fails, and is never whole. Judged are labels, lengths, the frames of files, and whether every number is one: NaN and
//! infinity are no answer here, as they are none of the local engine. Whether a picture's pixels can be decoded takes
//! longer than the rest together, and is judged of the whole file before it is kept ([`Pixels`]).

use bytes::Bytes;

use crate::{
    hf,
    picture::PictureError,
    tensor::{DType, Shape},
};

mod finite;
mod inflate;
mod mp4;
mod png;

use finite::FiniteCheck;
use mp4::Mp4Check;
pub(super) use png::Pixels;
use png::PngCheck;

/// What the body of a reply must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// A tensor of that shape, of u8 or of any float type.
    Tensor {
        /// Exactly.
        shape: Shape,
        /// Whether its elements are bytes.
        is_bytes: bool,
    },
    /// An 8-bit RGB PNG.
    Png {
        /// In pixels.
        width: u32,
        /// In pixels.
        height: u32,
        /// Bytes, at most.
        most: u64,
    },
    /// An MP4.
    Mp4 {
        /// Bytes, at most.
        most: u64,
    },
}

/// A reply whose head fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Judged {
    /// Of the tensor; u8 for files.
    pub(super) dtype: DType,
    /// Bytes of the body; none where the head does not say and nothing else tells.
    pub(super) length: Option<u64>,
    /// Bytes of the body, at most.
    pub(super) most: u64,
}

/// How a reply is not what was asked for.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(super) enum WrongReply {
    #[error("its status is {0} instead of 200")]
    Status(u16),
    #[error("it has no readable `{0}` header")]
    Header(&'static str),
    #[error("it is {got} instead of {want}")]
    Labels { got: String, want: String },
    #[error("it announces {got} bytes instead of {want}")]
    Announced { want: u64, got: u64 },
    #[error("it announces {got} bytes, {most} are the most there can be")]
    TooMuch { most: u64, got: u64 },
    #[error("it is compressed ({0}), which was not asked for")]
    Compressed(String),
    #[error("it ends after {got} of {want} bytes")]
    Short { want: u64, got: u64 },
    #[error("it goes on after {0} bytes")]
    Long(u64),
    #[error("it holds NaN or infinity")]
    NonFinite,
    #[error("it is no PNG: {0}")]
    Png(&'static str),
    #[error("its picture is {got_width}x{got_height} instead of {width}x{height}")]
    Size { width: u32, height: u32, got_width: u32, got_height: u32 },
    #[error("it is no MP4: {0}")]
    Mp4(&'static str),
    #[error("its picture cannot be decoded")]
    Undecodable(#[source] Box<PictureError>),
}

/// Judges a body as it comes.
pub(super) struct Checker {
    length: Option<u64>,
    most: u64,
    seen: u64,
    frames: Frames,
}

enum Frames {
    Bytes,
    Floats(FiniteCheck),
    Png(PngCheck),
    Mp4(Mp4Check),
}

impl Form {
    /// Judges a reply's head by the labels and the length that it announces.
    pub(super) fn judge(&self, headers: &http::HeaderMap, announced: Option<u64>) -> Result<Judged, WrongReply> {
        if let Some(coding) = headers.get(http::header::CONTENT_ENCODING).filter(|coding| *coding != "identity") {
            return Err(WrongReply::Compressed(word(coding.as_bytes())));
        }
        match self {
            Self::Tensor { shape, is_bytes } => {
                let head = tensor_head(headers)?;
                if head.shape != *shape || head.dtype.is_float() == *is_bytes {
                    let want = if *is_bytes { "uint8" } else { "floats" };
                    let (got, want) = (format!("{} {}", head.dtype, head.shape), format!("{want} {shape}"));
                    return Err(WrongReply::Labels { got, want });
                }
                let want = shape.bytes(head.dtype);
                match announced {
                    Some(got) if got != want => Err(WrongReply::Announced { want, got }),
                    _ => Ok(Judged { dtype: head.dtype, length: Some(want), most: want }),
                }
            }
            Self::Png { most, .. } | Self::Mp4 { most } => match announced {
                Some(got) if got > *most => Err(WrongReply::TooMuch { most: *most, got }),
                length => Ok(Judged { dtype: DType::U8, length, most: *most }),
            },
        }
    }
}

fn tensor_head(headers: &http::HeaderMap) -> Result<hf::ReplyHead, WrongReply> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).ok_or(WrongReply::Header(name));
    let (shape, dtype) = (text(hf::SHAPE_HEADER)?, text(hf::DTYPE_HEADER)?);
    hf::ReplyHead::parse(shape, dtype).map_err(|_| WrongReply::Header("shape` or `dtype"))
}

/// A word of a header, fit for a message.
fn word(bytes: &[u8]) -> String {
    let fits = |b: &u8| b.is_ascii_alphanumeric() || b"-, ".contains(b);
    bytes.iter().copied().filter(fits).map(char::from).take(40).collect()
}

impl Checker {
    /// For the body of a reply.
    pub(super) fn new(form: &Form, judged: &Judged) -> Self {
        let frames = match *form {
            Form::Tensor { .. } => FiniteCheck::new(judged.dtype).map_or(Frames::Bytes, Frames::Floats),
            Form::Png { width, height, .. } => Frames::Png(PngCheck::new(width, height)),
            Form::Mp4 { .. } => Frames::Mp4(Mp4Check::new()),
        };
        Self { length: judged.length, most: judged.most, seen: 0, frames }
    }

    /// Judges the next piece.
    pub(super) fn feed(&mut self, piece: &Bytes) -> Result<(), WrongReply> {
        self.seen += piece.len() as u64;
        if self.seen > self.most {
            return Err(WrongReply::Long(self.most));
        }
        match &mut self.frames {
            Frames::Bytes => Ok(()),
            Frames::Floats(check) => check.feed(piece),
            Frames::Png(check) => check.feed(piece),
            Frames::Mp4(check) => check.feed(piece).map_err(WrongReply::Mp4),
        }
    }

    /// Whether what came so far can be nothing else.
    pub(super) fn is_convinced(&self) -> bool {
        match &self.frames {
            Frames::Bytes | Frames::Floats(_) => true,
            Frames::Png(check) => check.has_header(),
            Frames::Mp4(check) => check.has_header(),
        }
    }

    /// Bytes that came.
    pub(super) const fn seen(&self) -> u64 {
        self.seen
    }

    /// Judges the end.
    pub(super) fn end(&self) -> Result<(), WrongReply> {
        if let Some(want) = self.length.filter(|want| *want != self.seen) {
            return Err(WrongReply::Short { want, got: self.seen });
        }
        match &self.frames {
            Frames::Bytes | Frames::Floats(_) => Ok(()),
            Frames::Png(check) => check.end(),
            Frames::Mp4(check) => check.end().map_err(WrongReply::Mp4),
        }
    }
}

/// Gathers a few bytes from pieces of any length.
#[derive(Default)]
struct Gather {
    bytes: Vec<u8>,
}

impl Gather {
    /// Takes bytes off `piece` until there are `want`; gives them when there are.
    fn take(&mut self, piece: &mut &[u8], want: usize) -> Option<Vec<u8>> {
        let (taken, rest) = piece.split_at((want - self.bytes.len()).min(piece.len()));
        self.bytes.extend_from_slice(taken);
        *piece = rest;
        (self.bytes.len() == want).then(|| std::mem::take(&mut self.bytes))
    }
}

#[cfg(test)]
mod tests;
