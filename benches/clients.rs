//! What it costs to know who asks and to hold it to its limits. Every request pays it, hits included.

mod support;

use std::{hint::black_box, net::Ipv4Addr};

use bytesize::ByteSize;
use criterion::Criterion;
use latentgate::{
    clients::{Clients, Config, Credentials, Limits, Origin, Prepared},
    metrics::Metrics,
};

const TOKEN: &[u8] = b"lg-q2Vw0F3mB8nJ5yH1tR7xK4cZ6sL9dA0eG2uP5oI8iTY";

/// Beyond what the bench can use up.
const LIMITS: Limits = Limits {
    requests_per_second: Some(1e6),
    burst: Some(1_000_000_000),
    input_per_second: Some(ByteSize::pib(1)),
    output_per_second: Some(ByteSize::pib(1)),
    in_flight: Some(1_000_000),
};

fn main() {
    let mut criterion = support::quick();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("clients.toml");
    let text = (0..1000).map(|n| format!("[c{n}]\ntokens = [\"blake3:{}\"]\n", blake3::hash(&token(n))));
    std::fs::write(&file, text.collect::<String>()).expect("a file");

    let open = Config::default();
    let by_address = Config { per_address: LIMITS, ..Config::default() };
    let named = Config { file: Some(file), limits: LIMITS, ..Config::default() };
    visit(&mut criterion, "nobody is known", &open, None);
    visit(&mut criterion, "an address with limits", &by_address, None);
    visit(&mut criterion, "one token of 1000, with limits", &named, Some(&token(500)));
    criterion.final_summary();
}

fn token(n: u32) -> Vec<u8> {
    [TOKEN, n.to_string().as_bytes()].concat()
}

/// A request of 64 KiB whose answer is a chunk of 48 KiB.
fn visit(criterion: &mut Criterion, name: &str, config: &Config, token: Option<&[u8]>) {
    let clients = Clients::new(&Prepared::read(config).expect("the clients are readable"), Metrics::new());
    let origin = Origin::Address(Ipv4Addr::LOCALHOST.into());
    criterion.bench_function(name, |bencher| {
        bencher.iter(|| {
            let visit = clients.admit(black_box(&Credentials { token, certificate: &[], origin })).expect("let in");
            visit.received(64 << 10);
            visit.sent(48 << 10);
        });
    });
}
