//! The command line: the server, its configuration, and a client that speaks to it over gRPC.
//!
//! Answers go to standard output, everything said beside them to standard error. This is the program's top floor, so
//! errors are `anyhow` here and end as one line that names the remedy.

#[cfg(feature = "local")]
mod bench;
mod cache;
mod client;
mod decode;
mod demo;
mod encode;
mod files;
mod log_level;
mod models;
mod page;
mod reload;
mod request;
mod serve;
mod token;

use std::{fmt, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

/// A gRPC edge proxy and cache for hybrid inference.
#[derive(Debug, Parser)]
#[command(name = "latentgate", version, about)]
struct Arguments {
    /// Configuration file (TOML) of the server.
    #[arg(long, short, global = true, env = "LATENTGATE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server until Ctrl-C or SIGTERM.
    Serve(serve::Serve),
    /// Look at the configuration, or have a server read it again.
    #[command(subcommand)]
    Config(serve::ConfigCommand),
    /// Have a server turn latents into pixels.
    Decode(decode::Decode),
    /// Have a server turn a picture into latents.
    Encode(encode::Encode),
    /// List what a server can do.
    Models(models::Models),
    /// Look after what a server keeps.
    #[command(subcommand)]
    Cache(cache::CacheCommand),
    /// Show what a running server's log says, or change it.
    LogLevel(log_level::LogLevel),
    /// Make the token of a named client.
    Token(token::Token),
    /// Measure what computing costs on this machine.
    #[cfg(feature = "local")]
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// Show the whole thing at work in this process: no network, no downloads.
    Demo(demo::Demo),
}

/// Runs the program. Errors end with exit code 1 and one clear line on standard error; a bad command line with 2.
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let config = arguments.config.as_deref();
    let outcome = match arguments.command {
        Command::Serve(serve) => serve.run(config),
        Command::Config(command) => command.run(config),
        Command::Decode(decode) => decode.run(),
        Command::Encode(encode) => encode.run(),
        Command::Models(models) => models.run(),
        Command::Cache(command) => command.run(),
        Command::LogLevel(log_level) => log_level.run(),
        Command::Token(token) => token.run(),
        #[cfg(feature = "local")]
        Command::Bench(command) => command.run(config),
        Command::Demo(demo) => demo.run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("latentgate: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// A line beside the answer, on standard error.
#[expect(clippy::print_stderr, reason = "this is the program's voice")]
fn say(line: impl fmt::Display) {
    eprintln!("{line}");
}

/// A line of the answer, on standard output. A reader that has left, such as `head`, is no reason to panic.
fn answer(line: impl fmt::Display) -> anyhow::Result<()> {
    use std::io::{ErrorKind, Write as _};
    match writeln!(std::io::stdout(), "{line}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
