//! Flags that commands share, and the words of the wire that they stand for.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use tonic::metadata::{Ascii, MetadataValue};

use crate::{backend::upstream::Secret, proto, tensor::DType};

/// Which server, and how long to wait for it.
#[derive(Clone, Debug, Args)]
pub(super) struct Connection {
    /// The server's data port.
    #[arg(long, value_name = "URL", env = "LATENTGATE_SERVER", default_value = "http://127.0.0.1:8790")]
    pub(super) server: String,
    /// Give up after this time, such as 30s or 2m. Default: the server's own limit.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(super) timeout: Option<Duration>,
    /// File with the token of a named client.
    #[arg(long, value_name = "FILE", env = "LATENTGATE_TOKEN_FILE")]
    pub(super) token_file: Option<PathBuf>,
}

impl Connection {
    /// What the token's file makes of the header `authorization`. No error quotes what is in it.
    pub(super) fn authorization(&self) -> anyhow::Result<Option<MetadataValue<Ascii>>> {
        let Some(path) = &self.token_file else { return Ok(None) };
        let text = fs::read_to_string(path).with_context(|| format!("--token-file {}", path.display()))?;
        let header = Secret::new(&text).header();
        let header = header.and_then(|header| MetadataValue::try_from(header.as_bytes()).ok()).map(|mut header| {
            header.set_sensitive(true);
            header
        });
        let unusable = || format!("--token-file {}: wanted one line of visible ASCII characters", path.display());
        header.with_context(unusable).map(Some)
    }
}

/// What decode and encode have in common.
#[derive(Clone, Debug, Args)]
pub(super) struct Common {
    /// A model that `latentgate models` lists.
    #[arg(long, short, value_name = "MODEL", default_value = "builtin")]
    pub(super) model: String,
    /// Scaling factor, in place of the model's own.
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    scaling_factor: Option<f64>,
    /// Shift that goes with --scaling-factor; none if left out.
    #[arg(long, value_name = "S", requires = "scaling_factor", allow_negative_numbers = true)]
    shift_factor: Option<f64>,
    /// No scaling: latents are as the autoencoder takes or gives them.
    #[arg(long, conflicts_with = "scaling_factor")]
    already_scaled: bool,
    /// How the cache is used.
    #[arg(long, value_enum, value_name = "POLICY", default_value_t)]
    cache: CacheFlag,
    /// Send the digest of the input first, and the input only if that does not find the answer.
    #[arg(long)]
    digest_first: bool,
    /// Which tensor of the .safetensors file to send.
    #[arg(long, value_name = "NAME")]
    pub(super) tensor: Option<String>,
}

/// `--cache`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum CacheFlag {
    /// Answer from the cache; compute and keep what is not there.
    #[default]
    Default,
    /// Compute even when cached, and refresh the cache.
    Bypass,
    /// Answer from the cache; compute but do not keep what is not there.
    NoStore,
    /// Answer from the cache or fail.
    OnlyIfCached,
}

/// `--dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum DtypeFlag {
    /// IEEE 754 single.
    F32,
    /// IEEE 754 half.
    F16,
    /// Upper half of a single.
    Bf16,
    /// Unsigned byte.
    U8,
}

/// In which order digest and input are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// The input at once.
    DataAtOnce,
    /// The digest; the input if the server asks for it.
    DigestFirst,
}

// === impl Common ===

impl Common {
    /// The wire's scaling; `None` is the model's own.
    pub(super) fn scaling(&self) -> Option<proto::Scaling> {
        use proto::scaling::{Applied, Given, Kind};
        let kind = match self.scaling_factor {
            _ if self.already_scaled => Kind::Applied(Applied {}),
            Some(factor) => Kind::Given(Given { factor, shift: self.shift_factor.unwrap_or(0.0) }),
            None => return None,
        };
        Some(proto::Scaling { kind: Some(kind) })
    }

    /// The wire's cache policy.
    pub(super) fn cache(&self) -> i32 {
        let policy = match self.cache {
            CacheFlag::Default => proto::CachePolicy::Default,
            CacheFlag::Bypass => proto::CachePolicy::Bypass,
            CacheFlag::NoStore => proto::CachePolicy::NoStore,
            CacheFlag::OnlyIfCached => proto::CachePolicy::OnlyIfCached,
        };
        policy as i32
    }

    /// When the input is sent.
    pub(super) fn order(&self) -> Order {
        if self.digest_first { Order::DigestFirst } else { Order::DataAtOnce }
    }
}

// === impl DtypeFlag ===

impl DtypeFlag {
    /// The wire's dtype, of something that is floating point by nature.
    pub(super) fn float(self, what: &str) -> anyhow::Result<proto::Dtype> {
        match self {
            Self::F32 => Ok(proto::Dtype::F32),
            Self::F16 => Ok(proto::Dtype::F16),
            Self::Bf16 => Ok(proto::Dtype::Bf16),
            Self::U8 => bail!("{what} are floating point: --dtype takes f32, f16 or bf16, not u8"),
        }
    }
}

/// The wire's words for a tensor's type and shape.
pub(super) fn tensor_spec(tensor: &crate::tensor::Tensor) -> proto::TensorSpec {
    let dtype = match tensor.dtype() {
        DType::F32 => proto::Dtype::F32,
        DType::F16 => proto::Dtype::F16,
        DType::BF16 => proto::Dtype::Bf16,
        DType::U8 => proto::Dtype::U8,
    };
    let shape = tensor.shape().dims().iter().map(|&d| d.cast_signed() as i64).collect();
    proto::TensorSpec { dtype: dtype as i32, shape }
}

/// The type that a word of the wire stands for.
pub(super) fn dtype_of(code: i32) -> Option<DType> {
    match proto::Dtype::try_from(code).ok()? {
        proto::Dtype::F32 => Some(DType::F32),
        proto::Dtype::F16 => Some(DType::F16),
        proto::Dtype::Bf16 => Some(DType::BF16),
        proto::Dtype::U8 => Some(DType::U8),
        proto::Dtype::Unspecified => None,
    }
}
