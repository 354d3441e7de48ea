//! The tier on a real folder: what it keeps, what it refuses to believe, what it does about a disk that fails.

use std::{
    collections::HashMap,
    fs,
    ops::ControlFlow,
    sync::atomic::{AtomicU8, Ordering},
};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::{
    artifact::envelope::{CHUNK_BYTES, VERSION},
    cache::tier::conformance::{self, LENGTHS, noise, read},
};

/// A tier in a folder of its own.
struct Rig {
    folder: TempDir,
    disk: Disk,
    metrics: Metrics,
}

fn config() -> Config {
    Config { capacity: ByteSize::mib(64), min_free: ByteSize(0), rest_time: Duration::ZERO, ..Config::default() }
}

fn open(folder: &TempDir, config: &Config, faults: Option<Faults>) -> (Disk, Metrics) {
    let metrics = Metrics::new();
    let disk = Disk::open_with(folder.path().join("cache"), config, metrics.clone(), faults).unwrap();
    while !disk.is_scanned() {
        std::thread::yield_now();
    }
    (disk, metrics)
}

impl Rig {
    fn new() -> Self {
        Self::with(&config(), None)
    }

    fn with(config: &Config, faults: Option<Faults>) -> Self {
        let folder = TempDir::new().unwrap();
        let (disk, metrics) = open(&folder, config, faults);
        Self { folder, disk, metrics }
    }

    /// As after a restart.
    fn reopen(self, config: &Config) -> Self {
        let Self { folder, disk, .. } = self;
        drop(disk);
        let (disk, metrics) = open(&folder, config, None);
        Self { folder, disk, metrics }
    }

    async fn put(&self, n: u8, bytes: usize) {
        self.disk.put(Artifact::sample(n, noise(n, bytes))).await.unwrap();
    }

    async fn read(&self, n: u8) -> Result<bytes::Bytes, &'static str> {
        read(&self.disk, ContentKey::sample(n)).await
    }

    fn file(&self, n: u8) -> PathBuf {
        self.disk.0.folder.place(&ContentKey::sample(n))
    }

    fn damage(&self, n: u8, how: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(self.file(n)).unwrap();
        how(&mut bytes);
        fs::write(self.file(n), bytes).unwrap();
    }

    fn counted(&self, series: &str) -> u64 {
        let text = self.metrics.render();
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok());
        value.unwrap_or_default()
    }

    fn corruptions(&self) -> u64 {
        self.counted(r#"latentgate_cache_corruptions_total{tier="disk"}"#)
    }

    /// Files under visible names.
    fn files(&self) -> usize {
        (0..=u8::MAX).map(|byte| fs::read_dir(self.disk.0.folder.shelf(byte)).unwrap().count()).sum()
    }
}

#[tokio::test]
async fn it_does_what_every_tier_does() {
    for sync in [Sync::Never, Sync::Close, Sync::Always] {
        let rig = Rig::with(&Config { sync, ..config() }, None);
        conformance::suite(&rig.disk).await;
    }
}

#[tokio::test]
async fn what_was_written_is_there_after_a_restart_and_counted() {
    let mut rig = Rig::new();
    for (n, bytes) in (0u8..).zip(LENGTHS) {
        rig.put(n, bytes).await;
    }
    let usage = rig.disk.usage();
    rig = rig.reopen(&config());
    assert_eq!(rig.disk.usage(), usage);
    for (n, bytes) in (0u8..).zip(LENGTHS) {
        assert_eq!(rig.read(n).await, Ok(noise(n, bytes)));
    }
}

#[tokio::test]
async fn what_the_systems_memory_has_is_read_without_a_thread_or_not_at_all() {
    let rig = Rig::new();
    let cached = |n| rig.disk.0.folder.read_cached(&Artifact::sample(n, noise(n, 1)).subject().key);
    for (n, bytes) in (0u8..).zip(LENGTHS) {
        rig.put(n, bytes).await;
        // File systems and sandboxes that refuse the calls are read over the threads.
        let Some(opened) = cached(n) else { continue };
        assert!(bytes <= 2 * CHUNK_BYTES, "{bytes} bytes are too many for an async thread");
        assert_eq!(opened.first.concat(), noise(n, bytes));
        rig.damage(n, |file| *file.last_mut().unwrap() ^= 1);
        assert!(cached(n).is_none());
        rig.damage(n, |file| file.push(0));
        assert!(cached(n).is_none());
    }
    assert!(cached(200).is_none(), "never written");
}

#[tokio::test]
async fn no_damaged_byte_is_believed_wherever_it_is() {
    let rig = Rig::new();
    for bytes in LENGTHS {
        rig.put(1, bytes).await;
        let length = fs::metadata(rig.file(1)).unwrap().len() as usize;
        for at in [0, 9, 20, 40, length / 2, length - 1] {
            rig.put(1, bytes).await;
            let before = rig.corruptions();
            rig.damage(1, |file| file[at] ^= 4);
            let found = rig.read(1).await;
            // Byte 9 is the version's: somebody else's file, left alone. Behind the first chunk a reader has begun.
            let wanted: &[_] = if at == 9 { &["stale"] } else { &["corrupt", "fault: corrupt"] };
            assert!(matches!(found, Err(why) if wanted.contains(&why)), "{at} of {length}: {found:?}");
            assert_eq!(rig.corruptions() - before, u64::from(at != 9));
        }
    }
}

#[tokio::test]
async fn cut_grown_emptied_zeroed_and_swapped_files_are_damaged_ones() {
    let rig = Rig::new();
    let cases: [fn(&mut Vec<u8>); 6] = [
        |file| file.truncate(file.len() - 1),
        |file| file.truncate(100),
        Vec::clear,
        |file| file.push(0),
        |file| file[..4096].fill(0),
        |file| file[5000..5512].fill(0),
    ];
    for bytes in [9000, CHUNK_BYTES + 9000] {
        for (case, damage) in cases.into_iter().enumerate() {
            rig.put(1, bytes).await;
            rig.damage(1, damage);
            let found = rig.read(1).await;
            assert!(matches!(found, Err("corrupt" | "fault: corrupt")), "{case}: {found:?}");
            // It is aside by now, or on its way there; and never believed again.
            assert!(rig.read(1).await.is_err());
        }
    }
    rig.put(1, 5000).await;
    rig.put(2, 5000).await;
    fs::copy(rig.file(2), rig.file(1)).unwrap();
    assert_eq!(rig.read(1).await, Err("corrupt"), "a whole artifact, of another key");
    assert_eq!(rig.read(2).await, Ok(noise(2, 5000)));
    let aside = fs::read_dir(rig.folder.path().join("cache").join(format!("v{VERSION}/aside"))).unwrap().count();
    assert!((1..=16).contains(&aside), "{aside} kept");
}

#[tokio::test]
async fn a_vanished_file_is_forgotten_and_a_new_one_takes_its_place() {
    let rig = Rig::new();
    rig.put(1, 100).await;
    fs::remove_file(rig.file(1)).unwrap();
    assert_eq!(rig.read(1).await, Err("stale"));
    assert_eq!(rig.read(1).await, Err("miss"));
    assert_eq!(rig.disk.usage()[0], 0);
    rig.put(1, 200).await;
    assert_eq!(rig.read(1).await, Ok(noise(1, 200)));
}

#[tokio::test]
async fn a_folder_has_one_owner_at_a_time() {
    let rig = Rig::new();
    let path = rig.folder.path().join("cache");
    let refused = Disk::open(path.clone(), &config(), Metrics::new()).err().unwrap();
    assert!(matches!(refused, OpenError::Owned { .. }) && refused.to_string().contains("give each its own"));
    let file = rig.folder.path().join("file");
    fs::write(&file, "").unwrap();
    let refused = Disk::open(file, &config(), Metrics::new()).err().unwrap();
    assert!(refused.to_string().contains("cache.disk.path"), "{refused}");
}

#[tokio::test]
async fn what_was_being_written_is_gone_after_a_restart_and_strangers_stay() {
    let rig = Rig::new();
    rig.put(1, 100).await;
    let root = rig.folder.path().join("cache").join(format!("v{VERSION}"));
    fs::write(root.join("new/77"), "half of an artifact").unwrap();
    fs::write(root.join("ab/readme"), "no artifact").unwrap();
    fs::create_dir(rig.folder.path().join("cache/v0")).unwrap();
    let rig = rig.reopen(&config());
    assert_eq!(fs::read_dir(root.join("new")).unwrap().count(), 0);
    assert!(root.join("ab/readme").exists() && rig.folder.path().join("cache/v0").exists());
    assert_eq!((rig.disk.usage()[0], rig.read(1).await), (1, Ok(noise(1, 100))));
}

#[tokio::test]
async fn the_capacity_holds_and_files_go_with_their_entries() {
    let small = Config { capacity: ByteSize::mib(1), ..config() };
    let mut rig = Rig::with(&small, None);
    for n in 0..100 {
        rig.put(n, 50_000).await;
        let [entries, bytes, capacity] = rig.disk.usage();
        assert!(bytes <= capacity && entries as usize == rig.files());
    }
    assert!(rig.counted(r#"latentgate_cache_evictions_total{tier="disk",reason="size"}"#) >= 80);
    let too_large = rig.disk.put(Artifact::sample(200, noise(200, 2 << 20))).await;
    assert!(matches!(too_large, Err(Refused::NoRoom { .. })));
    rig = rig.reopen(&Config { capacity: ByteSize::kib(300), ..small });
    let [entries, bytes, _] = rig.disk.usage();
    assert!(bytes <= 300 << 10 && entries as usize == rig.files() && entries > 0, "a lower capacity holds at once");
}

#[tokio::test]
async fn free_space_is_left_to_others() {
    let greedy = Config { min_free: ByteSize::pib(100), ..config() };
    let rig = Rig::with(&greedy, None);
    let refused = rig.disk.put(Artifact::sample(1, noise(1, 100))).await.unwrap_err();
    assert!(refused.to_string().contains("cache.disk.min_free"), "{refused}");
    assert_eq!((rig.read(1).await, rig.files()), (Err("miss"), 0));
}

/// A disk that fails one operation, by its number, while that is set; 255 is none.
fn failing(kind: io::ErrorKind) -> (Faults, Arc<AtomicU8>) {
    let which = Arc::new(AtomicU8::new(u8::MAX));
    let told = which.clone();
    let faults: Faults =
        Arc::new(
            move |operation| {
                if told.load(Ordering::SeqCst) == operation as u8 { Err(io::Error::from(kind)) } else { Ok(()) }
            },
        );
    (faults, which)
}

#[tokio::test]
async fn a_write_that_fails_anywhere_leaves_what_was_there_and_nothing_else() {
    let (faults, which) = failing(io::ErrorKind::ReadOnlyFilesystem);
    let rig = Rig::with(&Config { sync: Sync::Always, ..config() }, Some(faults));
    rig.put(1, 5000).await;
    for operation in [Operation::Create, Operation::Write, Operation::Rename] {
        which.store(operation as u8, Ordering::SeqCst);
        let refused = rig.disk.put(Artifact::sample(1, noise(9, 6000))).await;
        assert!(matches!(refused, Err(Refused::Failed(_))), "{operation:?}: {refused:?}");
        let new = rig.folder.path().join("cache").join(format!("v{VERSION}/new"));
        assert_eq!(fs::read_dir(new).unwrap().count(), 0, "{operation:?}");
        assert!(rig.read(1).await == Ok(noise(1, 5000)), "{operation:?}");
        assert_eq!(rig.counted(r#"latentgate_cache_degraded{tier="disk"}"#), 1);
        which.store(u8::MAX, Ordering::SeqCst);
        rig.put(1, 5000).await;
        assert_eq!(rig.counted(r#"latentgate_cache_degraded{tier="disk"}"#), 0, "well again");
    }
}

#[tokio::test]
async fn a_disk_that_cannot_be_read_is_left_alone_and_tried_again() {
    let (faults, which) = failing(io::ErrorKind::Other);
    let calls = Arc::new(AtomicU8::new(0));
    let counted = calls.clone();
    let counting: Faults = Arc::new(move |operation| {
        if operation == Operation::Open {
            counted.fetch_add(1, Ordering::SeqCst);
        }
        faults(operation)
    });
    let rig = Rig::with(&Config { rest_time: Duration::from_mins(1), ..config() }, Some(counting));
    rig.put(1, 5000).await;
    which.store(Operation::Read as u8, Ordering::SeqCst);
    for _ in 0..10 {
        assert_eq!(rig.read(1).await, Err("throttled"));
    }
    assert_eq!(calls.load(Ordering::SeqCst), 3, "three failures are no accident any more");
    which.store(u8::MAX, Ordering::SeqCst);
    assert_eq!(rig.read(1).await, Err("throttled"), "it rests");
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(61)).await;
    tokio::time::resume();
    assert_eq!(rig.read(1).await, Ok(noise(1, 5000)));
    assert_eq!(rig.counted(r#"latentgate_cache_degraded{tier="disk"}"#), 0);
}

#[tokio::test]
async fn a_disk_that_hangs_delays_nobody_for_long() {
    let (gate, opened) = std::sync::mpsc::channel::<()>();
    let opened = Mutex::new(opened);
    let faults: Faults = Arc::new(move |operation| {
        if operation == Operation::Open {
            let _ = opened.lock().recv();
        }
        Ok(())
    });
    let rig = Rig::with(&Config { read_time: Duration::from_millis(50), ..config() }, Some(faults));
    rig.put(1, 100).await;
    assert_eq!(rig.read(1).await, Err("throttled"));
    drop(gate);
    assert_eq!(rig.read(1).await, Ok(noise(1, 100)));
}

#[tokio::test]
async fn a_disk_that_hangs_midway_is_left_in_time_too() {
    let (gate, opened) = std::sync::mpsc::channel::<()>();
    let (opened, reads) = (Mutex::new(opened), AtomicU8::new(0));
    let faults: Faults = Arc::new(move |operation| {
        if operation == Operation::Read && reads.fetch_add(1, Ordering::SeqCst) == 3 {
            let _ = opened.lock().recv();
        }
        Ok(())
    });
    let rig = Rig::with(&Config { read_time: Duration::from_millis(50), ..config() }, Some(faults));
    rig.put(1, 3 * CHUNK_BYTES).await;
    assert_eq!(rig.read(1).await, Err("fault: unreadable"));
    drop(gate);
    assert_eq!(rig.read(1).await, Ok(noise(1, 3 * CHUNK_BYTES)));
}

#[tokio::test]
async fn who_takes_nothing_gives_the_turn_back_in_time() {
    let rig = Rig::new();
    rig.put(1, 12 * CHUNK_BYTES).await;
    let Lookup::Hit(mut slow) = rig.disk.get(ContentKey::sample(1)).await else { panic!("it is there") };
    let turns = &rig.disk.0.turns;
    assert_eq!(turns.available_permits(), READS - 1);
    tokio::time::pause();
    while turns.available_permits() < READS {
        tokio::time::advance(TAKEN_WITHIN / 4).await;
        std::thread::yield_now();
    }
    tokio::time::resume();
    let mut chunks = 0;
    let end = loop {
        match slow.next().await {
            Ok(Some(_)) => chunks += 1,
            end => break end,
        }
    };
    assert!((2..12).contains(&chunks) && end == Err(crate::cache::tier::Fault::Unreadable), "{chunks} {end:?}");
}

#[tokio::test]
async fn a_sweep_meets_every_entry_once_and_ends_when_it_is_told_to() {
    let rig = Rig::new();
    for (n, bytes) in (0u8..).zip(LENGTHS) {
        rig.put(n, bytes).await;
    }
    rig.damage(5, |file| *file.last_mut().unwrap() ^= 1);
    for depth in [Depth::Key, Depth::Head] {
        let mut met = Vec::new();
        let end = rig.disk.sweep(depth, |entry, found| {
            let is_head = matches!(found, Found::Whole(head) if head.subject.key == entry.key);
            assert_eq!(is_head, depth == Depth::Head, "no head is damaged");
            met.push(entry.key);
            ControlFlow::Continue(())
        });
        met.sort_unstable();
        assert!(end.is_continue() && met.len() == LENGTHS.len());
        met.dedup();
        assert_eq!(met.len(), LENGTHS.len(), "each once");
    }
    let mut damaged = Vec::new();
    let end = rig.disk.sweep(Depth::Whole, |entry, found| {
        damaged.extend(matches!(found, Found::Damaged(_)).then_some(entry.key));
        ControlFlow::Continue(())
    });
    assert!(end.is_continue());
    for key in &damaged {
        assert!(rig.disk.take_out(key).unwrap().is_some_and(|bytes| bytes >= index::BLOCK));
        assert_eq!(rig.disk.take_out(key).unwrap(), None, "it is gone");
    }
    let mut met = 0;
    let end = rig.disk.sweep(Depth::Whole, |_, _| {
        met += 1;
        ControlFlow::Break(())
    });
    assert_eq!((end, met), (ControlFlow::Break(()), 1));
    assert_eq!(damaged, [ContentKey::sample(5)]);
    assert_eq!((rig.files(), rig.read(5).await), (LENGTHS.len() - 1, Err("miss")));
}

/// One step of a life.
#[derive(Clone, Debug)]
enum Step {
    Put(u8, usize),
    Get(u8),
    Remove(u8),
    Flip(u8, usize),
    Truncate(u8, usize),
    Vanish(u8),
    FailWrites(bool),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let key = || 0u8..12;
    prop_oneof![
        4 => (key(), 0usize..200_000).prop_map(|(n, bytes)| Step::Put(n, bytes)),
        4 => key().prop_map(Step::Get),
        1 => key().prop_map(Step::Remove),
        1 => (key(), any::<usize>()).prop_map(|(n, at)| Step::Flip(n, at)),
        1 => (key(), any::<usize>()).prop_map(|(n, at)| Step::Truncate(n, at)),
        1 => key().prop_map(Step::Vanish),
        1 => any::<bool>().prop_map(Step::FailWrites),
        1 => Just(Step::Reopen),
    ]
}

/// What may be there: a map from a key to the length of the last artifact that was taken in whole.
type Model = HashMap<u8, usize>;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// A hit is always the last artifact taken in; a miss is always allowed to an evicted, damaged or vanished one, and to
    /// no other.
    #[test]
    fn it_is_a_map_that_forgets_and_never_lies(steps in prop::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(live(steps));
    }
}

async fn live(steps: Vec<Step>) {
    let small = Config { capacity: ByteSize::kib(700), ..config() };
    let (faults, which) = failing(io::ErrorKind::StorageFull);
    let mut rig = Rig::with(&small, Some(faults));
    let (mut model, mut hurt) = (Model::new(), Vec::new());
    for step in steps {
        match step {
            Step::Put(n, bytes) => match rig.disk.put(Artifact::sample(n, noise(n, bytes))).await {
                Ok(()) => {
                    model.insert(n, bytes);
                    hurt.retain(|&other| other != n);
                }
                Err(_) => assert_eq!(which.load(Ordering::SeqCst), Operation::Write as u8),
            },
            Step::Get(n) => match (rig.read(n).await, model.get(&n)) {
                (Ok(got), Some(&bytes)) => assert!(!hurt.contains(&n) && got == noise(n, bytes)),
                (Ok(_), None) => panic!("{n} was never taken in, or was removed"),
                // Evicted, or hurt: from now on it must stay away.
                (Err(_), _) => drop(model.remove(&n)),
            },
            Step::Remove(n) => {
                rig.disk.remove(ContentKey::sample(n)).await;
                model.remove(&n);
            }
            Step::Flip(n, at) if rig.file(n).exists() => {
                rig.damage(n, |file| {
                    let at = at % file.len();
                    file[at] ^= 0x40;
                });
                // Twice in the same place is no damage.
                let was_hurt = hurt.contains(&n);
                hurt.push(n);
                if was_hurt {
                    rig.disk.remove(ContentKey::sample(n)).await;
                    model.remove(&n);
                }
            }
            Step::Truncate(n, at) if rig.file(n).exists() => {
                rig.damage(n, |file| file.truncate(at % file.len()));
                hurt.push(n);
            }
            Step::Vanish(n) => drop(fs::remove_file(rig.file(n))),
            Step::FailWrites(fail) => {
                which.store(if fail { Operation::Write as u8 } else { u8::MAX }, Ordering::SeqCst);
            }
            Step::Reopen => {
                let Rig { folder, disk, .. } = rig;
                drop(disk);
                let told = which.clone();
                let faults: Faults = Arc::new(move |operation| {
                    let fails = told.load(Ordering::SeqCst) == operation as u8;
                    if fails { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
                });
                let (disk, metrics) = open(&folder, &small, Some(faults));
                rig = Rig { folder, disk, metrics };
            }
            Step::Flip(..) | Step::Truncate(..) => {}
        }
        let [entries, bytes, capacity] = rig.disk.usage();
        assert!(bytes <= capacity && entries as usize >= rig.files().saturating_sub(hurt.len()));
    }
}
