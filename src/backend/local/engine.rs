//! The local compute engine: autoencoders of latent diffusion, on the CPU or through candle on an accelerator.
//!
//! [`Autoencoder::load`] reads a checkpoint in memory, [`Autoencoder::decode`] and [`Autoencoder::encode`] run it on the
//! caller's thread and report to an [`Observer`] after each step, which may stop the run. Nothing here is async, opens a
//! file or keeps state between runs. Results match diffusers on the same weights: relative L2 of at most 1e-4 in f32 and
//! 2e-2 in half precision, which `tests/it/parity.rs` holds against recorded outputs.
//!
//! On the CPU the kernels in `host` compute, in f32 and with bounded scratch memory; on an NVIDIA GPU those in `cuda`, with cuDNN
//! (feature `cudnn`); elsewhere candle's tensors do.
//! candle's types do not leave this module.

mod attention;
mod batch;
mod checkpoint;
mod config;
mod conv;
mod cuda;
mod error;
mod footprint;
mod gaussian;
mod host;
#[doc(hidden)]
pub mod kernels;
mod map;
mod models;
mod norm;
mod place;
mod residual;
#[cfg(test)]
mod tests;
mod values;

pub use crate::{
    job::EncodeMode,
    model::{Scaling, Task},
};
pub use batch::{Latents, Pictures};
pub use error::{Cancelled, EngineError};
pub use footprint::Foretold;
pub use host::{arena::Arena, simd::Instructions};
pub use place::{Device, ParseDeviceError, Precision};

use batch::Joined;
use checkpoint::Weights;
use config::Config;
use cuda::Range;
use map::{Activation, Map};
use models::{Decoder, Encoder};
use place::{Accelerator, Site};

use crate::{
    job::Output,
    tensor::{DType, Tensor},
};

/// Weights as found.
#[derive(Clone, Copy)]
pub struct Checkpoint<'a> {
    /// Text of config.json.
    pub config: &'a str,
    /// Bytes of the safetensors file.
    pub weights: &'a [u8],
}

/// Called on the engine's thread after each step: a block of the network, or a band of one.
pub trait Observer {
    /// A step is done. `Err` stops the run before the next.
    fn step_done(&mut self) -> Result<(), Cancelled>;
}

/// What a loaded model says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// `_class_name` of config.json.
    pub class_name: &'static str,
    /// Channels of its latents.
    pub latent_channels: usize,
    /// Pixels to a latent, along each side.
    pub spatial_scale: usize,
    /// `scaling_factor` of config.json.
    pub scaling_factor: Option<f32>,
    /// `shift_factor` of config.json.
    pub shift_factor: Option<f32>,
    /// Whether it can encode.
    pub has_encoder: bool,
    /// Whether it can decode.
    pub has_decoder: bool,
    /// Whether its encoder gives a distribution, so that a sample differs from the mean.
    pub has_posterior: bool,
    /// The precision it computes in, which is f32 where half was asked of a model that overflows in it.
    pub precision: Precision,
    /// Weights in the halves it has.
    pub parameters: u64,
    /// Memory they take.
    pub weight_bytes: u64,
}

/// A model ready to run.
pub struct Autoencoder {
    config: Config,
    site: Site,
    arena: Arena,
    /// Runs that would take more than this many bytes besides the weights are computed in bands.
    memory: u64,
    encoder: Option<Encoder>,
    decoder: Option<Decoder>,
    parameters: u64,
    weight_bytes: u64,
}

/// How a run goes, and what it takes.
struct Plan {
    in_bands: Option<usize>,
    foretold: Foretold,
}

/// One run's state.
struct Run<'a> {
    observer: &'a mut dyn Observer,
    /// Blocks of maps with at least so many pixels are computed some rows at a time.
    in_bands: Option<usize>,
}

// === impl Autoencoder ===

impl Autoencoder {
    /// Reads the halves that the checkpoint holds, one at least, and puts them on the device.
    ///
    /// A model whose config says `force_upcast` computes in f32 where f16 is asked: its activations leave f16's range.
    pub fn load(checkpoint: &Checkpoint<'_>, device: &Device, precision: Precision) -> Result<Self, EngineError> {
        Self::load_on(checkpoint, device.open()?, precision)
    }

    fn load_on(
        checkpoint: &Checkpoint<'_>,
        device: Option<Accelerator>,
        precision: Precision,
    ) -> Result<Self, EngineError> {
        let config = Config::parse(checkpoint.config)?;
        let upcast = matches!(&config, Config::AutoencoderKL(c) if c.force_upcast) && precision == Precision::F16;
        let site = Site { device, precision: if upcast { Precision::F32 } else { precision } };
        let weights = Weights::open(checkpoint.weights, site.clone())?;
        let root = weights.root();
        let encoder = root.pp("encoder").exists().then(|| Encoder::load(&root, &config)).transpose()?;
        let decoder = root.pp("decoder").exists().then(|| Decoder::load(&root, &config)).transpose()?;
        if encoder.is_none() && decoder.is_none() {
            return Err(EngineError::NoHalf("encoder and no decoder"));
        }
        let (parameters, weight_bytes) = weights.taken();
        Ok(Self { config, site, arena: Arena::default(), memory: u64::MAX, encoder, decoder, parameters, weight_bytes })
    }

    /// Has runs on the CPU take their buffers from `arena`, which others may share.
    #[must_use]
    pub fn with_arena(mut self, arena: Arena) -> Self {
        self.arena = arena;
        self
    }

    /// Has runs on the CPU that would take more than `bytes` besides the weights work on bands of rows: in about half the
    /// memory and almost twice the time, with the same result.
    #[must_use]
    pub fn with_memory(mut self, bytes: u64) -> Self {
        self.set_memory(bytes);
        self
    }

    /// The same, from the next run on.
    pub fn set_memory(&mut self, bytes: u64) {
        self.memory = bytes;
    }

    /// What it is.
    pub fn facts(&self) -> Facts {
        let (class_name, latent_channels, scaling_factor, shift_factor) = match &self.config {
            Config::AutoencoderKL(c) => ("AutoencoderKL", c.latent_channels, c.scaling_factor, c.shift_factor),
            Config::AutoencoderTiny(c) => ("AutoencoderTiny", c.latent_channels, c.scaling_factor, c.shift_factor),
            Config::Taef2(c) => ("Taef2", c.latent_channels, c.scaling_factor, c.shift_factor),
        };
        Facts {
            class_name,
            latent_channels,
            spatial_scale: self.spatial_scale(Task::Decode),
            scaling_factor,
            shift_factor,
            has_encoder: self.encoder.is_some(),
            has_decoder: self.decoder.is_some(),
            has_posterior: self.has_posterior(),
            precision: self.site.precision,
            parameters: self.parameters,
            weight_bytes: self.weight_bytes,
        }
    }

    /// What a run will take, for `n` pictures of `height` x `width` pixels, where `size` is `[n, height, width]`.
    pub fn foretell(&self, task: Task, size: [usize; 3]) -> Foretold {
        self.plan(task, size).foretold
    }

    fn plan(&self, task: Task, size: [usize; 3]) -> Plan {
        let whole = Plan { in_bands: None, foretold: footprint::foretell(self, task, size, None) };
        if whole.foretold.bytes <= self.memory || self.site.device.is_some() {
            return whole;
        }
        // The maps of the picture's size are what the memory goes into.
        let in_bands = Some(size[1] * size[2]);
        Plan { in_bands, foretold: footprint::foretell(self, task, size, in_bands) }
    }

    /// In what type a picture is best asked for that becomes `output`. Where bytes are made on the device, those: they are the ones
    /// that rendering its f16 would give. Every form but an explicit f32 or bf16 tensor is made from numbers rounded to f16 once.
    pub fn decoded_dtype(&self, output: Output) -> DType {
        let makes_bytes = matches!(self.site.device, Some(Accelerator::Cuda(_)));
        match output {
            Output::Tensor(dtype) => dtype,
            Output::Uint8 | Output::Png | Output::Jpeg(_) | Output::Webp if makes_bytes => DType::U8,
            _ => DType::F16,
        }
    }

    /// Pictures `[n, 3, s h, s w]`, nominally in -1..1 and not clamped, for each of several latents of one height and
    /// width, in one run. For bytes, if [`Self::decoded_dtype`] asks for them, finished pixels `[n, s h, s w, 3]`; or f16 as
    /// above if a number is not finite.
    pub fn decode_all(&self, inputs: &[Latents<'_>], observer: &mut dyn Observer) -> Result<Vec<Tensor>, EngineError> {
        let decoder = self.decoder.as_ref().ok_or(EngineError::NoHalf("decoder"))?;
        let want = format!("[n,{},h,w] in floats", self.latent_channels());
        if inputs.is_empty() {
            return Ok(Vec::new());
        }
        let (mut joined, mut planes) = (Joined::default(), Vec::new());
        for &Latents { latents, scaling, .. } in inputs {
            let dims = values::dims4(latents, &want)?;
            if dims[1] != self.latent_channels() || !latents.dtype().is_float() {
                return Err(values::misfit(latents, &want));
            }
            let mut z = values::to_f32(latents);
            for z in &mut z {
                *z = *z / scaling.factor + scaling.shift;
            }
            if self.is_tiny() {
                for z in &mut z {
                    *z = (*z / 3.0).tanh() * 3.0;
                }
            }
            joined.add(latents, dims)?;
            batch::append(&mut planes, z);
        }
        let Joined { dims, counts } = joined;
        let scale = self.spatial_scale(Task::Decode);
        let Plan { in_bands, foretold } = self.plan(Task::Decode, [dims[0], dims[2] * scale, dims[3] * scale]);
        self.arena.keep_within(foretold.inner);
        let z = Map::from_planes(&planes, dims, &self.site, &self.arena)?;
        drop(planes);
        let made = decoder.run(z, &mut Run { observer, in_bands })?;
        if let Map::Cuda(map) = made {
            return batch::pictures_of(&map, self.range(), inputs, &counts);
        }
        let (mut pixels, [n, c, h, w]) = made.into_planes()?;
        if self.is_tiny() {
            for y in &mut pixels {
                *y = *y * 2.0 - 1.0;
            }
        }
        let each = batch::parts(&mut pixels, n, &counts).zip(&counts).zip(inputs);
        each.map(|((pixels, &n), input)| values::from_f32(pixels, [n, c, h, w], input.dtype)).collect()
    }

    /// Scaled latents `[n, c, h / s, w / s]` for each of several pictures of one height and width, in one run.
    pub fn encode_all(&self, inputs: &[Pictures<'_>], observer: &mut dyn Observer) -> Result<Vec<Tensor>, EngineError> {
        let encoder = self.encoder.as_ref().ok_or(EngineError::NoHalf("encoder"))?;
        if inputs.is_empty() {
            return Ok(Vec::new());
        }
        let joined = self.joined(inputs)?;
        let Joined { dims, counts } = &joined;
        let Plan { in_bands, foretold } = self.plan(Task::Encode, [dims[0], dims[2], dims[3]]);
        self.arena.keep_within(foretold.inner);
        let x = self.pictures(inputs, &joined)?;
        let (mut moments, [n, _, h, w]) = encoder.run(x, &mut Run { observer, in_bands })?.into_planes()?;
        let each = batch::parts(&mut moments, n, counts).zip(counts).zip(inputs);
        each.map(|((moments, &n), &Pictures { mode, scaling, dtype, .. })| {
            let mut picked = if self.has_posterior() { Some(pick(moments, n, mode)) } else { None };
            let z = picked.as_deref_mut().unwrap_or(moments);
            for z in &mut *z {
                *z = (*z - scaling.shift) * scaling.factor;
            }
            values::from_f32(z, [n, self.latent_channels(), h, w], dtype)
        })
        .collect()
    }

    fn latent_channels(&self) -> usize {
        match &self.config {
            Config::AutoencoderKL(c) => c.latent_channels,
            Config::AutoencoderTiny(c) => c.latent_channels,
            Config::Taef2(c) => c.latent_channels,
        }
    }

    fn picture_channels(&self) -> usize {
        match &self.config {
            Config::AutoencoderKL(c) => c.in_channels,
            Config::AutoencoderTiny(c) => c.in_channels,
            Config::Taef2(c) => c.in_channels,
        }
    }

    fn spatial_scale(&self, task: Task) -> usize {
        match (&self.config, task) {
            (Config::AutoencoderKL(c), _) => 1 << (c.block_out_channels.len() - 1),
            (Config::AutoencoderTiny(c), Task::Decode) => {
                c.upsampling_scaling_factor.pow(c.num_decoder_blocks.len() as u32 - 1)
            }
            (Config::AutoencoderTiny(c), Task::Encode) => 1 << (c.num_encoder_blocks.len() - 1),
            (Config::Taef2(_), _) => 8,
        }
    }

    fn has_posterior(&self) -> bool {
        matches!(self.config, Config::AutoencoderKL(_))
    }

    /// The tiny networks clip their latents softly and work on pictures in 0..1.
    fn is_tiny(&self) -> bool {
        !self.has_posterior()
    }

    fn range(&self) -> Range {
        if self.is_tiny() { Range::Unit } else { Range::Symmetric }
    }
}

/// The mean of `[n, 2 c, h, w]` moments, or a sample: mean + exp(log-variance / 2) * noise.
fn pick(moments: &[f32], n: usize, mode: EncodeMode) -> Vec<f32> {
    let half = moments.len() / n / 2;
    let images = || moments.chunks_exact(2 * half);
    match mode {
        EncodeMode::Mean => images().flat_map(|image| &image[..half]).copied().collect(),
        EncodeMode::Sample { seed } => {
            let noise = gaussian::normals(seed, n * half);
            let pairs = images().flat_map(|image| image[..half].iter().zip(&image[half..]));
            // diffusers' bounds on the log-variance.
            pairs.zip(noise).map(|((m, v), noise)| m + libm::expf(0.5 * v.clamp(-30.0, 20.0)) * noise).collect()
        }
    }
}

// === impl Run ===

impl Run<'_> {
    fn step_done(&mut self) -> Result<(), EngineError> {
        Ok(self.observer.step_done()?)
    }
}
