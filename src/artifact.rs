//! Artifacts: what a job comes to. Metadata, a whole body, the seal that proves it.

use std::sync::Arc;

use crate::{
    body::{Body, BodyReader, Seal},
    meta::Meta,
};

/// A result: immutable, shared by tiers and waiters, never copied between them.
#[derive(Clone)]
pub struct Artifact {
    meta: Meta,
    seal: Seal,
    body: Body,
}

// === impl Artifact ===

impl Artifact {
    /// The artifact of a body that is whole: what [`BodyWriter::finish`](crate::body::BodyWriter::finish) hands out.
    pub fn of(meta: &Meta, seal: Seal, body: &Body) -> Arc<Self> {
        Arc::new(Self { meta: meta.clone(), seal, body: body.clone() })
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

    /// Bytes this artifact keeps in memory: its payload and what stands around it.
    pub fn weight(&self) -> u64 {
        /// Key, metadata, the body's and the map's own structures: measured at about 700 bytes, rounded up.
        const OVERHEAD_BYTES: u64 = 1024;
        self.seal.length + OVERHEAD_BYTES
    }
}
