//! `cache warm`: sends files to the data port, so that what is made of them is kept before anybody asks.
//!
//! Answers are read to their end and thrown away: a run whose last waiter leaves would be stopped. A file that fails does
//! not stop the others.

use std::{
    collections::{BTreeMap, VecDeque},
    io::IsTerminal as _,
    path::PathBuf,
    sync::Arc,
};

use anyhow::{Context as _, bail};
use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use serde_json::json;
use tracing::Span;

use crate::{
    cli::{
        answer,
        client::{Answer, BlockBar, Client, source_name},
        decode, encode,
        files::{self, Format, Input},
        request::{Common, Connection, DtypeFlag, tensor_spec},
        say,
    },
    proto::{self, encode_spec},
    task,
};

/// Flags of `cache warm`.
#[derive(Debug, Args)]
pub(in crate::cli) struct Warm {
    /// Latents (.safetensors, .npy) to decode, pictures (.png, .jpg, .webp) to encode.
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    common: Common,
    /// What latents are decoded to.
    #[arg(long, value_enum, value_name = "FORM", default_value_t)]
    form: Form,
    /// Quality of a jpg. Default: 75.
    #[arg(long, value_name = "1..100", value_parser = clap::value_parser!(u8).range(1..=100))]
    quality: Option<u8>,
    /// Element type of a decoded tensor. Default: f16.
    #[arg(long, value_enum, value_name = "DTYPE")]
    dtype: Option<DtypeFlag>,
    /// Height of the pictures in pixels, for packed latents.
    #[arg(long, value_name = "PIXELS", requires = "width")]
    height: Option<u32>,
    /// Width of the pictures in pixels, for packed latents.
    #[arg(long, value_name = "PIXELS", requires = "height")]
    width: Option<u32>,
    /// Element type of the latents that pictures are encoded to: f32, f16 or bf16.
    #[arg(long, value_enum, value_name = "DTYPE", default_value = "f16")]
    latents_dtype: DtypeFlag,
    /// Files on their way at a time.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    concurrency: u16,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

/// `--form`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Form {
    /// What `decode` makes of an output .png.
    #[default]
    Png,
    /// Of a .jpg.
    Jpg,
    /// Of a .webp.
    Webp,
    /// Of a .safetensors.
    Tensor,
}

/// A warming in progress.
struct Crew {
    warm: Warm,
    client: Client,
    output: proto::Output,
    latents_dtype: proto::Dtype,
    bar: Option<ProgressBar>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<PathBuf>,
    /// By where they came from.
    answers: BTreeMap<&'static str, u64>,
    bytes: u64,
    failed: u64,
}

impl Warm {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let output = decode::output(self.form.format(), self.dtype, self.quality)?;
        let latents_dtype = self.latents_dtype.float("latents")?;
        let client = Client::connect(&self.connection, BlockBar::hidden()).await?;
        let state = Mutex::new(State { waiting: self.files.iter().cloned().collect(), ..State::default() });
        let (bar, workers) = (bar(self.files.len()), usize::from(self.concurrency).min(self.files.len()));
        let crew = Arc::new(Crew { warm: self, client, output, latents_dtype, bar, state });
        let work: Vec<_> = (0..workers).map(|_| task::spawn(Span::none(), crew.clone().work())).collect();
        for worker in work {
            worker.join().await.context("a request panicked")?;
        }
        crew.tell()
    }
}

// === impl Crew ===

impl Crew {
    async fn work(self: Arc<Self>) {
        loop {
            let next = self.state.lock().waiting.pop_front();
            let Some(path) = next else { return };
            match self.send(path.clone()).await {
                Ok(answer) => {
                    let mut state = self.state.lock();
                    *state.answers.entry(source_name(answer.source)).or_default() += 1;
                    state.bytes += answer.data.len() as u64;
                }
                Err(error) => {
                    self.state.lock().failed += 1;
                    self.aside(&format!("{}: {error:#}", path.display()));
                }
            }
            if let Some(bar) = &self.bar {
                bar.inc(1);
            }
        }
    }

    async fn send(&self, path: PathBuf) -> anyhow::Result<Answer> {
        let tensor = self.warm.common.tensor.clone();
        // The name of a tensor is for files that have names.
        let tensor = tensor.filter(|_| Format::of(&path).is_ok_and(|format| format == Format::Safetensors));
        let input = task::blocking(move || files::read(&path, tensor.as_deref())).await;
        let order = self.warm.common.order();
        match input.context("reading the file panicked")?? {
            Input::Tensor(latents) => {
                let spec = self.decode_spec(tensor_spec(&latents));
                self.client.decode(spec, latents.into_data(), order).await
            }
            Input::Picture(file) => self.client.encode(self.encode_spec(&file), file, order).await,
        }
    }

    fn decode_spec(&self, latents: proto::TensorSpec) -> proto::DecodeSpec {
        let Warm { common, height, width, .. } = &self.warm;
        proto::DecodeSpec {
            model: common.model.clone(),
            latents: Some(latents),
            scaling: common.scaling(),
            height: height.unwrap_or(0),
            width: width.unwrap_or(0),
            output: Some(self.output),
            cache: common.cache(),
            ..proto::DecodeSpec::default()
        }
    }

    fn encode_spec(&self, file: &[u8]) -> proto::EncodeSpec {
        let common = &self.warm.common;
        proto::EncodeSpec {
            model: common.model.clone(),
            input: Some(encode_spec::Input::Image(encode::image(file))),
            scaling: common.scaling(),
            output_dtype: self.latents_dtype as i32,
            cache: common.cache(),
            ..proto::EncodeSpec::default()
        }
    }

    /// A line that does not tear the bar.
    fn aside(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => say(line),
        }
    }

    fn tell(&self) -> anyhow::Result<()> {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let state = self.state.lock();
        let State { answers, bytes, failed, .. } = &*state;
        if self.warm.json {
            answer(json!({ "answers": answers, "failed": failed, "bytes": bytes }))?;
        } else {
            let words = answers.iter().map(|(source, count)| format!("{count} {source}"));
            let words: Vec<_> = words.chain((*failed > 0).then(|| format!("{failed} failed"))).collect();
            let (files, bytes) = (self.warm.files.len(), ByteSize(*bytes).display().iec());
            answer(format_args!("{files} files: {}; {bytes} of answers", words.join(", ")))?;
        }
        if *failed > 0 {
            bail!("{failed} of {} files failed", self.warm.files.len());
        }
        Ok(())
    }
}

impl Form {
    const fn format(self) -> Format {
        match self {
            Self::Png => Format::Png,
            Self::Jpg => Format::Jpeg,
            Self::Webp => Format::Webp,
            Self::Tensor => Format::Safetensors,
        }
    }
}

/// A bar on standard error, if that is a terminal.
fn bar(files: usize) -> Option<ProgressBar> {
    if !std::io::stderr().is_terminal() {
        return None;
    }
    let bar = ProgressBar::new(files as u64);
    if let Ok(style) = ProgressStyle::with_template("warming {bar:32} {pos}/{len} files {per_sec} {eta}") {
        bar.set_style(style);
    }
    Some(bar)
}
