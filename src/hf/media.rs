//! Media types of the protocol: what `Accept` and `Content-Type` say.

use super::{Representation, TENSOR_BASE64, TENSOR_BINARY};
use crate::error::Error;

/// The form of answer that a client accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accept {
    /// Whatever is natural.
    Any,
    /// A raw tensor.
    Tensor,
    /// A tensor as base64 in JSON.
    TensorBase64,
    /// A JPEG.
    Jpeg,
    /// A PNG.
    Png,
    /// A WebP: ours, the endpoints' clients ask for none.
    Webp,
    /// What the protocol has MP4s come as.
    Text,
    /// An MP4 by its own name.
    Mp4,
}

/// What the bytes of a request's body are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyForm {
    /// The tensor or the picture file itself.
    Raw,
    /// JSON with base64 in it.
    Envelope,
}

// === impl Accept ===

impl Accept {
    const ALL: [Self; 8] =
        [Self::Any, Self::Tensor, Self::TensorBase64, Self::Jpeg, Self::Png, Self::Webp, Self::Text, Self::Mp4];

    /// The media type.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Any => "*/*",
            Self::Tensor => TENSOR_BINARY,
            Self::TensorBase64 => TENSOR_BASE64,
            Self::Jpeg => "image/jpeg",
            Self::Png => "image/png",
            Self::Webp => "image/webp",
            Self::Text => "text/plain",
            Self::Mp4 => "video/mp4",
        }
    }

    /// Reads the header; the first known type of a list counts, parameters are read over but for `q=0`, and its absence is
    /// [`Self::Any`].
    pub fn parse(header: Option<&str>) -> Result<Self, Error> {
        let Some(header) = header.filter(|header| !header.trim().is_empty()) else { return Ok(Self::Any) };
        let known = |part: &str| {
            let mut parts = part.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default();
            let is_refused = parts.any(|parameter| matches!(parameter, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"));
            let named = |accept: &Self| accept.name().eq_ignore_ascii_case(name);
            let any_picture = || name.eq_ignore_ascii_case("image/*").then_some(Self::Any);
            if is_refused { None } else { Self::ALL.into_iter().find(named).or_else(any_picture) }
        };
        header.split(',').find_map(known).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::bad_request("accept", format!("none of the types is known here; known are {names}"))
        })
    }

    /// How the bytes of an answer travel to such a client.
    pub const fn representation(self) -> Representation {
        if matches!(self, Self::TensorBase64) { Representation::Base64 } else { Representation::Raw }
    }
}

// === impl BodyForm ===

impl BodyForm {
    /// Reads `Content-Type`. Encodes come without one from diffusers; parameters of the type are read over.
    pub fn parse(header: Option<&str>) -> Result<Self, Error> {
        let Some(header) = header.filter(|header| !header.trim().is_empty()) else { return Ok(Self::Raw) };
        let name = header.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match name.as_str() {
            TENSOR_BINARY | "application/octet-stream" | "image/png" | "image/jpeg" | "image/webp" => Ok(Self::Raw),
            TENSOR_BASE64 | "application/json" => Ok(Self::Envelope),
            _ => {
                let known = "tensor/binary, tensor/base64, application/json, application/octet-stream, image/png, \
                             image/jpeg and image/webp";
                // A name beyond any of these is not worth repeating whole.
                let name: String = name.chars().take(64).collect();
                Err(Error::bad_request("content-type", format!("{name:?} is not supported; supported are {known}")))
            }
        }
    }
}
