//! Compiles the protos without protoc, writes the descriptor sets for reflection, tells the binary its commit, and for the feature
//! `cudnn` compiles the kernels.

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use prost::Message as _;

const LATENTS: &str = "latentgate/v1/latents.proto";
const CACHE_ADMIN: &str = "latentgate/v1/cache_admin.proto";
const KERNELS: &str = "src/backend/local/engine/cuda/kernels.cu";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    #[expect(clippy::disallowed_methods, reason = "cargo speaks to build scripts through the environment")]
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    latents(&out)?;
    cache_admin(&out)?;
    kernels(&out)?;
    println!("cargo:rustc-env=LATENTGATE_COMMIT={}", commit());
    println!("cargo:rerun-if-env-changed=LATENTGATE_COMMIT");
    println!("cargo:rerun-if-changed=.git/HEAD");
    println!("cargo:rerun-if-changed=.git/refs/heads");
    Ok(())
}

fn latents(out: &Path) -> Result<(), Box<dyn Error>> {
    let descriptors = protox::compile([LATENTS], ["proto"])?;
    fs::write(out.join("latents.fds"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // Payloads arrive as slices of the received buffer, not as copies.
        .bytes(".")
        // Payload bytes stay out of Debug, and so out of every log.
        .skip_debug([".latentgate.v1.DecodeRequest", ".latentgate.v1.EncodeRequest"])
        .skip_debug([".latentgate.v1.DecodeResponse", ".latentgate.v1.EncodeResponse", ".latentgate.v1.Preview"])
        // The server half is ours (`front/grpc`): payload chunks go to the socket without prost's copy.
        .build_server(false)
        .compile_fds(descriptors)?;
    Ok(())
}

/// In a folder of its own, since both are of one package; and with the generated server, whose copies do not matter here.
fn cache_admin(out: &Path) -> Result<(), Box<dyn Error>> {
    let mut descriptors = protox::compile([CACHE_ADMIN], ["proto"])?;
    fs::write(out.join("cache_admin.fds"), descriptors.encode_to_vec())?;
    let folder = out.join("cache_admin");
    fs::create_dir_all(&folder)?;
    let mut builder =
        tonic_prost_build::configure().out_dir(folder).bytes(".").skip_debug([".latentgate.v1.GetResponse"]);
    // What it imports is generated already.
    for file in descriptors.file.iter_mut().filter(|file| file.name() == LATENTS) {
        file.service.clear();
        let messages = file.message_type.iter().filter_map(|message| message.name.as_deref());
        for name in messages.chain(file.enum_type.iter().filter_map(|it| it.name.as_deref())) {
            builder = builder.extern_path(format!(".latentgate.v1.{name}"), format!("crate::proto::{name}"));
        }
    }
    builder.compile_fds(descriptors)?;
    Ok(())
}

/// The kernels as PTX, which the GPU's driver translates: by `$NVCC`, for `$CUDA_COMPUTE_CAP` and what is newer, as candle's own
/// build has it.
fn kernels(out: &Path) -> Result<(), Box<dyn Error>> {
    #[expect(clippy::disallowed_methods, reason = "cargo speaks to build scripts through the environment")]
    let told = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    println!("cargo:rerun-if-changed={KERNELS}");
    println!("cargo:rerun-if-env-changed=NVCC");
    println!("cargo:rerun-if-env-changed=CUDA_COMPUTE_CAP");
    if told("CARGO_FEATURE_CUDNN").is_none() {
        return Ok(());
    }
    let nvcc = told("NVCC").unwrap_or_else(|| "nvcc".to_owned());
    // `8.0` and `90a` are other spellings; what a GPU has that its successors have not, the `a`, is not used.
    let capability: String = told("CUDA_COMPUTE_CAP")
        .map_or_else(|| "80".to_owned(), |it| it.chars().filter(char::is_ascii_digit).collect());
    let ran = Command::new(&nvcc)
        .args(["--ptx", "-std=c++17", "-O3"])
        .arg(format!("-gencode=arch=compute_{capability},code=compute_{capability}"))
        .args([Path::new("--output-directory"), out, Path::new(KERNELS)])
        .output()
        .map_err(|error| format!("{nvcc}, which $NVCC names, does not run: {error}"))?;
    if !ran.status.success() {
        return Err(format!("{nvcc} does not compile {KERNELS}:\n{}", String::from_utf8_lossy(&ran.stderr)).into());
    }
    Ok(())
}

/// The short commit, or `unknown` outside a checkout: a source archive builds as well. Where an image is built there is
/// no checkout either, so the environment may say it.
fn commit() -> String {
    #[expect(clippy::disallowed_methods, reason = "cargo speaks to build scripts through the environment")]
    let told = std::env::var("LATENTGATE_COMMIT").ok().filter(|commit| !commit.is_empty());
    told.or_else(commit_of_checkout).unwrap_or_else(|| "unknown".to_owned())
}

fn commit_of_checkout() -> Option<String> {
    Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .output()
        .ok()
        .filter(|output| output.status.success())
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .map(|text| text.trim().to_owned())
}
