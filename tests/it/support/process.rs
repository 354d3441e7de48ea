//! The real program as a process of its own.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
};

/// A serving process on ephemeral ports. Killed when dropped.
pub struct Process {
    pub child: Child,
    pub data: SocketAddr,
    pub admin: SocketAddr,
}

impl Process {
    /// Starts it, by no variables of ours but those that `configure` sets.
    pub fn serve(configure: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_latentgate"));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LATENTGATE")) {
            command.env_remove(name);
        }
        command.args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]).stderr(Stdio::piped());
        command.env("LATENTGATE__ROUTE__BACKENDS", "[local]");
        configure(&mut command);
        #[allow(clippy::zombie_processes, reason = "`Drop` waits for it")]
        let mut child = command.spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let (mut seen, mut addresses) = (String::new(), [None, None]);
        while addresses[0].is_none() {
            let start = seen.len();
            assert_ne!(log.read_line(&mut seen).unwrap(), 0, "it ended before it served:\n{seen}");
            addresses = ["data=", "admin="].map(|name| {
                let mut words = seen[start..].split_whitespace();
                words.find_map(|word| word.strip_prefix(name)).map(str::to_owned)
            });
        }
        // Its log goes on, and nobody else reads it.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        let [data, admin] = addresses.map(|address| address.unwrap().parse().unwrap());
        Self { child, data, admin }
    }

    /// `TERM`, `KILL`, `HUP`.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status();
        assert!(sent.unwrap().success(), "SIG{name}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
