//! A place below memory where artifacts live: the disk now, shared stores next.
//!
//! A tier is asked by a flight's leader, so once for any number of equal requests. It proves every chunk before it gives
//! it out, and nothing that goes wrong in it ever fails a job: whatever is not a hit is a miss with a reason.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{sync::mpsc, time::timeout};

use crate::{
    artifact::{Artifact, envelope::Head},
    key::ContentKey,
    metrics::{LookupResult, TierName},
    task::BoxFuture,
};

/// Keeps artifacts longer than memory does.
///
/// One conformance suite runs on every implementation. All calls are cancel-safe: dropped, a lookup leaves nothing
/// behind, and what has begun to be written is finished or was never there.
pub trait Tier: Send + Sync {
    /// Metric label.
    fn name(&self) -> TierName;

    /// Looks for the artifact of `key`. Takes no longer than the tier's own bound, and says so if it would.
    fn get(&self, key: ContentKey) -> BoxFuture<'_, Lookup>;

    /// Takes `artifact` in, in place of what is there under its key; or says why not. Not retried by the tier.
    fn put(&self, artifact: Arc<Artifact>) -> BoxFuture<'_, Result<(), Refused>>;

    /// Lets go what is there under `key`. Says whether there was something.
    fn remove(&self, key: ContentKey) -> BoxFuture<'_, bool>;
}

/// What a tier answers.
pub enum Lookup {
    /// It is there; its first chunks are proved.
    Hit(Box<Stored>),
    /// It is not.
    Miss,
    /// It was to be there, and is not, or was written by another version of this program.
    Stale,
    /// It is there, and not what was stored. It has been set aside, and counted.
    Corrupt,
    /// The tier has no time now, or has failed lately.
    Throttled,
}

/// An artifact on its way out of a tier.
pub struct Stored {
    /// Everything about it but its bytes.
    pub head: Head,
    first: VecDeque<Bytes>,
    rest: Option<Rest>,
    /// Bytes that have not been taken.
    left: u64,
}

/// The chunks behind the first ones.
pub struct Rest {
    /// Each proved. It ends with the artifact or with a fault.
    pub chunks: mpsc::Receiver<Result<Bytes, Fault>>,
    /// The longest that one may be waited for.
    pub patience: Duration,
}

/// How a tier can fail within an artifact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A chunk is not what was stored.
    #[error("a chunk is damaged")]
    Corrupt,
    /// It could not be read.
    #[error("it cannot be read on")]
    Unreadable,
}

/// Why a tier does not take an artifact in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is larger than the tier, or than what the tier may still take.
    #[error("there is no room for {bytes} bytes: {why}")]
    NoRoom {
        /// Of the artifact.
        bytes: u64,
        /// What bounds it.
        why: &'static str,
    },
    /// Writing failed.
    #[error("it cannot be written: {0}")]
    Failed(String),
    /// It has failed lately, and is left alone for a while.
    #[error("it has failed lately")]
    Resting,
}

// === impl Lookup ===

impl Lookup {
    /// Metric label.
    pub const fn result(&self) -> LookupResult {
        match self {
            Self::Hit(_) => LookupResult::Hit,
            Self::Miss => LookupResult::Miss,
            Self::Stale => LookupResult::Stale,
            Self::Corrupt => LookupResult::Corrupt,
            Self::Throttled => LookupResult::Throttled,
        }
    }
}

// === impl Stored ===

impl Stored {
    /// An artifact whose first chunks are proved, and the others to come, if there are any.
    pub fn new(head: Head, first: Vec<Bytes>, rest: Option<Rest>) -> Self {
        let left = head.seal.length;
        Self { head, first: first.into(), rest, left }
    }

    /// The next chunk, proved; none after the last, and only then. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        let chunk = match (self.first.pop_front(), &mut self.rest) {
            (Some(first), _) => Some(first),
            (None, None) => None,
            (None, Some(Rest { chunks, patience })) => {
                timeout(*patience, chunks.recv()).await.map_err(|_| Fault::Unreadable)?.transpose()?
            }
        };
        self.left -= chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        if chunk.is_none() && self.left > 0 { Err(Fault::Unreadable) } else { Ok(chunk) }
    }
}

#[cfg(test)]
pub(crate) mod conformance;
