//! Digest first: a bounded map from (spec as spelled, digest of the bytes as sent) to a content key.
//!
//! A digest of bytes as sent cannot name the canonical input (packed latents, another PNG of the same pixels), so this
//! map bridges. Entries are made only after the server has seen the bytes and hashed them itself: a claimed digest may
//! look up, never write. Losing an entry costs one upload.

use std::hash::{Hash as _, Hasher};

use moka::sync::Cache;

use crate::{job::Checked, key::ContentKey};

/// About 96 bytes an entry with moka's own: 65536 are some 6 MiB.
const ENTRIES: u64 = 65_536;

/// BLAKE3 of an input's bytes as sent.
pub type InputDigest = [u8; 32];

/// The map. Clones share it.
#[derive(Clone)]
pub struct Aliases(Cache<Alias, ContentKey>);

/// One spelling with one input.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Alias([u8; 32]);

impl Alias {
    /// The alias of a spec as spelled and the digest of the bytes that go with it.
    pub fn of(checked: &Checked, input: &InputDigest) -> Self {
        /// The model's revision is in it: weights that change under a name must not be found by yesterday's alias.
        const CONTEXT: &str = "latentgate 2026-11-27 alias v2";
        let mut spelled = Spelled(blake3::Hasher::new_derive_key(CONTEXT));
        // What the typed spec tells a hasher is one-to-one, and aliases never leave this process.
        checked.spec().hash(&mut spelled);
        checked.model().revision.hash(&mut spelled);
        spelled.write(input);
        Self(*spelled.0.finalize().as_bytes())
    }
}

/// BLAKE3 of what is told to a hasher: a digest of 64 bits would not do here.
struct Spelled(blake3::Hasher);

impl Hasher for Spelled {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let digest = self.0.finalize();
        digest.as_bytes().first_chunk().map_or(0, |first| u64::from_le_bytes(*first))
    }
}

impl Aliases {
    /// An empty map.
    pub fn new() -> Self {
        Self(Cache::new(ENTRIES))
    }

    /// The content key behind an alias, if it is remembered.
    pub fn get(&self, alias: &Alias) -> Option<ContentKey> {
        self.0.get(alias)
    }

    /// Remembers. To be called with a digest that the server computed.
    pub fn insert(&self, alias: Alias, key: ContentKey) {
        self.0.insert(alias, key);
    }
}

impl Default for Aliases {
    fn default() -> Self {
        Self::new()
    }
}
