//! Tokens: kept out of every log, and sent only where they belong.
//!
//! A token named by `upstream.token_file` was meant for the configured endpoints, and goes to each of them that is https
//! or on this machine. One found in the environment was meant for Hugging Face, and goes nowhere else. Neither ever
//! crosses a network in the clear. The file is read again when an endpoint refuses what it held: tokens rotate.

use std::{
    fmt, fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use http::HeaderValue;
use parking_lot::RwLock;
use reqwest::Url;

use super::{Config, StartError};
use crate::task;

/// Longer files hold no token.
const MAX_FILE_BYTES: u64 = 16 << 10;

/// Domains that `HF_TOKEN` belongs to.
const HUB_DOMAINS: [&str; 3] = ["huggingface.co", "huggingface.cloud", "hf.space"];

/// Text that nobody is to see: it has neither `Display` nor `Serialize`, and its `Debug` is `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

/// Which tokens an endpoint may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// https at Hugging Face.
    Hub,
    /// https elsewhere, or this machine.
    Private,
    /// Anybody on the way can read what is sent.
    Open,
}

/// The tokens there are.
pub(super) struct Tokens {
    file: Option<PathBuf>,
    /// What the file held when it was last read.
    held: RwLock<Option<Secret>>,
    /// What the environment held.
    ambient: Option<Secret>,
}

/// Why text is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error("it cannot be read")]
    Read(#[from] io::Error),
    /// Nothing, or white space alone.
    #[error("it is empty")]
    Empty,
    /// What no header can hold.
    #[error("it holds more than one line of visible ASCII characters")]
    Characters,
}

// === impl Secret ===

impl Secret {
    /// Hides `text`, without the white space around it.
    pub fn new(text: &str) -> Self {
        Self(text.trim().into())
    }

    /// Whether it is part of a text that came from elsewhere, which then must not be shown.
    pub(super) fn is_in(&self, text: &str) -> bool {
        text.contains(&*self.0)
    }

    /// The value of `Authorization`; none if no header can hold it.
    pub fn header(&self) -> Option<HeaderValue> {
        let is_visible = !self.0.is_empty() && self.0.bytes().all(|b| b.is_ascii_graphic());
        let mut value = HeaderValue::try_from(format!("Bearer {}", self.0)).ok().filter(|_| is_visible)?;
        value.set_sensitive(true);
        Some(value)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

// === impl Trust ===

impl Trust {
    /// By scheme and host alone.
    pub(super) fn of(url: &Url) -> Self {
        let host = url.host_str().unwrap_or_default().trim_end_matches('.');
        let is_under =
            |domain: &&str| host.strip_suffix(*domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
        let is_here = host == "localhost" || address.is_ok_and(|address| address.is_loopback());
        match (url.scheme(), HUB_DOMAINS.iter().any(is_under)) {
            ("https", true) => Self::Hub,
            ("https", false) => Self::Private,
            _ if is_here => Self::Private,
            _ => Self::Open,
        }
    }
}

// === impl Tokens ===

impl Tokens {
    /// Reads the file, if there is one. Blocks.
    pub(super) fn start(config: &Config) -> Result<Self, StartError> {
        let held = match &config.token_file {
            None => None,
            Some(path) => {
                let unusable = |source| StartError::TokenFile { path: path.clone(), source };
                Some(read(path).map_err(unusable)?)
            }
        };
        let ambient = config.token.clone();
        if ambient.as_ref().is_some_and(|token| token.header().is_none()) {
            return Err(StartError::Token(TokenError::Characters));
        }
        Ok(Self { file: config.token_file.clone(), held: RwLock::new(held), ambient })
    }

    /// The token for an endpoint of that trust.
    pub(super) fn of(&self, trust: Trust) -> Option<Secret> {
        match trust {
            Trust::Open => None,
            Trust::Private => self.held.read().clone(),
            Trust::Hub => self.held.read().clone().or_else(|| self.ambient.clone()),
        }
    }

    /// Whether a token is kept from an endpoint because its way is open.
    pub(super) fn is_kept_from(&self, trust: Trust) -> bool {
        trust == Trust::Open && self.file.is_some()
    }

    /// After `used` was refused: whether the file holds another one by now. Cancel-safe.
    pub(super) async fn reread(&self, used: Option<&Secret>) -> bool {
        let Some(path) = self.file.clone() else { return false };
        let shown = path.display().to_string();
        match task::blocking(move || read(&path)).await {
            Ok(Ok(fresh)) => {
                let is_new = used != Some(&fresh);
                *self.held.write() = Some(fresh);
                is_new
            }
            Ok(Err(error)) => {
                tracing::warn!(path = shown, error = %crate::error::chain(&error), "upstream.token_file is unusable");
                false
            }
            Err(_panic) => false,
        }
    }
}

fn read(path: &Path) -> Result<Secret, TokenError> {
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_FILE_BYTES).read_to_string(&mut text)?;
    if text.trim().is_empty() {
        return Err(TokenError::Empty);
    }
    let token = Secret::new(&text);
    token.header().map(|_| token).ok_or(TokenError::Characters)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trust(url: &str) -> Trust {
        Trust::of(&Url::parse(url).unwrap())
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn trust_is_a_matter_of_scheme_and_host() {
        for url in ["https://huggingface.co", "https://a.b.endpoints.huggingface.cloud/x?y=1", "https://me.hf.space."] {
            assert_eq!(trust(url), Trust::Hub, "{url}");
        }
        for url in [
            "https://example.com",
            "https://nothuggingface.co",
            "https://huggingface.co.example.com",
            "http://localhost:8080",
            "http://127.0.0.5/decode",
            "http://[::1]:9",
        ] {
            assert_eq!(trust(url), Trust::Private, "{url}");
        }
        for url in ["http://huggingface.co", "http://10.0.0.1", "http://localhost.example.com", "http://[::2]"] {
            assert_eq!(trust(url), Trust::Open, "{url}");
        }
    }

    #[test]
    fn the_ambient_token_stays_at_hugging_face_and_a_named_one_goes_before_it() {
        let ambient = Some(Secret::new("hf_ambient"));
        let tokens = Tokens::start(&Config { token: ambient.clone(), ..Config::default() }).unwrap();
        assert_eq!(tokens.of(Trust::Hub), ambient);
        assert_eq!((tokens.of(Trust::Private), tokens.of(Trust::Open)), (None, None));
        let file = file(" mine\n");
        let config = Config { token: ambient, token_file: Some(file.path().to_owned()), ..Config::default() };
        let tokens = Tokens::start(&config).unwrap();
        let mine = Some(Secret::new("mine"));
        assert_eq!((tokens.of(Trust::Hub), tokens.of(Trust::Private)), (mine.clone(), mine));
        assert!(tokens.of(Trust::Open).is_none() && tokens.is_kept_from(Trust::Open));
    }

    #[test]
    fn a_file_without_a_token_stops_the_start_and_is_named() {
        for text in ["", " \n", "two words", "t\u{f6}ken"] {
            let file = file(text);
            let config = Config { token_file: Some(file.path().to_owned()), ..Config::default() };
            let error = Tokens::start(&config).err().expect("no token").to_string();
            assert!(
                error.contains("upstream.token_file") && error.contains(&*file.path().to_string_lossy()),
                "{error}"
            );
        }
        let config = Config { token_file: Some("/nowhere/token".into()), ..Config::default() };
        assert!(Tokens::start(&config).is_err());
    }

    #[tokio::test]
    async fn a_file_that_changed_gives_another_try() {
        let file = file("old");
        let tokens = Tokens::start(&Config { token_file: Some(file.path().to_owned()), ..Config::default() }).unwrap();
        let used = tokens.of(Trust::Private);
        assert!(!tokens.reread(used.as_ref()).await);
        fs::write(file.path(), "new").unwrap();
        assert!(tokens.reread(used.as_ref()).await);
        assert_eq!(tokens.of(Trust::Private), Some(Secret::new("new")));
        fs::write(file.path(), "").unwrap();
        assert!(!tokens.reread(tokens.of(Trust::Private).as_ref()).await);
    }

    #[test]
    fn a_header_is_marked_as_secret() {
        let header = Secret::new("hf_abc").header().unwrap();
        assert!(header.is_sensitive() && !format!("{header:?}").contains("hf_abc"));
        assert!(Secret::new("a\nb").header().is_none());
    }
}
