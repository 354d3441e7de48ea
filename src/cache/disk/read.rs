//! Reading one artifact: the head, then chunk by chunk, each proved before it is given out.

use std::{fs::File, io};

use bytes::Bytes;
use rustix::{buffer::spare_capacity, io::Errno};

use super::{
    super::tier::Fault,
    folder::{Folder, Operation},
};
use crate::{
    artifact::envelope::{CHUNK_BYTES, EnvelopeError, Head, PREAMBLE_BYTES},
    key::ContentKey,
};

/// What is read first: the head of all but the largest artifacts, and all of a small one.
const FIRST_BYTES: usize = 64 << 10;

/// Chunks that are proved before anything is given out: all of most pictures, in one visit to the disk's thread. More
/// would be felt as a wait for the first byte.
const FIRST_CHUNKS: usize = 2;

/// A file whose head and first chunks are proved.
pub(super) struct Opened {
    pub(super) head: Head,
    pub(super) first: Vec<Bytes>,
    /// The chunks behind it.
    pub(super) rest: Option<Rest>,
}

/// The chunks that are still to be read.
pub(super) struct Rest {
    reader: Reader,
    head: Head,
    next: usize,
}

/// A file read in order.
struct Reader {
    file: File,
    /// What has been read and not been taken.
    ahead: Bytes,
    before: super::Faults,
}

/// Why there is nothing to give out.
#[derive(Debug)]
pub(super) enum Refusal {
    /// No such file.
    Absent,
    /// Of another version of this program.
    Foreign(EnvelopeError),
    /// Not what was stored.
    Corrupt(&'static str),
    /// The disk's own failure.
    Failed(io::Error),
}

impl Refusal {
    /// As a reader of the artifact sees it.
    pub(super) const fn fault(&self) -> Fault {
        match self {
            Self::Corrupt(_) | Self::Foreign(_) => Fault::Corrupt,
            Self::Absent | Self::Failed(_) => Fault::Unreadable,
        }
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Absent,
            // The file ends before what its head says.
            io::ErrorKind::UnexpectedEof => Self::Corrupt("it is cut short"),
            _ => Self::Failed(error),
        }
    }
}

impl From<EnvelopeError> for Refusal {
    fn from(error: EnvelopeError) -> Self {
        match error {
            EnvelopeError::Version(_) => Self::Foreign(error),
            EnvelopeError::Magic => Self::Corrupt("it does not begin like an artifact"),
            EnvelopeError::Damaged(what) => Self::Corrupt(what),
        }
    }
}

impl Folder {
    /// Opens the artifact of `key` and proves its head and its first chunks.
    pub(super) fn read(&self, key: &ContentKey) -> Result<Opened, Refusal> {
        let (head, mut reader) = self.read_head(key)?;
        let next = head.chunk_count().min(FIRST_CHUNKS);
        let first = (0..next).map(|chunk| reader.chunk(&head, chunk)).collect::<Result<Vec<_>, _>>()?;
        if next == head.chunk_count() {
            reader.end()?;
            return Ok(Opened { head, first, rest: None });
        }
        Ok(Opened { head: head.clone(), first, rest: Some(Rest { reader, head, next }) })
    }

    /// Opens the artifact of `key` and proves its head alone.
    pub(super) fn head(&self, key: &ContentKey) -> Result<Head, Refusal> {
        Ok(self.read_head(key)?.0)
    }

    fn read_head(&self, key: &ContentKey) -> Result<(Head, Reader), Refusal> {
        let file = self.open_file(key)?;
        let mut reader = Reader { file, ahead: Bytes::new(), before: self.faults() };
        let mut first = Vec::with_capacity(FIRST_BYTES);
        reader.fill(&mut first, FIRST_BYTES)?;
        reader.ahead = first.into();
        let preamble = reader.ahead.first_chunk::<PREAMBLE_BYTES>().ok_or(Refusal::Corrupt("it is cut short"))?;
        let length = Head::length(preamble)?;
        let head = Head::decode(&reader.take(length)?)?;
        // A file under another's name is whole, and proves nothing of this key.
        if head.subject.key != *key {
            return Err(Refusal::Corrupt("it is another key's"));
        }
        Ok((head, reader))
    }
}

impl Rest {
    /// The next chunk, proved; none after the last.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, Refusal> {
        if self.next == self.head.chunk_count() {
            return self.reader.end().map(|()| None);
        }
        let chunk = self.reader.chunk(&self.head, self.next)?;
        self.next += 1;
        Ok(Some(chunk))
    }
}

impl Reader {
    fn chunk(&mut self, head: &Head, chunk: usize) -> Result<Bytes, Refusal> {
        let bytes = self.take(head.chunk_bytes(chunk))?;
        if head.proves(chunk, &bytes) { Ok(bytes) } else { Err(Refusal::Corrupt("a chunk is not what was stored")) }
    }

    /// Exactly so many bytes.
    fn take(&mut self, bytes: usize) -> Result<Bytes, Refusal> {
        debug_assert!(bytes <= CHUNK_BYTES);
        if bytes <= self.ahead.len() {
            return Ok(self.ahead.split_to(bytes));
        }
        let mut taken = Vec::with_capacity(bytes);
        taken.extend_from_slice(&std::mem::take(&mut self.ahead));
        self.fill(&mut taken, bytes)?;
        if taken.len() < bytes {
            return Err(Refusal::Corrupt("it is cut short"));
        }
        self.ahead = taken.into();
        Ok(self.ahead.split_to(bytes))
    }

    /// Until there are `bytes` of them, or more where there is room for more, or the file ends. Into memory that nobody has
    /// zeroed, in one call where the file has it: `read_to_end` feels its way in many.
    fn fill(&self, taken: &mut Vec<u8>, bytes: usize) -> Result<(), Refusal> {
        (self.before)(Operation::Read)?;
        while taken.len() < bytes {
            match rustix::io::read(&self.file, spare_capacity(taken)) {
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
        Ok(())
    }

    /// Nothing may follow.
    fn end(&self) -> Result<(), Refusal> {
        let mut more = Vec::with_capacity(1);
        if self.ahead.is_empty() {
            self.fill(&mut more, 1)?;
        }
        if !self.ahead.is_empty() || !more.is_empty() {
            Err(Refusal::Corrupt("it goes on after its end"))
        } else {
            Ok(())
        }
    }
}
