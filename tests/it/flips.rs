//! Damage by the thousand to what the disk tier has stored: flipped bits, cut files, swapped ones, zeroed blocks. Not one
//! wrong byte comes out, and each is counted.
//!
//! 1000 of them here; `LATENTGATE_FLIPS=10000` has more.

use std::{fs, path::PathBuf, sync::Arc, time::SystemTime};

use bytes::Bytes;
use latentgate::{
    artifact::{Artifact, Subject},
    body::Body,
    cache::{
        disk::{Config, Disk},
        tier::{Lookup, Tier as _},
    },
    key::ContentKey,
    meta::{ContentType, Meta, Provenance},
    metrics::Metrics,
    model::{ModelId, Task},
    tensor::{DType, Shape},
};
use tempfile::TempDir;

const ROUNDS: u64 = 1000;

/// From less than a block to several chunks.
const LENGTHS: [usize; 6] = [1, 700, 5000, 65_000, 1 << 20, 3_300_000];

/// What is stored, and where.
struct Entry {
    artifact: Arc<Artifact>,
    payload: Vec<u8>,
    file: PathBuf,
    /// The file as it was written.
    whole: Vec<u8>,
}

fn artifact(n: u8, payload: &[u8]) -> Arc<Artifact> {
    let meta = Meta {
        content_type: ContentType::Tensor,
        dtype: DType::U8,
        shape: Shape::try_new(&[payload.len()]).unwrap(),
        length: payload.len() as u64,
        provenance: Provenance::none("test"),
    };
    let (key, model) = (ContentKey::from_bytes([n; 32]), ModelId::try_new("model").unwrap());
    let subject = Subject { key, model, task: Task::Decode, made: SystemTime::now() };
    let (mut writer, body) = Body::channel();
    writer.begin(meta.clone()).unwrap();
    writer.append(Bytes::copy_from_slice(payload)).unwrap();
    let seal = writer.finish(|_, _, _| {}).unwrap();
    Artifact::of(subject, &meta, seal, &body)
}

async fn stored(disk: &Disk, random: &mut fastrand::Rng) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (n, length) in (0u8..).zip(LENGTHS) {
        let payload: Vec<u8> = (0..length).map(|_| random.u8(..)).collect();
        let artifact = artifact(n, &payload);
        disk.put(artifact.clone()).await.unwrap();
        let name = artifact.key().to_string();
        let file = disk.path().join("v1").join(&name[..2]).join(&name[2..]);
        let whole = fs::read(&file).unwrap();
        entries.push(Entry { artifact, payload, file, whole });
    }
    entries
}

/// Another file than `entries[which]` is, and what was done to it.
fn damaged(entries: &[Entry], which: usize, random: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = entries[which].whole.clone();
    let at = random.usize(..bytes.len());
    match random.u8(..8) {
        0 => bytes.truncate(at),
        1 => bytes.clone_from(&entries[(which + random.usize(1..entries.len())) % entries.len()].whole),
        2 => {
            let end = (at + 512).min(bytes.len());
            bytes[at..end].fill(0);
        }
        _ => bytes[at] ^= 1 << random.u8(..8),
    }
    bytes
}

/// What comes out before the end, and whether the end looks right.
async fn read(disk: &Disk, key: ContentKey) -> (Vec<u8>, bool) {
    let Lookup::Hit(mut stored) = disk.get(key).await else { return (Vec::new(), false) };
    let mut got = Vec::new();
    loop {
        match stored.next().await {
            Ok(Some(chunk)) => got.extend_from_slice(&chunk),
            Ok(None) => return (got, true),
            Err(_) => return (got, false),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_thousand_damaged_files_none_gives_one_wrong_byte() {
    let rounds = std::env::var("LATENTGATE_FLIPS").map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    let (folder, metrics, mut random) = (TempDir::new().unwrap(), Metrics::new(), fastrand::Rng::with_seed(7));
    let config = Config { min_free: bytesize::ByteSize(0), ..Config::default() };
    let disk = Disk::open(folder.path().to_owned(), &config, metrics.clone()).unwrap();
    let entries = stored(&disk, &mut random).await;
    let (mut damages, mut foreign) = (0, 0);
    for round in 0..rounds {
        let which = random.usize(..entries.len());
        let Entry { artifact, payload, file, whole } = &entries[which];
        let bytes = damaged(&entries, which, &mut random);
        if bytes == *whole {
            continue;
        }
        damages += 1;
        // The version says whose format it is: another one is nobody's damage.
        foreign += u64::from(bytes.len() >= 24 && bytes[..8] == whole[..8] && bytes[8..12] != whole[8..12]);
        fs::write(file, bytes).unwrap();
        let (got, looks_whole) = read(&disk, *artifact.key()).await;
        assert!(payload.starts_with(&got), "round {round}: a wrong byte");
        assert!(!looks_whole, "round {round}: damage that nobody noticed");
        disk.put(artifact.clone()).await.unwrap();
        let (got, looks_whole) = read(&disk, *artifact.key()).await;
        assert!(got == *payload && looks_whole, "round {round}: made anew");
    }
    let text = metrics.render();
    let counted = text.lines().find_map(|line| line.strip_prefix("latentgate_cache_corruptions_total{tier=\"disk\"} "));
    assert_eq!(counted.unwrap().parse::<u64>().unwrap() + foreign, damages);
    println!("{damages} damaged files, {foreign} of them in the format's version: none gave a wrong byte");
}
