//! `token`: makes the token of a named client.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, bail, ensure};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use clap::Args;
use rustls::crypto::ring;

use super::{answer, say};
use crate::clients::is_client_name;

/// A token holds so many random bytes: nobody guesses it, and a fast digest of it is enough.
const RANDOM_BYTES: usize = 32;
/// So that a token is known for what it is where it turns up.
const PREFIX: &str = "lg-";
/// Shorter ones can be guessed from their digests.
const SHORTEST: usize = 24;

/// Flags of `token`.
#[derive(Debug, Args)]
pub(super) struct Token {
    /// Whose it is: a name for the file of clients.
    #[arg(value_name = "NAME")]
    name: String,
    /// Take the token in this file, in place of a new one.
    #[arg(long, value_name = "FILE")]
    of: Option<PathBuf>,
}

impl Token {
    /// The token goes to standard output, what belongs into the file of clients to standard error.
    pub(super) fn run(self) -> anyhow::Result<()> {
        ensure!(is_client_name(&self.name), "{:?} is no client's name: wanted 1 to 64 of a-z 0-9 . _ -", self.name);
        let token = match &self.of {
            None => new()?,
            Some(path) => read(path).with_context(|| format!("--of {}", path.display()))?,
        };
        say(format_args!("# for clients.file; the token itself is known to the client alone"));
        say(format_args!("[{}]\ntokens = [\"blake3:{}\"]", self.name, blake3::hash(token.as_bytes())));
        if self.of.is_none() { answer(token) } else { Ok(()) }
    }
}

fn new() -> anyhow::Result<String> {
    let mut bytes = [0; RANDOM_BYTES];
    if ring::default_provider().secure_random.fill(&mut bytes).is_err() {
        bail!("the system gives no random bytes");
    }
    Ok(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)))
}

fn read(path: &PathBuf) -> anyhow::Result<String> {
    let token = fs::read_to_string(path)?.trim().to_owned();
    ensure!(token.bytes().all(|byte| byte.is_ascii_graphic()), "a token is one line of visible ASCII characters");
    ensure!(token.len() >= SHORTEST, "a token has at least {SHORTEST} characters: `latentgate token NAME` makes one");
    Ok(token)
}
