//! The built program, serving with a configuration of a test's own, and everything it logs.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
};

use tempfile::NamedTempFile;
use tokio::sync::watch;

use super::{Client, PATIENCE, http};

/// A running `latentgate serve`. Killed if a test fails before it ends it.
pub struct Program {
    pub child: Child,
    pub data: SocketAddr,
    pub admin: SocketAddr,
    log: watch::Receiver<Vec<String>>,
    /// Removed with it.
    own_config: Option<NamedTempFile>,
}

/// The program, with nothing of what the person who runs the tests has configured.
pub fn latentgate() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_latentgate"));
    for (name, _) in std::env::vars_os() {
        if ["LATENTGATE", "HF_TOKEN", "OTEL"].iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command
}

impl Program {
    pub async fn start(config: &str) -> Self {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(config.as_bytes()).unwrap();
        let mut program = Self::of_file(file.path()).await;
        program.own_config = Some(file);
        program
    }

    /// The same with a configuration that somebody else keeps.
    pub async fn of_file(config: &Path) -> Self {
        let mut command = latentgate();
        command.arg("--config").arg(config).args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        #[allow(clippy::zombie_processes, reason = "`terminate` and `Drop` wait for it")]
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let (lines, log) = watch::channel(Vec::new());
        let errors = child.stderr.take().unwrap();
        thread::spawn(move || {
            for line in BufReader::new(errors).lines().map_while(Result::ok) {
                lines.send_modify(|log: &mut Vec<String>| log.push(line));
            }
        });
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut program = Self { child, data: nowhere, admin: nowhere, log, own_config: None };
        let line = program.until_line(|line| line.contains("serving")).await;
        [program.data, program.admin] = ["data", "admin"].map(|name| address(&line, name));
        program
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.data).await
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        self.log.borrow().join("\n")
    }

    /// Waits for lines that are such, and gives them once there are so many.
    pub async fn until_lines(&mut self, count: usize, is_such: impl Fn(&str) -> bool) -> Vec<String> {
        let such = |log: &Vec<String>| log.iter().filter(|line| is_such(line)).cloned().collect::<Vec<_>>();
        let reached = self.log.wait_for(|log| such(log).len() >= count);
        if let Ok(Ok(log)) = tokio::time::timeout(PATIENCE, reached).await {
            return such(&log);
        }
        panic!("waited for {count} lines in:\n{}", self.log());
    }

    pub async fn until_line(&mut self, is_such: impl Fn(&str) -> bool) -> String {
        self.until_lines(1, is_such).await.remove(0)
    }

    /// One exchange with the admin port: the status and the body.
    pub async fn admin(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let answer =
            http::raw(self.admin, &http::request(method, path, &[], body.as_bytes())).await.expect("an answer");
        (answer.status, String::from_utf8_lossy(&answer.body).into_owned())
    }

    /// The value of the one sample of a metric that has this label.
    pub async fn metric(&self, name: &str, label: &str) -> f64 {
        let (_, page) = self.admin("GET", "/metrics", "").await;
        let sample = page.lines().find(|line| line.starts_with(name) && line.contains(label));
        sample.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_default()
    }

    /// Waits until a metric is so much, or more.
    pub async fn until_metric(&self, name: &str, label: &str, least: f64) {
        let reached = async { while self.metric(name, label).await < least {} };
        let in_time = tokio::time::timeout(PATIENCE, reached).await.is_ok();
        assert!(in_time, "{name}{{{label}}} did not reach {least}:\n{}", self.log());
    }

    /// `TERM`, `KILL`, `HUP`.
    pub fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    /// SIGTERM, and the log of its whole life once it has ended in order.
    pub async fn terminate(mut self) -> String {
        self.signal("TERM");
        self.until_line(|line| line.contains("stopped")).await;
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        self.log()
    }
}

/// Sends a signal to a process that is there.
pub fn signal(pid: u32, name: &str) {
    let sent = Command::new("kill").args(["-s", name, &pid.to_string()]).status();
    assert!(sent.unwrap().success(), "SIG{name}");
}

impl Drop for Program {
    fn drop(&mut self) {
        // Gone already, unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `name=ADDRESS` or `"name":"ADDRESS"`.
fn address(line: &str, name: &str) -> SocketAddr {
    let json = format!("\"{name}\":\"");
    let found = line.split_once(&json).and_then(|(_, rest)| rest.split('"').next());
    let found = found.or_else(|| line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('=')));
    found.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no {name} in {line}"))
}
