//! The right answers of the origin: the protocol's forms of numbers that are a hash of the request's.
//!
//! The autoencoder is a hash; everything around it (what is asked, in which shape and type, how it is rendered) is
//! written from the protocol's description, and strictly: a request that says something else is a 400.

use bytes::Bytes;
use half::f16;
use latentgate::{
    float, picture, render,
    tensor::{DType, Shape, Tensor},
};

use super::Asked;

/// Frames a latent frame, the first of which stands for one alone.
const TEMPORAL_SCALE: usize = 4;
const SPATIAL_SCALE: usize = 8;

/// An answer before it is written.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    /// The right one.
    pub fn of(asked: &Asked) -> Self {
        let made = if asked.path().starts_with("/encode") { encode(asked) } else { decode(asked) };
        made.unwrap_or_else(|why| Self::error(400, &why, None))
    }

    /// A page that says 200.
    pub fn page() -> Self {
        let body = b"<!DOCTYPE html><html><body>Please sign in.</body></html>".to_vec();
        Self::new(200, "text/html", body)
    }

    /// The protocol's error.
    pub fn error(status: u16, text: &str, header: Option<(&str, String)>) -> Self {
        let body = serde_json::json!({ "error": text }).to_string().into_bytes();
        let mut answer = Self::new(status, "application/json", body);
        if let Some((name, value)) = header {
            answer.set(name, &value);
        }
        answer
    }

    fn new(status: u16, content_type: &str, body: Vec<u8>) -> Self {
        let length = body.len().to_string();
        let headers = vec![("content-type".to_owned(), content_type.to_owned()), ("content-length".to_owned(), length)];
        Self { status, headers, body }
    }

    fn tensor(tensor: &Tensor) -> Self {
        let mut answer = Self::new(200, "tensor/binary", tensor.data().to_vec());
        answer.set("shape", &tensor.shape().to_string());
        answer.set("dtype", tensor.dtype().name());
        answer
    }

    /// Sets a header, in place of the one of that name.
    pub fn set(&mut self, name: &str, value: &str) {
        self.headers.retain(|(known, _)| known != name);
        self.headers.push((name.to_owned(), value.to_owned()));
    }

    /// Cuts or lengthens the body, in a length that fits.
    pub fn resize(&mut self, bytes: usize) {
        self.body.resize(bytes, 0x55);
        self.set("content-length", &bytes.to_string());
    }

    /// Pixels that cannot be inflated in the frame of the PNG's, checksums and all.
    pub fn spoil_pixels(&mut self) {
        let chunk = |name: &[u8; 4], data: &[u8]| {
            let named = [&name[..], data].concat();
            [&(data.len() as u32).to_be_bytes(), &named[..], &crc32fast::hash(&named).to_be_bytes()].concat()
        };
        let head = &self.body[..8 + 12 + 13];
        self.body = [head, &chunk(b"IDAT", b"no pixels at all"), &chunk(b"IEND", b"")].concat();
        self.resize(self.body.len());
    }

    /// Writes the body in chunks instead of saying its length.
    pub fn chunk(&mut self, bytes: usize) {
        self.headers.retain(|(name, _)| name != "content-length");
        self.set("transfer-encoding", "chunked");
        let chunk = |piece: &[u8]| [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat();
        let mut body: Vec<u8> = self.body.chunks(bytes).flat_map(chunk).collect();
        body.extend_from_slice(b"0\r\n\r\n");
        self.body = body;
    }

    /// Status line and headers.
    pub fn head(&self) -> Vec<u8> {
        let lines: Vec<_> = self.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        format!("HTTP/1.1 {} Scripted\r\n{}\r\n", self.status, lines.concat()).into_bytes()
    }
}

/// The decoder: f16 `[n, 3, h, w]`, of a video `[n, 3, frames, h, w]`, of f32 latents and the factors as they are
/// spelled in the query, empty where absent.
pub fn decoded(latents: &Tensor, factor: &str, shift: &str) -> Tensor {
    let side = |latents: usize| latents * SPATIAL_SCALE;
    let dims = match *latents.shape().dims() {
        [n, _, h, w] => vec![n, 3, side(h), side(w)],
        [n, _, f, h, w] => vec![n, 3, (f - 1) * TEMPORAL_SCALE + 1, side(h), side(w)],
        _ => unreachable!("latents have four or five dimensions"),
    };
    hashed(&[latents.data(), factor.as_bytes(), b"/", shift.as_bytes()], &dims)
}

/// The encoder: f16 latents of u8 `[1, h, w, 3]` or f32 `[n, 3, h, w]` pixels in -1..1.
pub fn encoded(pixels: &Tensor, channels: usize, factor: &str, shift: &str) -> Tensor {
    let (signed, [n, h, w]) = match *pixels.shape().dims() {
        [n, h, w, 3] if pixels.dtype() == DType::U8 => (planes(pixels, [n, h, w]), [n, h, w]),
        [n, _, h, w] => (float::values(pixels.data()).collect(), [n, h, w]),
        _ => unreachable!("canonical pixels"),
    };
    // The way over 0..1 and back costs the last digits.
    let rounded: Vec<u8> = signed.iter().flat_map(|x| ((x * 1e4).round() as i32).to_le_bytes()).collect();
    hashed(&[&rounded, factor.as_bytes(), b"/", shift.as_bytes()], &[n, channels, h / SPATIAL_SCALE, w / SPATIAL_SCALE])
}

fn planes(pixels: &Tensor, [n, h, w]: [usize; 3]) -> Vec<f32> {
    let at = |b: usize, c: usize, i: usize| f32::from(pixels.data()[(b * h * w + i) * 3 + c]) / 255.0 * 2.0 - 1.0;
    (0..n).flat_map(|b| (0..3).flat_map(move |c| (0..h * w).map(move |i| at(b, c, i)))).collect()
}

/// f16 numbers a little beyond -1..1, by a hash of what they depend on.
fn hashed(parts: &[&[u8]], dims: &[usize]) -> Tensor {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    let shape = Shape::try_new(dims).unwrap();
    let mut bytes = vec![0u8; shape.elements() as usize];
    hasher.finalize_xof().fill(&mut bytes);
    let value = |byte: u8| f16::from_f32((f32::from(byte) - 127.5) / 110.0);
    let data: Vec<u8> = bytes.into_iter().flat_map(|byte| value(byte).to_le_bytes()).collect();
    Tensor::try_new(DType::F16, shape, data.into()).unwrap()
}

/// `[1, 3, frames, h, w]` to `[frames, 3, h, w]`; pictures as they are.
pub fn frames(y: &Tensor) -> Tensor {
    let &[_, _, frames, h, w] = y.shape().dims() else { return y.clone() };
    let area = h * w * 2;
    let mut data = Vec::with_capacity(y.data().len());
    for frame in 0..frames {
        for channel in 0..3 {
            data.extend_from_slice(&y.data()[(channel * frames + frame) * area..][..area]);
        }
    }
    Tensor::try_new(DType::F16, Shape::try_new(&[frames, 3, h, w]).unwrap(), data.into()).unwrap()
}

fn decode(asked: &Asked) -> Result<Answer, String> {
    if asked.header("content-type") != Some("tensor/binary") {
        return Err("Content type not supported.".to_owned());
    }
    let latents = float::cast(&tensor(asked)?, DType::F32).map_err(|error| error.to_string())?;
    let one = |name: &str| asked.parameter(name).pop().unwrap_or_default();
    let (factor, shift) = (one("scaling_factor"), one("shift_factor"));
    if asked.parameter("do_scaling").len() + asked.parameter("height").len() > 0 {
        return Err("nobody should send that".to_owned());
    }
    let y = decoded(&latents, &factor, &shift);
    let is_video = y.shape().rank() == 5;
    let finished = || render::uint8(&frames(&y)).unwrap();
    match (&*one("output_type"), &*one("partial_postprocess"), asked.header("accept").unwrap_or_default()) {
        ("pt", "False", "tensor/binary") => Ok(Answer::tensor(&y)),
        ("pt", "True", "tensor/binary") => Ok(Answer::tensor(&finished())),
        ("pil", "False", "tensor/binary") => Ok(Answer::tensor(&render::unit(&frames(&y)).unwrap())),
        ("pil", "False", "image/png") if !is_video => {
            let file = render::png(&finished().first()).unwrap();
            Ok(Answer::new(200, "image/png", file.to_vec()))
        }
        ("mp4", "False", "text/plain") if is_video => {
            Ok(Answer::new(200, "text/plain; charset=utf-8", video(&finished())))
        }
        (kind, partial, accept) => Err(format!("{kind} {partial} as {accept} is no combination")),
    }
}

fn encode(asked: &Asked) -> Result<Answer, String> {
    let one = |name: &str| asked.parameter(name).pop().unwrap_or_default();
    let channels = one("channels").parse().map_err(|_| "which encoder?".to_owned())?;
    let is_file = asked.header("content-type").is_none();
    let pixels = if is_file {
        let limits = picture::PictureLimits { max_pixels: 1 << 24, max_side: 1 << 13 };
        picture::read(&Bytes::from(asked.body.clone()), &limits).map_err(|error| error.to_string())?
    } else {
        picture::from_tensor(&tensor(asked)?, picture::Range::Auto).map_err(|error| error.to_string())?
    };
    Ok(Answer::tensor(&encoded(&pixels, channels, &one("scaling_factor"), &one("shift_factor"))))
}

/// The tensor in a request's body, as its query describes it.
fn tensor(asked: &Asked) -> Result<Tensor, String> {
    let dims: Result<Vec<i64>, _> = asked.parameter("shape").iter().map(|dim| dim.parse()).collect();
    let shape = Shape::try_from_wire(&dims.map_err(|_| "Expected `shape`.")?).map_err(|error| error.to_string())?;
    let name = asked.parameter("dtype").pop().ok_or("Expected `dtype`.")?;
    let dtype = DType::ALL.into_iter().find(|dtype| dtype.name() == name).ok_or("Supported `dtype`.")?;
    Tensor::try_new(dtype, shape, asked.body.clone().into()).map_err(|error| error.to_string())
}

/// Boxes around the hash of the frames: nothing plays it, and nothing here has to.
fn video(frames: &Tensor) -> Vec<u8> {
    let digest = blake3::hash(frames.data());
    let boxed = |name: &[u8; 4], body: &[u8]| [&(body.len() as u32 + 8).to_be_bytes(), &name[..], body].concat();
    let media: Vec<u8> = digest.as_bytes().repeat(40);
    [boxed(b"ftyp", b"isom\0\0\x02\0isomiso2"), boxed(b"mdat", &media), boxed(b"moov", digest.as_bytes())].concat()
}
