//! `kill -9` at random moments of a process that writes: afterwards everything whose write was finished is a hit, nothing
//! that is served is torn, and nothing half-written stays.
//!
//! A few rounds here; `LATENTGATE_KILL_ROUNDS=200` has more.

use std::{collections::HashMap, fs, path::Path, time::Duration};

use latentgate::proto::{CachePolicy, DecodeSpec, Source};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{
    Client, decode_spec, latents,
    program::{Program, signal},
};

const ROUNDS: u32 = 6;

/// A process, its client, its admin port.
struct Victim {
    program: Program,
    client: Client,
}

impl Victim {
    async fn start(folder: &Path) -> Self {
        let config = format!(
            "route.backends = [\"local\"]\nlog.access = false\ncache.memory.capacity = \"0B\"\n\
             cache.disk = {{ path = \"{}\", min_free = \"0B\" }}\n",
            folder.display()
        );
        let program = Program::start(&config).await;
        Self { client: program.client().await, program }
    }

    async fn ask(&self, seed: u32, policy: CachePolicy) -> Option<(Source, Vec<u8>)> {
        let spec = DecodeSpec { cache: policy as i32, ..decode_spec(6, 6) };
        let answer = self.client.decode(spec, latents(6, 6, seed)).await.ok()?;
        Some((answer.source(), answer.bytes()))
    }

    async fn is_written(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(self.program.admin).await else { return false };
        let mut text = String::new();
        let asked = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
        asked.is_ok()
            && stream.read_to_string(&mut text).await.is_ok()
            && text.contains("latentgate_cache_fill_queue_bytes{tier=\"disk\"} 0\n")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_killed_loses_nothing_that_was_written_and_leaves_nothing_torn() {
    let rounds = std::env::var("LATENTGATE_KILL_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    let folder = TempDir::new().unwrap();
    let (mut right, mut finished) = (HashMap::<u32, Vec<u8>>::new(), Vec::new());
    let mut seed = 0;
    for round in 0..rounds {
        let victim = Victim::start(folder.path()).await;
        let new = folder.path().join("v1/new");
        assert_eq!(fs::read_dir(new).unwrap().count(), 0, "round {round}: something half-written is still there");
        for &seed in &finished {
            let (source, bytes) = victim.ask(seed, CachePolicy::OnlyIfCached).await.unwrap_or_else(|| {
                panic!("round {round}: {seed} was written and is not there");
            });
            assert_eq!((source, &bytes), (Source::Disk, &right[&seed]), "round {round}");
        }
        // What may have been lost is made anew, or is whole.
        for (&seed, right) in right.iter().filter(|(seed, _)| !finished.contains(seed)) {
            let (_, bytes) = victim.ask(seed, CachePolicy::Default).await.unwrap();
            assert_eq!(bytes, *right, "round {round}");
        }
        // Some answers, written; then others, in the midst of whose writing it is killed.
        for _ in 0..4 {
            seed += 1;
            right.insert(seed, victim.ask(seed, CachePolicy::Default).await.unwrap().1);
        }
        while !victim.is_written().await {}
        finished = right.keys().copied().collect();
        let mut victim = victim;
        let delay = Duration::from_micros(u64::from(round * 7919 % 40_000));
        let pid = victim.program.child.id();
        let killer = std::thread::spawn(move || {
            std::thread::sleep(delay);
            signal(pid, "KILL");
        });
        while let Some((_, bytes)) = victim.ask(seed + 1, CachePolicy::Default).await {
            seed += 1;
            right.insert(seed, bytes);
        }
        killer.join().unwrap();
        victim.program.child.wait().unwrap();
        // Bounded, or a long run would ask for more and more.
        if finished.len() > 40 {
            finished.clear();
            right.clear();
        }
    }
}
