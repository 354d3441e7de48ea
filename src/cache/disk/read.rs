//! Reading one artifact: the head, then chunk by chunk, each proved before it is given out.
//!
//! What the system has in its memory anyway is read where it is asked for, without a visit to the disk's threads: the two
//! changes of thread would cost more than the reading. `RESOLVE_CACHED` and `RWF_NOWAIT` are what makes sure that nothing
//! is waited for; whatever they refuse, and whatever turns out to be wrong, goes the way over the threads.

use std::{
    fs::File,
    io::{self, IoSliceMut},
};

use bytes::Bytes;
use rustix::{
    buffer::spare_capacity,
    io::{Errno, ReadWriteFlags},
};

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
    before: Option<super::Faults>,
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
        self.reader(key)?.opened(key)
    }

    /// The whole artifact of `key`, proved, if that takes no more than copying [`FIRST_CHUNKS`] chunks out of the system's
    /// memory. Never waits for the disk.
    pub(super) fn read_cached(&self, key: &ContentKey) -> Option<Opened> {
        let opened = self.cached_reader(key)?.opened(key).ok()?;
        opened.rest.is_none().then_some(opened)
    }

    /// Opens the artifact of `key` and proves its head alone.
    pub(super) fn head(&self, key: &ContentKey) -> Result<Head, Refusal> {
        self.reader(key)?.head(key)
    }

    fn reader(&self, key: &ContentKey) -> Result<Reader, Refusal> {
        let file = self.open_file(key)?;
        let mut reader = Reader { file, ahead: Bytes::new(), before: self.faults() };
        let mut first = Vec::with_capacity(FIRST_BYTES);
        reader.fill(&mut first, FIRST_BYTES)?;
        reader.ahead = first.into();
        Ok(reader)
    }

    /// Behind the last byte of a file that has been read whole.
    fn cached_reader(&self, key: &ContentKey) -> Option<Reader> {
        /// The file's own offset, moved on.
        const HERE: u64 = u64::MAX;
        let file = self.open_cached(key)?;
        let length = usize::try_from(file.metadata().ok()?.len()).ok()?;
        if length > FIRST_BYTES + FIRST_CHUNKS * CHUNK_BYTES {
            return None;
        }
        let mut whole = vec![0; length];
        let read = rustix::io::preadv2(&file, &mut [IoSliceMut::new(&mut whole)], HERE, ReadWriteFlags::NOWAIT).ok()?;
        (read == length).then(|| Reader { file, ahead: whole.into(), before: self.faults() })
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
    fn opened(mut self, key: &ContentKey) -> Result<Opened, Refusal> {
        let head = self.head(key)?;
        let next = head.chunk_count().min(FIRST_CHUNKS);
        let first = (0..next).map(|chunk| self.chunk(&head, chunk)).collect::<Result<Vec<_>, _>>()?;
        if next == head.chunk_count() {
            self.end()?;
            return Ok(Opened { head, first, rest: None });
        }
        Ok(Opened { head: head.clone(), first, rest: Some(Rest { reader: self, head, next }) })
    }

    fn head(&mut self, key: &ContentKey) -> Result<Head, Refusal> {
        let preamble = self.ahead.first_chunk::<PREAMBLE_BYTES>().ok_or(Refusal::Corrupt("it is cut short"))?;
        let length = Head::length(preamble)?;
        let head = Head::decode(&self.take(length)?)?;
        // A file under another's name is whole, and proves nothing of this key.
        if head.subject.key == *key { Ok(head) } else { Err(Refusal::Corrupt("it is another key's")) }
    }

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
        self.before.as_ref().map_or(Ok(()), |faults| faults(Operation::Read))?;
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
