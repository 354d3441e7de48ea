//! The file of named clients.
//!
//! It holds no secret: of a token its BLAKE3 digest alone. Tokens are long and random (`latentgate token` makes them), so
//! a fast digest is enough. Nobody can be sure what else a file holds that is not what it should be, so what is wrong is
//! told by its place, and never quoted.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{ANONYMOUS, Config, Limits};

/// Before the digest of a token.
const SCHEME: &str = "blake3:";
/// Longer files are none of ours.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Each is a label of metrics.
const MAX_CLIENTS: usize = 1000;

/// Clients that have been read, and are not in force yet.
#[derive(Clone, Debug, Default)]
pub struct Prepared {
    pub(super) config: Config,
    pub(super) clients: Vec<Named>,
    digest: Option<blake3::Hash>,
}

/// One client of the file.
#[derive(Clone, Debug)]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) tokens: Vec<blake3::Hash>,
    pub(super) certificates: Vec<Box<str>>,
    pub(super) limits: Limits,
}

/// Why there are no clients.
#[derive(Debug, thiserror::Error)]
pub enum ClientsError {
    /// The file is not there, or not for us.
    #[error("clients.file = {path}: cannot be read: name a file that exists, and let this user read it")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("clients.file = {path}: {why}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What, and the remedy. Quotes nothing that could be a token.
        why: String,
    },
}

/// A client as it is spelled.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Spelled {
    #[serde(default)]
    tokens: Vec<String>,
    #[serde(default)]
    certificates: Vec<String>,
    #[serde(default)]
    limits: Limits,
}

impl Prepared {
    /// Reads the file, if there is one. Blocks.
    pub fn read(config: &Config) -> Result<Self, ClientsError> {
        let config = config.clone();
        let Some(path) = &config.file else { return Ok(Self { config, ..Self::default() }) };
        let text = read(path).map_err(|source| ClientsError::Unreadable { path: path.clone(), source })?;
        let clients = parse(&text).map_err(|why| ClientsError::Invalid { path: path.clone(), why })?;
        Ok(Self { clients, digest: Some(blake3::hash(text.as_bytes())), config })
    }

    /// Of what was in the file: equal for equal ones.
    pub fn digest(&self) -> Option<blake3::Hash> {
        self.digest
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_FILE_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

fn parse(text: &str) -> Result<Vec<Named>, String> {
    let spelled: BTreeMap<String, Spelled> = toml::from_str(text).map_err(|error| placed(text, &error))?;
    if spelled.is_empty() || spelled.len() > MAX_CLIENTS {
        return Err(format!(
            "names {} clients, wanted 1 to {MAX_CLIENTS}: a table each, such as [studio] with tokens = [\"blake3:...\"]",
            spelled.len()
        ));
    }
    let (mut tokens, mut certificates) = (BTreeMap::new(), BTreeMap::new());
    let clients: Vec<_> = spelled.into_iter().map(|(name, spelled)| named(name, spelled)).collect::<Result<_, _>>()?;
    for client in &clients {
        for token in &client.tokens {
            // Looked up by these first bytes, so that no two may share them.
            let first = tokens.insert(super::table::first_bytes(token), &client.name);
            if let Some(other) = first {
                return Err(format!("{}.tokens: {other} has the same token: give each its own", client.name));
            }
        }
        for name in &client.certificates {
            if let Some(other) = certificates.insert(name, &client.name) {
                return Err(format!("{}.certificates: {name} stands under {other} too: leave one out", client.name));
            }
        }
    }
    Ok(clients)
}

/// Whether a client can have this name, which is a label of metrics.
pub fn is_client_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
    (1..=64).contains(&name.len()) && name.bytes().all(is_plain) && name != ANONYMOUS
}

fn named(name: String, spelled: Spelled) -> Result<Named, String> {
    if !is_client_name(&name) {
        return Err("a client's name must be 1 to 64 of a-z, 0-9, '.', '_', '-', and not anonymous".to_owned());
    }
    let token = |(at, text): (usize, &String)| {
        let hash = text.strip_prefix(SCHEME).and_then(|hex| blake3::Hash::from_hex(hex).ok());
        hash.ok_or_else(|| {
            format!("{name}.tokens[{at}]: wanted blake3: and 64 hex digits, as `latentgate token {name}` prints them")
        })
    };
    let tokens = spelled.tokens.iter().enumerate().map(token).collect::<Result<Vec<_>, _>>()?;
    let has_kind = |text: &str| {
        let [kind, rest] = text.split_once(':').map_or([text, ""], <[&str; 2]>::from);
        ["dns", "uri", "cn"].contains(&kind) && !rest.is_empty()
    };
    if let Some(at) = spelled.certificates.iter().position(|text| !has_kind(text)) {
        return Err(format!("{name}.certificates[{at}]: wanted dns:NAME, uri:URI or cn:NAME"));
    }
    let spell = |text: String| if text.starts_with("dns:") { text.to_ascii_lowercase() } else { text };
    let certificates: Vec<Box<str>> = spelled.certificates.into_iter().map(spell).map(Into::into).collect();
    if tokens.is_empty() && certificates.is_empty() {
        return Err(format!("{name}: has neither tokens nor certificates, so nobody could be it: give it one"));
    }
    if let Some((key, value, remedy)) = spelled.limits.faults().next() {
        return Err(format!("{name}.limits.{key} = {value}: {remedy}"));
    }
    Ok(Named { name, tokens, certificates, limits: spelled.limits })
}

/// Where the parser stopped. Of its words only those about keys are repeated: the others quote values.
fn placed(text: &str, error: &toml::de::Error) -> String {
    let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    let about_keys = ["unknown field", "missing field", "duplicate"];
    let why = error.message().lines().next().unwrap_or_default();
    let why = if about_keys.iter().any(|start| why.starts_with(start)) { why } else { "not what is wanted" };
    format!("line {line}: {why}: wanted tables such as [studio] with tokens, certificates, limits")
}
