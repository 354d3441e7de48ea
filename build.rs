//! Compiles the proto without protoc, writes the descriptor set for reflection, and tells the binary its commit.

use std::{error::Error, fs, path::PathBuf, process::Command};

use prost::Message as _;

const PROTO: &str = "proto/latentgate/v1/latents.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile([PROTO], ["proto"])?;
    #[expect(clippy::disallowed_methods, reason = "cargo speaks to build scripts through the environment")]
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    fs::write(out.join("latentgate.v1.fds"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // Payloads arrive as slices of the received buffer, not as copies.
        .bytes(".")
        // Payload bytes stay out of Debug, and so out of every log.
        .skip_debug([".latentgate.v1.DecodeRequest", ".latentgate.v1.EncodeRequest"])
        .skip_debug([".latentgate.v1.DecodeResponse", ".latentgate.v1.EncodeResponse", ".latentgate.v1.Preview"])
        // The server half is ours (`front/grpc`): payload chunks go to the socket without prost's copy.
        .build_server(false)
        .compile_fds(descriptors)?;
    println!("cargo:rustc-env=LATENTGATE_COMMIT={}", commit());
    println!("cargo:rerun-if-changed=.git/HEAD");
    println!("cargo:rerun-if-changed=.git/refs/heads");
    Ok(())
}

/// The short commit, or `unknown` outside a checkout: a source archive builds as well.
fn commit() -> String {
    Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .output()
        .ok()
        .filter(|output| output.status.success())
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .map_or_else(|| "unknown".to_owned(), |text| text.trim().to_owned())
}
