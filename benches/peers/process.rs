//! A server's process: started on its core, its processor time told with that of its children, ended in order.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use tokio::time::Instant;

/// A server that is not there after this does not come.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);

/// A running server.
pub(crate) struct Process {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

/// Processor time so far, thread by thread.
pub(crate) struct Spent(BTreeMap<u32, Duration>);

/// Pins this process to a core.
pub(crate) fn stay_on(core: usize) -> anyhow::Result<()> {
    let pinned = Command::new("taskset").args(["-cp", &core.to_string(), &std::process::id().to_string()]).output()?;
    ensure!(pinned.status.success(), "taskset: {}", String::from_utf8_lossy(&pinned.stderr));
    Ok(())
}

impl Process {
    /// Starts `program` on a core, what it says going to a file of `folder`, and waits until it accepts connections.
    pub(crate) fn start(
        name: &'static str,
        core: usize,
        (program, configure): (&str, impl FnOnce(&mut Command)),
        folder: &Path,
        addresses: &[SocketAddr],
    ) -> anyhow::Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let mut command = Command::new("taskset");
        command.args(["-c", &core.to_string(), program]);
        configure(&mut command);
        command.stdin(Stdio::null()).stdout(File::create(&log)?).stderr(File::options().append(true).open(&log)?);
        let child = command.spawn().with_context(|| format!("{name} does not start"))?;
        let mut process = Self { name, child, log };
        addresses.iter().try_for_each(|address| process.wait_for(*address))?;
        Ok(process)
    }

    fn wait_for(&mut self, address: SocketAddr) -> anyhow::Result<()> {
        let began = Instant::now();
        while TcpStream::connect(address).is_err() {
            if self.child.try_wait()?.is_some() || began.elapsed() > PATIENCE {
                bail!("{} does not come up:\n{}", self.name, fs::read_to_string(&self.log)?);
            }
            sleep(PAUSE);
        }
        Ok(())
    }

    /// Processor time of it and its children so far, in nanoseconds as the scheduler counts them.
    pub(crate) fn spent(&self) -> anyhow::Result<Spent> {
        let mut all = vec![self.child.id()];
        let mut threads = BTreeMap::new();
        while let Some(process) = all.pop() {
            for thread in fs::read_dir(format!("/proc/{process}/task"))?.flatten() {
                let path = thread.path();
                // A thread may end between the two.
                let Ok(statistics) = fs::read_to_string(path.join("schedstat")) else { continue };
                let spent = statistics.split(' ').next().and_then(|ns| ns.parse().ok()).map(Duration::from_nanos);
                let id = thread.file_name().to_string_lossy().parse()?;
                threads.insert(id, spent.context("no processor time in /proc/PID/task/TID/schedstat")?);
                let children = fs::read_to_string(path.join("children")).unwrap_or_default();
                all.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
            }
        }
        Ok(Spent(threads))
    }
}

impl Spent {
    /// What was spent since `before`, by the threads that are left.
    pub(crate) fn since(&self, before: &Self) -> Duration {
        let of = |(id, now): (&u32, &Duration)| now.saturating_sub(before.0.get(id).copied().unwrap_or_default());
        self.0.iter().map(of).sum()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SIGTERM, so that it ends its children; std can only kill.
        let told = Command::new("kill").arg(self.child.id().to_string()).status();
        if told.is_err() {
            self.child.kill().ok();
        }
        self.child.wait().ok();
    }
}
