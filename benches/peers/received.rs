//! What comes of an answer: counted as it arrives, hashed if asked for, and never kept.

use anyhow::ensure;

/// The payload of one answer so far.
#[derive(Default)]
pub(crate) struct Received {
    bytes: usize,
    hasher: Option<Box<blake3::Hasher>>,
}

/// A reader of the messages in a gRPC response, whatever pieces they come in. Only chunks are payload.
#[derive(Default)]
pub(crate) struct Deframer {
    /// The beginning of a message, until it is known what it is.
    head: Vec<u8>,
    /// What is left of the message, and whether it is payload.
    rest: usize,
    is_chunk: bool,
}

/// Flag byte and length.
const PREFIX_BYTES: usize = 5;
/// The key of `chunk`, field 6, length-delimited.
const CHUNK_KEY: u8 = 6 << 3 | 2;

impl Received {
    /// One that will know the digest, too.
    pub(crate) fn hashed() -> Self {
        Self { hasher: Some(Box::default()), ..Self::default() }
    }

    pub(crate) fn take(&mut self, piece: &[u8]) {
        self.bytes += piece.len();
        if let Some(hasher) = &mut self.hasher {
            hasher.update(piece);
        }
    }

    /// Whether it is `body`, as far as was looked.
    pub(crate) fn judge(&self, body: &[u8]) -> anyhow::Result<()> {
        ensure!(self.bytes == body.len(), "{} bytes came, wanted {}", self.bytes, body.len());
        let is_it = self.hasher.as_ref().is_none_or(|hasher| hasher.finalize() == blake3::hash(body));
        ensure!(is_it, "other bytes came than the origin's");
        Ok(())
    }
}

impl Deframer {
    /// The next piece of the response.
    pub(crate) fn take(&mut self, mut piece: &[u8], received: &mut Received) {
        while !piece.is_empty() {
            if self.rest == 0 {
                self.head.push(piece[0]);
                piece = &piece[1..];
                self.begin();
            } else {
                let (ours, others) = piece.split_at(piece.len().min(self.rest));
                if self.is_chunk {
                    received.take(ours);
                }
                self.rest -= ours.len();
                piece = others;
            }
        }
    }

    /// Leaves the head behind if it is whole: of a chunk, everything before the payload; of others, the prefix and a byte.
    fn begin(&mut self) {
        let Some((prefix, message)) = self.head.split_first_chunk::<PREFIX_BYTES>() else { return };
        let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
        let is_chunk = message.first() == Some(&CHUNK_KEY);
        let is_varint_open = is_chunk && (message.len() == 1 || message.last().is_some_and(|byte| byte & 0x80 != 0));
        if length > 0 && (message.is_empty() || is_varint_open) {
            return;
        }
        (self.rest, self.is_chunk) = (length - message.len(), is_chunk);
        self.head.clear();
    }
}
