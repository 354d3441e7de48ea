use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use parking_lot::{Condvar, Mutex};

use super::*;
use crate::{
    cache::{
        disk::{self, Faults, Operation},
        memory,
        tier::Tier as _,
    },
    key::ContentKey,
    metrics::Metrics,
    model::{ModelId, Task},
};

/// Holds one kind of operation on a disk until it is opened.
struct Gate {
    operation: Operation,
    held: AtomicU64,
    is_open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn before(operation: Operation) -> Arc<Self> {
        Arc::new(Self { operation, held: AtomicU64::new(0), is_open: Mutex::new(false), opened: Condvar::new() })
    }

    fn faults(self: &Arc<Self>) -> Faults {
        let gate = self.clone();
        Arc::new(move |operation| -> io::Result<()> {
            if operation == gate.operation {
                gate.held.fetch_add(1, Ordering::SeqCst);
                let mut is_open = gate.is_open.lock();
                while !*is_open {
                    gate.opened.wait(&mut is_open);
                }
            }
            Ok(())
        })
    }

    /// Waits until an operation has come.
    async fn until_held(&self) {
        while self.held.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    }

    fn open(&self) {
        *self.is_open.lock() = true;
        self.opened.notify_all();
    }
}

/// An inventory with so many artifacts on disk, all of which are known.
async fn inventory(folder: &Path, gate: &Arc<Gate>, artifacts: u8) -> (Inventory, CancellationToken) {
    let metrics = Metrics::new();
    let disk =
        Disk::open_with(folder.to_owned(), &disk::Config::default(), metrics.clone(), Some(gate.faults())).unwrap();
    for n in 0..artifacts {
        disk.put(Artifact::sample(n, vec![n; 100])).await.unwrap();
    }
    while !disk.is_scanned() {
        tokio::task::yield_now().await;
    }
    let stop = CancellationToken::new();
    let memory = Memory::new(&memory::Config::default(), metrics);
    (Inventory::new(memory, Some(disk), Vec::new(), stop.clone()), stop)
}

async fn all<T>(mut telling: Telling<T>) -> Vec<Result<T, Error>> {
    let mut told = Vec::new();
    while let Some(one) = telling.next().await {
        told.push(one);
    }
    told
}

#[tokio::test]
async fn one_sweep_runs_at_a_time_and_who_leaves_gives_the_turn_back() {
    let (folder, gate) = (tempfile::tempdir().unwrap(), Gate::before(Operation::Read));
    let (inventory, _stop) = inventory(folder.path(), &gate, 3).await;
    let first = inventory.verify(Repair::Leave).unwrap();
    let second = inventory.verify(Repair::Leave).err().unwrap();
    assert_eq!(second.kind(), ErrorKind::Overloaded);
    assert_eq!(inventory.purge(Selection::All).err().unwrap().kind(), ErrorKind::Overloaded);
    drop(first);
    gate.open();
    let again = loop {
        match inventory.verify(Repair::Leave) {
            Ok(telling) => break telling,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let told = all(again).await;
    let Some(Ok(Verifying::Done(verified))) = told.last() else { panic!("{told:?}") };
    assert_eq!((verified.entries, verified.damaged), (3, 0));
}

#[tokio::test]
async fn what_is_purged_while_it_is_being_written_does_not_stay() {
    let (folder, gate) = (tempfile::tempdir().unwrap(), Gate::before(Operation::Write));
    let (inventory, _stop) = inventory(folder.path(), &gate, 0).await;
    let disk = inventory.0.disk.clone().unwrap();
    let fill = Fill::start(Arc::new(disk.clone()), 1 << 20, Metrics::new());
    let (writing, waiting) = (Artifact::sample(1, "being written"), Artifact::sample(2, "waiting"));
    fill.offer(writing.clone());
    gate.until_held().await;
    fill.offer(waiting.clone());
    let Inventory(shared) = &inventory;
    let inventory =
        Inventory::new(shared.memory.clone(), Some(disk.clone()), vec![fill.clone()], CancellationToken::new());
    let told = all(inventory.purge(Selection::All).unwrap()).await;
    let Some(Ok(Purging::Done(purged))) = told.last() else { panic!("{told:?}") };
    assert_eq!(purged.queue, 2);
    gate.open();
    // The end of a third shows that those before it have had theirs.
    let later = Artifact::sample(3, "later");
    fill.offer(later.clone());
    fill.drain().await;
    assert_eq!(disk.usage()[0], 1);
    assert!(inventory.give(*writing.key()).await.is_err() && inventory.give(*later.key()).await.is_ok());
}

#[tokio::test]
async fn a_drain_breaks_a_sweep_off_and_says_so() {
    let (folder, gate) = (tempfile::tempdir().unwrap(), Gate::before(Operation::Read));
    let (inventory, stop) = inventory(folder.path(), &gate, 3).await;
    let telling = inventory.verify(Repair::Leave).unwrap();
    stop.cancel();
    gate.open();
    let told = all(telling).await;
    let Some(Err(error)) = told.last() else { panic!("{told:?}") };
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(!told.iter().any(|one| matches!(one, Ok(Verifying::Done(_)))));
}

#[test]
fn what_a_purge_means_is_both_model_and_age() {
    let second = Duration::from_secs(1);
    let made = SystemTime::UNIX_EPOCH + 1000 * second;
    let model = ModelId::try_new("mine").unwrap();
    let subject = Subject { key: ContentKey::sample(1), model, task: Task::Decode, made };
    let means = |model: Option<&str>, age: Option<Duration>| {
        let wish = Wish { model: model.map(str::to_owned), older_than: age, ..Wish::default() };
        Selection::try_from(wish).unwrap().means(&subject, made + 10 * second)
    };
    assert!(means(Some("mine"), None) && !means(Some("other"), None));
    assert!(means(None, Some(10 * second)) && !means(None, Some(11 * second)));
    assert!(means(Some("mine"), Some(second)) && !means(Some("mine"), Some(20 * second)));
    assert!(!means(Some("other"), Some(second)));
}

#[test]
fn a_purge_that_names_nothing_or_contradicts_itself_is_refused() {
    let key = Some(ContentKey::sample(1));
    let model = || Some("mine".to_owned());
    for (wish, field) in [
        (Wish::default(), "filter"),
        (Wish { all: true, model: model(), ..Wish::default() }, "all"),
        (Wish { all: true, key, ..Wish::default() }, "all"),
        (Wish { key, model: model(), ..Wish::default() }, "key"),
        (Wish { model: Some("no model\n".to_owned()), ..Wish::default() }, "model"),
    ] {
        let error = Selection::try_from(wish).unwrap_err();
        assert_eq!((error.kind(), error.field_name()), (ErrorKind::BadRequest, Some(field)));
    }
}
