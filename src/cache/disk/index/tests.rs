//! Against a plain map, and what the policy is chosen for.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

const CAPACITY_BLOCKS: u64 = 40;

fn key(n: u32) -> ContentKey {
    ContentKey::from_bytes(*blake3::hash(&n.to_le_bytes()).as_bytes())
}

/// An index of entries of one block.
fn index(capacity_blocks: u64) -> Index {
    Index::new(capacity_blocks * BLOCK)
}

/// Inserts one block and gives what went.
fn insert(index: &mut Index, n: u32) -> Vec<ContentKey> {
    match index.insert(key(n), BLOCK) {
        Inserted::Admitted { evicted } => evicted.iter().map(|entry| entry.key).collect(),
        Inserted::TooLarge { .. } => panic!("one block is too large"),
    }
}

fn keys(numbers: impl IntoIterator<Item = u32>) -> Vec<ContentKey> {
    numbers.into_iter().map(key).collect()
}

/// All pages of an index, with something done between one and the next.
fn pages(index: &mut Index, limit: usize, mut between: impl FnMut(&mut Index)) -> Vec<Entry> {
    let (mut all, mut next) = index.page(None, limit);
    while let Some(cursor) = next {
        between(index);
        let (page, after) = index.page(Some(cursor), limit);
        assert!(page.len() <= limit);
        all.extend(page);
        next = after;
    }
    all
}

#[test]
fn sizes_are_whole_blocks() {
    let mut index = index(10);
    for (n, bytes) in [0, 1, BLOCK, BLOCK + 1].into_iter().enumerate() {
        let _ = index.insert(key(n as u32), bytes);
    }
    assert_eq!([0, 1, 2, 3].map(|n| index.use_of(&key(n)).unwrap() / BLOCK), [1, 1, 1, 2]);
    assert_eq!((index.bytes(), index.len(), index.capacity()), (5 * BLOCK, 4, 10 * BLOCK));
}

#[test]
fn what_nobody_used_goes_first_in_the_order_it_came() {
    let mut index = index(10);
    for n in 0..10 {
        assert!(insert(&mut index, n).is_empty());
    }
    for used in [0, 2] {
        index.use_of(&key(used));
    }
    let evicted: Vec<_> = (10..14).flat_map(|n| insert(&mut index, n)).collect();
    assert_eq!(evicted, keys([1, 3, 4, 5]));
}

#[test]
fn a_scan_leaves_what_was_used_alone() {
    let mut index = index(100);
    for n in 0..80 {
        insert(&mut index, n);
        index.use_of(&key(n));
    }
    for scanned in 1000..2000 {
        insert(&mut index, scanned);
    }
    assert_eq!((0..80).filter(|&n| index.contains(&key(n))).count(), 80);
}

#[test]
fn what_comes_back_soon_enough_stays() {
    let mut index = index(100);
    for n in 0..150 {
        insert(&mut index, n);
    }
    assert!(!index.contains(&key(49)), "it left without a use");
    insert(&mut index, 49);
    for n in 1000..1200 {
        insert(&mut index, n);
    }
    assert!(index.contains(&key(49)), "its ghost brought it to the main queue");
}

#[test]
fn a_use_buys_a_round_in_the_main_queue() {
    let mut index = index(10);
    for n in 0..10 {
        let _ = index.load(key(n), BLOCK);
    }
    index.use_of(&key(0));
    let evicted = |entries: Vec<Entry>| entries.iter().map(|entry| entry.key).collect::<Vec<_>>();
    assert_eq!(evicted(index.evict(9 * BLOCK)), keys(1..10));
    assert_eq!(evicted(index.evict(BLOCK)), keys([0]));
    assert!(index.is_empty() && index.evict(BLOCK).is_empty());
}

#[test]
fn room_is_found_although_everything_is_used() {
    let entries = 2 * PATIENCE;
    let mut index = index(u64::from(entries));
    for n in 0..entries {
        let _ = index.load(key(n), BLOCK);
        index.use_of(&key(n));
    }
    assert_eq!(insert(&mut index, entries), keys([PATIENCE]), "the next after those that were spared");
}

#[test]
fn a_restart_keeps_the_youngest_that_fit_and_new_ones_do_not_replace_them() {
    let mut index = index(100);
    for n in 0..110 {
        let _ = index.load(key(n), BLOCK);
    }
    assert_eq!((10..110).filter(|&n| index.contains(&key(n))).count(), 100);
    for n in 1000..1200 {
        insert(&mut index, n);
    }
    let kept = (10..110).filter(|&n| index.contains(&key(n))).count();
    assert!(kept >= 88, "the small queue got its tenth and a block: {kept} are left");
}

#[test]
fn what_is_larger_than_all_is_refused_and_takes_its_predecessor_along() {
    let mut index = index(10);
    insert(&mut index, 1);
    insert(&mut index, 2);
    let replaced = Some(Entry { key: key(1), bytes: BLOCK });
    assert_eq!(index.insert(key(1), 10 * BLOCK + 1), Inserted::TooLarge { replaced });
    assert_eq!(index.insert(key(1), u64::MAX), Inserted::TooLarge { replaced: None });
    assert_eq!((index.len(), index.bytes()), (1, BLOCK));
    assert_eq!(Index::new(0).insert(key(1), 0), Inserted::TooLarge { replaced: None });
}

#[test]
fn what_grows_does_not_go_for_itself() {
    let mut index = index(10);
    for n in 0..10 {
        insert(&mut index, n);
    }
    let Inserted::Admitted { evicted } = index.insert(key(0), 9 * BLOCK) else { panic!("it fits") };
    assert_eq!(evicted.iter().map(|entry| entry.key).collect::<Vec<_>>(), keys(1..9));
    assert_eq!((index.use_of(&key(0)), index.bytes()), (Some(9 * BLOCK), 10 * BLOCK));
}

#[test]
fn what_stays_is_on_one_page_whatever_comes_and_goes() {
    let mut index = index(300);
    for n in 0..300 {
        let _ = index.load(key(n), BLOCK);
    }
    let (mut gone, mut new) = (0, 1000);
    let seen = pages(&mut index, 7, |index| {
        index.remove(&key(gone));
        index.use_of(&key(200));
        insert(index, new);
        (gone, new) = (gone + 1, new + 1);
    });
    let mut times = HashMap::new();
    for entry in seen {
        *times.entry(entry.key).or_insert(0) += 1;
    }
    assert!((100..300).all(|n| times.get(&key(n)) == Some(&1)));
    assert!(times.values().all(|&times| times == 1));
}

#[test]
fn pages_come_to_an_end_where_there_is_little() {
    let mut index = index(10);
    assert_eq!(index.page(None, 5), (Vec::new(), None));
    for n in 0..3 {
        insert(&mut index, n);
    }
    index.remove(&key(1));
    assert_eq!(pages(&mut index, 1, |_| ()).len(), 2);
    assert_eq!(index.page(None, 0).0.len(), 1, "a page that looked at nothing would never end");
    let beyond = index.page(None, 1).1;
    assert_eq!(index.page(beyond, usize::MAX).0.len(), 1);
}

/// Memory at every size on the way up: vectors and tables double, and are half empty just after.
#[test]
fn an_entry_takes_at_most_200_bytes() {
    const ENTRIES: u32 = 100_000;
    let mut index = index(u64::from(ENTRIES));
    let mut most = 0;
    for n in 0..ENTRIES {
        insert(&mut index, n);
        if n > 1000 {
            most = most.max(index.memory_bytes() / index.len());
        }
    }
    assert!(most <= 200, "{most} bytes an entry");
}

#[test]
fn memory_does_not_grow_with_what_comes_and_goes() {
    /// One more than a vector has room for before it doubles.
    const ENTRIES: u32 = (1 << 17) + 1;
    let mut index = index(u64::from(ENTRIES));
    let mut rng = fastrand::Rng::with_seed(1);
    let mut churn = |index: &mut Index, from: u32| {
        for n in from..from + 3 * ENTRIES {
            insert(index, n);
            index.use_of(&key(n.saturating_sub(rng.u32(..ENTRIES))));
            if rng.u8(..4) == 0 {
                index.remove(&key(n.saturating_sub(rng.u32(..ENTRIES))));
            }
        }
    };
    churn(&mut index, 0);
    let settled = index.memory_bytes();
    churn(&mut index, 3 * ENTRIES);
    assert_eq!(index.memory_bytes(), settled);
    assert!(settled / index.len() <= 200, "{} bytes an entry", settled / index.len());
    check(&index);
}

/// What must hold after every call.
fn check(index: &Index) {
    assert!(index.bytes() <= index.capacity());
    let held: Vec<_> = index.slab.slots_from(0).iter().filter(|slot| slot.place.is_some()).collect();
    assert_eq!(held.len(), index.len());
    assert_eq!(held.iter().map(|slot| slot.entry().bytes).sum::<u64>(), index.bytes());
    assert!(held.iter().all(|slot| index.contains(&slot.key)));
}

#[derive(Clone, Debug)]
enum Step {
    Insert(u32, u64),
    Load(u32, u64),
    Use(u32),
    Remove(u32),
    Evict(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = || prop_oneof![9 => 0..BLOCK * CAPACITY_BLOCKS / 4, 1 => 0..BLOCK * CAPACITY_BLOCKS * 2];
    prop_oneof![
        6 => (0..60u32, bytes()).prop_map(|(n, bytes)| Step::Insert(n, bytes)),
        1 => (0..60u32, bytes()).prop_map(|(n, bytes)| Step::Load(n, bytes)),
        4 => (0..60u32).prop_map(Step::Use),
        2 => (0..60u32).prop_map(Step::Remove),
        1 => bytes().prop_map(Step::Evict),
    ]
}

/// Keys and blocks that are in, kept by what the index says.
#[derive(Default)]
struct Model(HashMap<ContentKey, u64>);

impl Model {
    fn take(&mut self, index: &mut Index, step: &Step) {
        match *step {
            Step::Insert(n, bytes) => self.inserted(key(n), bytes, index.insert(key(n), bytes)),
            Step::Load(n, bytes) => self.inserted(key(n), bytes, index.load(key(n), bytes)),
            Step::Use(n) => assert_eq!(index.use_of(&key(n)), self.0.get(&key(n)).copied()),
            Step::Remove(n) => assert_eq!(index.remove(&key(n)), self.0.remove(&key(n))),
            Step::Evict(bytes) => {
                let before = index.bytes();
                self.left(&index.evict(bytes));
                assert!(before - index.bytes() >= bytes.min(before));
            }
        }
    }

    fn inserted(&mut self, key: ContentKey, bytes: u64, inserted: Inserted) {
        let bytes = bytes.next_multiple_of(BLOCK).max(BLOCK);
        match inserted {
            Inserted::Admitted { evicted } => {
                self.left(&evicted);
                self.0.insert(key, bytes);
            }
            Inserted::TooLarge { replaced } => {
                assert!(bytes > CAPACITY_BLOCKS * BLOCK);
                assert_eq!(replaced, self.0.remove(&key).map(|bytes| Entry { key, bytes }));
            }
        }
    }

    /// What left was in, with these bytes, and is told once.
    fn left(&mut self, evicted: &[Entry]) {
        for entry in evicted {
            assert_eq!(self.0.remove(&entry.key), Some(entry.bytes));
        }
    }

    fn compare(&self, index: &mut Index) {
        assert_eq!((index.len(), index.bytes()), (self.0.len(), self.0.values().sum()));
        assert!((0..60).map(key).all(|key| index.contains(&key) == self.0.contains_key(&key)));
        let paged: HashMap<_, _> = pages(index, 3, |_| ()).iter().map(|entry| (entry.key, entry.bytes)).collect();
        assert_eq!(paged, self.0);
    }
}

proptest! {
    #[test]
    fn it_agrees_with_a_map(steps in proptest::collection::vec(step(), 1..300)) {
        let (mut index, mut model) = (index(CAPACITY_BLOCKS), Model::default());
        for step in &steps {
            model.take(&mut index, step);
            check(&index);
            model.compare(&mut index);
        }
        let rest: HashSet<_> = index.evict(u64::MAX).iter().map(|entry| entry.key).collect();
        prop_assert_eq!(rest, model.0.into_keys().collect());
        check(&index);
    }
}
