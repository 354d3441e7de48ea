//! Memory is bounded, measured from outside: the real process, its peak as the kernel counts it.

#![cfg(target_os = "linux")]

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, Command, Stdio},
};

use tokio::task::JoinSet;
use tonic_types::StatusExt as _;

use crate::support::{Client, decode_spec, latents, reason};

/// Payload memory the process may use.
const BUDGET_MIB: u64 = 96;
/// One 1024 x 1024 run of the builtin model (`foretell` says about 430 MiB with two threads; each more takes some
/// 5 MiB), and 110 MiB for the binary, weights, thread stacks and connection buffers; the rest is for machines with many
/// processors. The measured peak on two is 575 MiB, the budget included.
const RUN_AND_MODEL_MIB: u64 = 760;

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Server {
    fn start(config: &str) -> (Self, std::net::SocketAddr) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(config.as_bytes()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_latentgate"));
        command.arg("--config").arg(file.path()).args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        let mut server = Self(command.stderr(Stdio::piped()).spawn().unwrap());
        let log = BufReader::new(server.0.stderr.take().unwrap());
        let mut lines = log.lines().map(Result::unwrap);
        let word = |line: &str| line.split_whitespace().find_map(|word| word.strip_prefix("data=").map(str::to_owned));
        let address = lines.find_map(|line| word(&line)).expect("serve says where");
        // The pipe stays open and read, or the server would meet a closed stderr.
        std::thread::Builder::new().spawn(move || lines.for_each(drop)).unwrap();
        (server, address.parse().unwrap())
    }

    fn peak_mib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_large_decodes_against_a_small_budget_stay_within_it() {
    let config = format!(
        "[admission]\nmemory = \"{BUDGET_MIB}MiB\"\n[limits]\nmax_input = \"8MiB\"\n\
         [cache.memory]\ncapacity = \"16MiB\"\n[models.builtin]\npreload = true\n"
    );
    let (server, address) = Server::start(&config);
    let client = Client::connect(address).await;
    let mut asked = JoinSet::new();
    for seed in 0..200 {
        let client = client.clone();
        asked.spawn(async move { client.decode(decode_spec(128, 128), latents(128, 128, seed)).await });
    }
    let (mut answered, mut shed) = (0, 0);
    while let Some(joined) = asked.join_next().await {
        match joined.unwrap() {
            Ok(_) => answered += 1,
            Err(status) => {
                assert_eq!(reason(&status), (tonic::Code::ResourceExhausted, "OVERLOADED".to_owned()));
                assert!(status.get_details_retry_info().is_some());
                shed += 1;
            }
        }
    }
    let peak = server.peak_mib();
    println!("{answered} answered, {shed} shed, peak {peak} MiB");
    assert!(answered >= 1 && shed >= 100, "{answered} answered, {shed} shed");
    assert!(peak <= BUDGET_MIB + RUN_AND_MODEL_MIB, "peak {peak} MiB");
    client.decode(decode_spec(8, 8), latents(8, 8, 1)).await.expect("the server goes on serving");
}
