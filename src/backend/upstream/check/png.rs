//! A PNG: signature, header, every chunk's checksum, the end; and, apart, whether its pixels can be decoded.
//!
//! The checksums cover every byte between the signature and the end, so a file that passes is the one that the endpoint
//! wrote: that is judged as it comes. Inflating its pixels (`inflate.rs`) costs ten times that, and is done afterwards.

use bytes::Bytes;
use crc32fast::Hasher;

use super::{Form, Gather, WrongReply, inflate::Inflate};

const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

/// Bytes of IHDR: sides, depth, colour, compression, filter, interlace.
const HEADER_BYTES: u32 = 13;

/// After the sides: 8 bits, RGB, deflate, adaptive filters, not interlaced.
const RGB8: [u8; 5] = [8, 2, 0, 0, 0];

/// The longest chunk there may be.
const MAX_CHUNK: u32 = i32::MAX as u32;

/// Judges a PNG as it comes.
pub(super) struct PngCheck {
    width: u32,
    height: u32,
    at: At,
    gather: Gather,
    crc: Hasher,
    has_pixels: bool,
    /// None where they are judged later, or by whoever decodes them.
    pixels: Option<Inflate>,
}

/// Judges whether the pixels of a whole PNG can be decoded. Work for a blocking thread.
pub(in super::super) struct Pixels(PngCheck);

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Signature,
    /// Length and name of the first chunk, which is the header.
    FirstChunk,
    Header,
    /// Length and name of a chunk.
    Chunk,
    Data {
        left: u32,
        kind: Kind,
    },
    Checksum {
        kind: Kind,
    },
    Nothing,
}

/// What a chunk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Pixels,
    Last,
    Other,
}

impl PngCheck {
    pub(super) fn new(width: u32, height: u32) -> Self {
        let (at, gather, crc) = (At::Signature, Gather::default(), Hasher::new());
        Self { width, height, at, gather, crc, has_pixels: false, pixels: None }
    }

    pub(super) fn feed(&mut self, mut piece: &[u8]) -> Result<(), WrongReply> {
        // A chunk without data is over before its first byte.
        while !piece.is_empty() || matches!(self.at, At::Data { left: 0, .. }) {
            match self.at {
                At::Signature => self.signature(&mut piece)?,
                At::FirstChunk | At::Chunk => self.chunk(&mut piece)?,
                At::Header => self.header(&mut piece)?,
                At::Data { left, kind } => self.data(&mut piece, left, kind)?,
                At::Checksum { kind } => self.checksum(&mut piece, kind)?,
                At::Nothing => return Err(WrongReply::Png("it goes on after its end")),
            }
        }
        Ok(())
    }

    /// Whether signature and header have been found right.
    pub(super) fn has_header(&self) -> bool {
        !matches!(self.at, At::Signature | At::FirstChunk | At::Header)
    }

    pub(super) fn end(&self) -> Result<(), WrongReply> {
        match self.at {
            At::Nothing if !self.has_pixels => Err(WrongReply::Png("it has no pixels")),
            At::Nothing => self.pixels.as_ref().map_or(Ok(()), Inflate::end).map_err(WrongReply::Png),
            _ => Err(WrongReply::Png("it is cut short")),
        }
    }

    fn signature(&mut self, piece: &mut &[u8]) -> Result<(), WrongReply> {
        match self.gather.take(piece, SIGNATURE.len()) {
            Some(bytes) if bytes != SIGNATURE => Err(WrongReply::Png("it does not begin like one")),
            Some(_) => {
                self.at = At::FirstChunk;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn chunk(&mut self, piece: &mut &[u8]) -> Result<(), WrongReply> {
        let Some(bytes) = self.gather.take(piece, 8) else { return Ok(()) };
        let (length, name) = bytes.split_at(4);
        let length = big_endian(length);
        self.crc = Hasher::new();
        self.crc.update(name);
        self.at = match (self.at, name) {
            (At::FirstChunk, b"IHDR") if length == HEADER_BYTES => At::Header,
            (At::FirstChunk, _) => return Err(WrongReply::Png("its first chunk is no header")),
            (_, b"IHDR") => return Err(WrongReply::Png("it has two headers")),
            (_, b"IEND") if length > 0 => return Err(WrongReply::Png("its last chunk is not empty")),
            _ if length > MAX_CHUNK => return Err(WrongReply::Png("a chunk is longer than any may be")),
            (_, b"IDAT") => At::Data { left: length, kind: Kind::Pixels },
            (_, b"IEND") => At::Data { left: length, kind: Kind::Last },
            _ => At::Data { left: length, kind: Kind::Other },
        };
        self.has_pixels |= name == b"IDAT" && length > 0;
        Ok(())
    }

    fn header(&mut self, piece: &mut &[u8]) -> Result<(), WrongReply> {
        let Some(bytes) = self.gather.take(piece, HEADER_BYTES as usize) else { return Ok(()) };
        self.crc.update(&bytes);
        let (sides, kind) = bytes.split_at(8);
        let (got_width, got_height) = (big_endian(&sides[..4]), big_endian(&sides[4..]));
        let (width, height) = (self.width, self.height);
        if (got_width, got_height) != (width, height) {
            return Err(WrongReply::Size { width, height, got_width, got_height });
        }
        if kind != RGB8 {
            return Err(WrongReply::Png("its pixels are not plain 8-bit RGB"));
        }
        self.at = At::Checksum { kind: Kind::Other };
        Ok(())
    }

    fn data(&mut self, piece: &mut &[u8], left: u32, kind: Kind) -> Result<(), WrongReply> {
        let (taken, rest) = piece.split_at((left as usize).min(piece.len()));
        self.crc.update(taken);
        *piece = rest;
        if let (Kind::Pixels, Some(pixels)) = (kind, &mut self.pixels) {
            pixels.feed(taken).map_err(WrongReply::Png)?;
        }
        let left = left - taken.len() as u32;
        self.at = if left == 0 { At::Checksum { kind } } else { At::Data { left, kind } };
        Ok(())
    }

    fn checksum(&mut self, piece: &mut &[u8], kind: Kind) -> Result<(), WrongReply> {
        let Some(bytes) = self.gather.take(piece, 4) else { return Ok(()) };
        if big_endian(&bytes) != self.crc.clone().finalize() {
            return Err(WrongReply::Png("a checksum does not fit"));
        }
        self.at = if kind == Kind::Last { At::Nothing } else { At::Chunk };
        Ok(())
    }
}

impl Pixels {
    /// Of a reply of such a form; none where it is no PNG.
    pub(in super::super) fn of(form: &Form) -> Option<Self> {
        let Form::Png { width, height, .. } = *form else { return None };
        let pixels = Some(Inflate::new(width, height));
        Some(Self(PngCheck { pixels, ..PngCheck::new(width, height) }))
    }

    /// Judges the next piece of the file.
    pub(in super::super) fn feed(&mut self, piece: &Bytes) -> Result<(), WrongReply> {
        self.0.feed(piece)
    }

    /// Judges the end.
    pub(in super::super) fn end(&self) -> Result<(), WrongReply> {
        self.0.end()
    }
}

fn big_endian(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |number, &byte| number << 8 | u32::from(byte))
}
