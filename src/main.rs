//! The program. Everything it does is in the library; here is the allocator, the arguments and the exit code.

use std::process::ExitCode;

/// Answers are megabytes, allocated and freed by many threads: the system's allocator keeps and fragments them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    latentgate::cli::run()
}
