//! The start of the disk tier on a folder of a million artifacts: how long until it serves, and until it knows them all.
//!
//! Names are all that the start looks at, so the files are empty; what is measured is the file system's listing and the
//! index. Takes about a minute and a million inodes in the folder for temporary files (`TMPDIR`). Left out of a plain
//! `cargo bench`: `cargo bench --bench start -- run`.

use std::fs;

use anyhow::ensure;
use latentgate::{
    artifact::envelope::VERSION,
    cache::disk::{Config, Disk},
    metrics::Metrics,
};
use tokio::time::Instant;

const ENTRIES: u64 = 1_000_000;
/// What is wanted of the second time.
const GOAL_SECONDS: f64 = 10.0;

#[expect(clippy::print_stdout, reason = "a bench talks to people")]
fn main() -> anyhow::Result<()> {
    if !std::env::args().any(|argument| argument == "run") {
        println!("start: say `run`: it makes {ENTRIES} files");
        return Ok(());
    }
    let folder = tempfile::TempDir::new()?;
    let config = Config { capacity: bytesize::ByteSize::tib(1), ..Config::default() };
    let open = || Disk::open(folder.path().to_owned(), &config, Metrics::new());
    // The shelves.
    drop(open()?);
    for n in 0..ENTRIES {
        let name = blake3::hash(&n.to_le_bytes()).to_hex();
        fs::write(folder.path().join(format!("v{VERSION}/{}/{}", &name[..2], &name[2..])), b"")?;
    }
    for round in 1..=3 {
        let began = Instant::now();
        let disk = open()?;
        let serves = began.elapsed();
        while !disk.is_scanned() {
            std::thread::yield_now();
        }
        let known = began.elapsed();
        ensure!(disk.usage()[0] == ENTRIES, "{:?}", disk.usage());
        let verdict = if known.as_secs_f64() <= GOAL_SECONDS { "reached" } else { "missed" };
        println!(
            "start {round}: serves after {:.1} ms, knows {ENTRIES} entries after {:.2} s   goal: at most {GOAL_SECONDS} s: {verdict}",
            serves.as_secs_f64() * 1e3,
            known.as_secs_f64()
        );
        // The scan's own thread lets go of the folder a little later.
        disk.close();
    }
    Ok(())
}
