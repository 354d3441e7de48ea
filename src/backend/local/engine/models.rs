//! The networks, each written after its checkpoint's names, and the choice between them.

mod autoencoder_kl;
mod autoencoder_tiny;
mod sequence;
mod taef2;

use super::checkpoint::Scope;
use super::config::Config;
use super::map::Map;
use super::{EngineError, Run};
use sequence::Sequence;

/// The half that makes latents.
#[expect(clippy::large_enum_variant, reason = "a few for each model, never moved once loaded")]
pub(super) enum Encoder {
    Kl(autoencoder_kl::Encoder),
    Tiny(Sequence),
}

/// The half that makes pictures.
#[expect(clippy::large_enum_variant, reason = "a few for each model, never moved once loaded")]
pub(super) enum Decoder {
    Kl(autoencoder_kl::Decoder),
    Tiny(Sequence),
}

// === impl Encoder ===

impl Encoder {
    pub(super) fn load(root: &Scope<'_>, config: &Config) -> Result<Self, EngineError> {
        Ok(match config {
            Config::AutoencoderKL(c) => Self::Kl(autoencoder_kl::Encoder::load(root, c)?),
            Config::AutoencoderTiny(c) => Self::Tiny(autoencoder_tiny::encoder(root, c)?),
            Config::Taef2(c) => Self::Tiny(taef2::encoder(root, c)?),
        })
    }

    /// Times a run reports progress.
    pub(super) fn blocks(&self) -> u32 {
        match self {
            Self::Kl(net) => net.blocks(),
            Self::Tiny(net) => net.blocks(),
        }
    }

    pub(super) fn run(&self, x: Map, run: &mut Run<'_>) -> Result<Map, EngineError> {
        match self {
            Self::Kl(net) => net.run(&x, run),
            Self::Tiny(net) => net.run(x, run),
        }
    }
}

// === impl Decoder ===

impl Decoder {
    pub(super) fn load(root: &Scope<'_>, config: &Config) -> Result<Self, EngineError> {
        Ok(match config {
            Config::AutoencoderKL(c) => Self::Kl(autoencoder_kl::Decoder::load(root, c)?),
            Config::AutoencoderTiny(c) => Self::Tiny(autoencoder_tiny::decoder(root, c)?),
            Config::Taef2(c) => Self::Tiny(taef2::decoder(root, c)?),
        })
    }

    /// Times a run reports progress.
    pub(super) fn blocks(&self) -> u32 {
        match self {
            Self::Kl(net) => net.blocks(),
            Self::Tiny(net) => net.blocks(),
        }
    }

    pub(super) fn run(&self, z: Map, run: &mut Run<'_>) -> Result<Map, EngineError> {
        match self {
            Self::Kl(net) => net.run(&z, run),
            Self::Tiny(net) => net.run(z, run),
        }
    }
}
