//! What the index itself costs: time to load it, memory an entry, and the longest wait for room.

use std::hint::black_box;

use latentgate::{
    cache::disk::index::{BLOCK, Index},
    key::ContentKey,
};
use tokio::time::Instant;

use crate::{tell, trace::key};

const ENTRIES: u32 = 1_000_000;

/// Uses of an entry beyond those that are counted.
const MANY_USES: u32 = 4;

pub(crate) fn tell_all() {
    let keys: Vec<_> = (0..=ENTRIES).map(key).collect();
    let mut index = Index::new(u64::from(ENTRIES) * BLOCK);
    let (last, loaded) = keys.split_last().expect("there are keys");
    tell_load(&mut index, loaded);
    tell_worst_insert(&mut index, loaded, *last);
}

fn tell_load(index: &mut Index, keys: &[ContentKey]) {
    let start = Instant::now();
    for key in keys {
        // The capacity is that of all of them: nothing goes.
        let _ = index.load(*key, BLOCK);
    }
    let took = start.elapsed().as_secs_f64() * 1e3;
    let each = index.memory_bytes() as f64 / index.len() as f64;
    tell(&format!("\n{} entries loaded in {took:.0} ms; they take {each:.0} bytes of memory each", index.len()));
}

/// When all entries have been used as much as is counted, each in turn buys a round from the next to go.
fn tell_worst_insert(index: &mut Index, keys: &[ContentKey], new: ContentKey) {
    for key in (0..MANY_USES).flat_map(|_| keys) {
        index.use_of(key);
    }
    let start = Instant::now();
    let inserted = black_box(index.insert(new, BLOCK));
    let took = start.elapsed().as_secs_f64() * 1e6;
    drop(inserted);
    tell(&format!("an insertion into them when all are much used: {took:.0} µs"));
}
