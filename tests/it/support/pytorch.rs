//! What tests share with PyTorch: the tiny checkpoints that it loads too, and an endpoint that it answers.

use std::{
    ffi::OsString,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use latentgate::Config;

use super::{config, http};

/// The folder of fixtures.
pub fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// A program of `tests/clients`.
pub fn client(program: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(program)
}

/// The tiny checkpoints, under the names that the client uses.
pub fn with_models() -> Config {
    let mut config = config();
    for (name, folder) in [("sd1", "sd1"), ("sdxl", "sdxl"), ("flux-tiny", "flux")] {
        let model = config.models.entry(name.to_owned()).or_default();
        model.weights = Some(fixtures().join("models").join(folder));
    }
    config
}

/// The interpreter that has torch and diffusers; says plainly when there is none.
pub fn python(test: &str) -> Option<OsString> {
    let python = std::env::var_os("LATENTGATE_PYTHON").filter(|path| !path.is_empty());
    if python.is_none() {
        println!("{test}: NOT RUN, LATENTGATE_PYTHON names no interpreter with torch and diffusers");
    }
    python
}

/// `tests/clients/endpoint.py` with the checkpoint `sd1`, a process of its own. Killed when dropped.
pub struct Endpoint {
    child: Child,
    pub address: SocketAddr,
}

impl Endpoint {
    /// One for each task, once all of them answer. Blocks while they start: PyTorch takes seconds.
    pub fn start<const N: usize>(python: &OsString, tasks: [&str; N]) -> [Self; N] {
        let start = |task: &str| {
            let mut command = Command::new(python);
            command.arg(client("endpoint.py")).args(["--task", task, "--port", "0"]);
            command.arg("--model").arg(fixtures().join("models/sd1"));
            let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("the interpreter runs");
            Self { child, address: SocketAddr::from(([127, 0, 0, 1], 0)) }
        };
        tasks.map(start).map(Self::started)
    }

    fn started(mut self) -> Self {
        let stdout = self.child.stdout.take().expect("stdout is piped");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).expect("a line of text");
        self.address.set_port(line.trim().parse().expect("endpoint.py says its port once it answers"));
        self
    }

    /// Stops the process where it is: its port takes connections, nobody answers.
    pub fn pause(&self) {
        self.signal("-STOP");
    }

    pub fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(status.expect("`kill` runs").success(), "kill {signal}");
    }

    /// Requests that have come so far.
    pub async fn count(&self) -> usize {
        let answer = http::raw(self.address, &http::request("GET", "/", &[], b"")).await.expect("an answer");
        answer.header("count").and_then(|count| count.parse().ok()).expect("a count")
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        // Gone already, if it has failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
