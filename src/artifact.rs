//! Artifacts: what a job comes to. Whose result it is, metadata, a whole body, the seal that proves it.

use std::{sync::Arc, time::SystemTime};

use bytes::{Bytes, BytesMut};

use crate::{
    body::{Body, BodyReader, Seal},
    error::Error,
    key::ContentKey,
    meta::Meta,
    model::{ModelId, Task},
};

pub mod envelope;

/// A result: immutable, shared by tiers and waiters, never copied between them.
#[derive(Clone)]
pub struct Artifact {
    subject: Subject,
    meta: Meta,
    seal: Seal,
    body: Body,
}

/// Whose result an artifact is, and of when: what operators sort and purge by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Names the request.
    pub key: ContentKey,
    /// Whose weights.
    pub model: ModelId,
    /// Which task.
    pub task: Task,
    /// When it was made.
    pub made: SystemTime,
}

// === impl Artifact ===

impl Artifact {
    /// The artifact of a body that is whole: what [`BodyWriter::finish`](crate::body::BodyWriter::finish) hands out.
    pub fn of(subject: Subject, meta: &Meta, seal: Seal, body: &Body) -> Arc<Self> {
        Arc::new(Self { subject, meta: meta.clone(), seal, body: body.clone() })
    }

    /// Names the request.
    pub fn key(&self) -> &ContentKey {
        &self.subject.key
    }

    /// Whose result it is.
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// What the bytes are.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// What proves them.
    pub fn seal(&self) -> &Seal {
        &self.seal
    }

    /// A reader over the whole of it.
    pub fn reader(&self) -> BodyReader {
        self.body.reader()
    }

    /// Its bytes, in the slices they were made in.
    pub fn slices(&self) -> Vec<Bytes> {
        self.body.slices()
    }

    /// Whether it lies in many more slices than it takes. What came over a connection lies in the pieces that were read, and
    /// every one of them would be a frame, and a system call, each time it is sent.
    pub fn is_fragmented(&self) -> bool {
        let (slices, fewest) = (self.slices().len() as u64, self.seal.length.div_ceil(envelope::CHUNK_BYTES as u64));
        slices > fewest + 1 || (slices > 1 && fewest == 1)
    }

    /// The same artifact in slices of [`envelope::CHUNK_BYTES`]. Copies every byte: work for a blocking thread.
    pub fn compacted(&self) -> Result<Arc<Self>, Error> {
        let (mut writer, body) = Body::channel();
        writer.begin_proved(self.meta.clone(), self.seal)?;
        let (mut joined, mut left) = (BytesMut::new(), self.seal.length);
        for mut slice in self.slices() {
            while !slice.is_empty() {
                if joined.is_empty() {
                    joined.reserve(left.min(envelope::CHUNK_BYTES as u64) as usize);
                }
                let taken = slice.split_to(slice.len().min(envelope::CHUNK_BYTES - joined.len()));
                left -= taken.len() as u64;
                joined.extend_from_slice(&taken);
                if joined.len() == envelope::CHUNK_BYTES || left == 0 {
                    writer.append(joined.split().freeze())?;
                }
            }
        }
        writer.finish(|_, _, _| {})?;
        Ok(Self::of(self.subject.clone(), &self.meta, self.seal, &body))
    }

    /// Bytes this artifact keeps in memory: its payload and what stands around it.
    pub fn weight(&self) -> u64 {
        /// Key, metadata, the body's and the map's own structures: measured at about 700 bytes, rounded up.
        const OVERHEAD_BYTES: u64 = 1024;
        self.seal.length + OVERHEAD_BYTES
    }
}

// === impl Subject ===

impl Subject {
    /// Whether it is older than it may get at `now`. A clock that was set back makes nothing old.
    pub fn is_expired(&self, time_to_live: Option<std::time::Duration>, now: SystemTime) -> bool {
        let age = now.duration_since(self.made).unwrap_or_default();
        time_to_live.is_some_and(|most| age >= most)
    }
}

#[cfg(test)]
impl Artifact {
    /// An artifact of these bytes under the sample key of a number.
    pub(crate) fn sample(n: u8, bytes: impl Into<Bytes>) -> Arc<Self> {
        let bytes = bytes.into();
        let subject = Subject {
            key: ContentKey::sample(n),
            model: ModelId::try_new("sample").unwrap(),
            task: Task::Decode,
            made: SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000),
        };
        let (mut writer, _body) = Body::channel();
        writer.begin(Meta::sample(bytes.len() as u64)).unwrap();
        writer.append(bytes).unwrap();
        let mut made = None;
        writer.finish(|meta, seal, body| made = Some(Self::of(subject, meta, seal, body))).unwrap();
        made.unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compacting_changes_the_slices_and_nothing_else() {
        const CHUNK: usize = envelope::CHUNK_BYTES;
        for lengths in
            [vec![7, 9], vec![CHUNK - 1, 2, 5], vec![300_000; 11], vec![CHUNK, CHUNK, 1], vec![0, 50], vec![]]
        {
            let slices: Vec<_> = (1u8..).zip(lengths).map(|(n, length)| Bytes::from(vec![n; length])).collect();
            let (mut writer, body) = Body::channel();
            let whole = slices.concat();
            writer.begin(Meta::sample(whole.len() as u64)).unwrap();
            for slice in slices {
                writer.append(slice).unwrap();
            }
            let seal = writer.finish(|_, _, _| {}).unwrap();
            let sample = Artifact::sample(1, Bytes::new());
            let artifact = Artifact::of(sample.subject.clone(), body.meta().unwrap(), seal, &body);
            let compacted = artifact.compacted().unwrap();
            assert_eq!((compacted.slices().concat(), compacted.seal), (whole.clone(), seal));
            assert_eq!(compacted.slices().len(), whole.len().div_ceil(CHUNK));
            assert!(!compacted.is_fragmented());
        }
    }
}
