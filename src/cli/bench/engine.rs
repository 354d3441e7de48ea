//! `bench engine`: a model of the local engine, run on noise in this process, as a server's engine would run it.
//!
//! The model is loaded once. Each size has a first run, which is told apart since it takes its memory from the system,
//! and then as many as were asked for. No queue, no cache and no rendering are in the numbers; a picture's numbers stay
//! f32 to their end, unless `--answer` says otherwise.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use bytesize::ByteSize;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use safetensors::tensor::TensorView;
use tokio::time::Instant;

use self::{
    apart::Apart,
    flags::{AnswerFlag, InstructionsFlag, PrecisionFlag, TaskFlag},
    input::Size,
    machine::Machine,
    measure::{Cost, Measured, Memory},
    report::Report,
};
use crate::{
    backend::local::{
        Config as EngineConfig,
        engine::{
            Arena, Autoencoder, Cancelled, Checkpoint, EncodeMode, EngineError, Facts, Foretold, Instructions,
            Observer, Precision, Scaling, Task,
        },
        threads::Threads,
    },
    cli::say,
    config::{Config, ModelConfig, Overrides},
    float,
    model::ModelSpec,
    tensor::{DType, Tensor},
    weights::{self, Found},
};

mod apart;
mod flags;
mod input;
mod machine;
mod measure;
mod report;

/// Flags of `bench engine`.
#[derive(Debug, Args)]
pub(in crate::cli) struct Engine {
    /// A model that the configuration knows, `builtin` among them; a diffusers directory; or a .safetensors file.
    #[arg(value_name = "MODEL")]
    model: String,
    /// What is computed.
    #[arg(long, value_enum, value_name = "TASK", default_value_t)]
    task: TaskFlag,
    /// Sizes of the pictures in pixels: 512, or 640x424 for width and height, separated by commas.
    #[arg(long, value_name = "SIZES", value_delimiter = ',', default_value = "256,512")]
    size: Vec<Size>,
    /// Pictures that are computed in one run, separated by commas: each size is measured with each number.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1", value_parser = clap::value_parser!(u16).range(1..=64))]
    batch: Vec<u16>,
    /// Runs of each size, after a first one.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    runs: u16,
    /// Threads that compute; 0: as many as there are processors. Default: engine.threads of the configuration.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=Threads::MAX as i64))]
    threads: Option<u16>,
    /// How activations are kept between layers. Default: engine.precision of the configuration.
    #[arg(long, value_enum, value_name = "PRECISION")]
    precision: Option<PrecisionFlag>,
    /// Memory a run may take besides the weights; beyond it, it works in bands. Default: engine.memory of the configuration.
    #[arg(long, value_name = "SIZE")]
    memory: Option<ByteSize>,
    /// Run each size once without bands as well, and tell how far apart the results are.
    #[arg(long, conflicts_with = "answer")]
    whole: bool,
    /// What of the processor the kernels use.
    #[arg(long, value_enum, value_name = "SET", default_value_t)]
    instructions: InstructionsFlag,
    /// A known model whose numbers a .safetensors file without a config.json has.
    #[arg(long, value_name = "MODEL")]
    like: Option<String>,
    /// What a decode's numbers become: f32, f16 as the servers of the protocol have them, or the pixels that a GPU makes.
    #[arg(long, value_enum, value_name = "TYPE", default_value_t)]
    answer: AnswerFlag,
    /// Write input and answer of the last run to a .safetensors file, to be held beside those of others. Takes one size and one batch.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Print JSON: an object a line for each size, as soon as it is measured.
    #[arg(long)]
    json: bool,
}

/// The model and all that is run on it.
struct Bench {
    model: Autoencoder,
    /// The model's.
    arena: Arena,
    memory: ByteSize,
    task: Task,
    runs: u16,
    answer: DType,
    save: Option<PathBuf>,
}

/// Shows how far the runs of one size are.
struct Watch<'a>(&'a ProgressBar);

// === impl Engine ===

impl Engine {
    pub(super) fn run(self, file: Option<&Path>) -> anyhow::Result<()> {
        let measured = self.size.len() * self.batch.len();
        ensure!(self.save.is_none() || measured == 1, "--save takes one --size and one --batch");
        let mut config = Config::load(file, &Overrides::default())?;
        let found = find(&self.spec(&mut config)?, &config, self.task.into())?;
        let mut engine = config.engine;
        engine.threads = self.threads.map_or(engine.threads, usize::from);
        engine.memory = self.memory.unwrap_or(engine.memory);
        // Nothing has run yet in this process.
        Instructions::from(self.instructions).choose();
        engine.precision = self.precision.map_or(engine.precision, Precision::from);
        let threads = Threads::start(engine.threads).context("the engine's threads do not start; lower --threads")?;
        threads.run(|| self.measure(&engine, &found, threads.count()))
    }

    /// What is known of the model before its weights are looked at. What the configuration does not know is a path.
    fn spec(&self, config: &mut Config) -> anyhow::Result<ModelSpec> {
        let known = |config: &Config, name: &str| config.model_table().get(name).map(|spec| (**spec).clone());
        if let Some(spec) = known(config, &self.model) {
            ensure!(self.like.is_none(), "--like is for files, and {} is a model that is known", self.model);
            return Ok(spec);
        }
        let path = Path::new(&self.model);
        ensure!(
            path.exists(),
            "{}: neither a model that the configuration knows nor a file or directory; `latentgate config print` shows \
             the configured ones, and --config FILE names another configuration",
            self.model
        );
        if let Some(like) = self.like.as_ref().filter(|like| known(config, like).is_none()) {
            bail!("--like {like}: no model is known by this name");
        }
        let model = ModelConfig { weights: Some(path.to_owned()), like: self.like.clone(), ..ModelConfig::default() };
        // No model has this name: a file's extension is none of its own.
        config.models.insert("benched".to_owned(), model);
        known(config, "benched").context("a model that was just inserted is not there")
    }

    fn measure(&self, config: &EngineConfig, found: &Found, threads: usize) -> anyhow::Result<()> {
        say(format_args!("loading {}", self.model));
        let began = Instant::now();
        let arena = Arena::default();
        let model = load(found, config).with_context(|| format!("{}{}", self.model, self.hint()))?;
        let model = model.with_arena(arena.clone());
        let loaded = began.elapsed();
        let facts = model.facts();
        for size in &self.size {
            size.check(facts.spatial_scale)?;
        }
        let report = Report {
            model: &self.model,
            task: self.task.into(),
            device: config.device.first(),
            facts: &facts,
            loaded,
            machine: Machine::read(threads),
            runs: self.runs,
        };
        let mut bench = Bench {
            model,
            arena,
            memory: config.memory,
            task: self.task.into(),
            runs: self.runs,
            answer: self.answer.into(),
            save: self.save.clone(),
        };
        let mut measured = Vec::new();
        for (size, batch) in
            self.size.iter().flat_map(|&size| self.batch.iter().map(move |&batch| (size, usize::from(batch))))
        {
            let of_size = bench.measure((size, batch), &facts)?;
            if self.json {
                report.print_json(&of_size)?;
            }
            measured.push(of_size);
            if self.whole {
                say(format_args!("{}: {}", named(size, batch), bench.compare((size, batch), &facts)?));
            }
        }
        if self.json { Ok(()) } else { report.print_table(&measured) }
    }

    /// What may be wrong when a file without a config.json does not load.
    fn hint(&self) -> &'static str {
        let path = Path::new(&self.model);
        let is_bare = path.is_file() && !path.with_file_name("config.json").exists();
        if is_bare && self.like.is_none() {
            " (without a config.json beside it this is taken for sd-v1: --like names another model)"
        } else {
            ""
        }
    }
}

fn find(spec: &ModelSpec, config: &Config, task: Task) -> anyhow::Result<Found> {
    let found = weights::find(spec, config.weights.hub_cache.as_deref())?;
    let other = if task == Task::Decode { Task::Encode } else { Task::Decode };
    let (half, other) = (task.label(), other.label());
    ensure!(found.tasks.contains(&task), "{}: these weights have no {half}r; say --task {other}", spec.id);
    Ok(found)
}

fn load(found: &Found, config: &EngineConfig) -> anyhow::Result<Autoencoder> {
    let weights = found.read()?;
    let checkpoint = Checkpoint { config: &found.config, weights: &weights };
    let model = Autoencoder::load(&checkpoint, &config.device.first(), config.precision)?;
    Ok(model.with_memory(config.memory.as_u64()))
}

/// Tensors as a .safetensors file.
fn save(file: &Path, tensors: [(&str, &Tensor); 2]) -> anyhow::Result<()> {
    let views = tensors.map(|(name, tensor)| {
        let dtype = match tensor.dtype() {
            DType::F32 => safetensors::Dtype::F32,
            DType::F16 => safetensors::Dtype::F16,
            DType::BF16 => safetensors::Dtype::BF16,
            DType::U8 => safetensors::Dtype::U8,
        };
        TensorView::new(dtype, tensor.shape().dims().to_vec(), tensor.data()).map(|view| (name, view))
    });
    let views = views.into_iter().collect::<Result<Vec<_>, _>>()?;
    safetensors::serialize_to_file(views, None, file).with_context(|| format!("writing {}", file.display()))
}

// === impl Bench ===

impl Bench {
    /// All runs of so many pictures of a size.
    fn measure(&self, (size, batch): (Size, usize), facts: &Facts) -> anyhow::Result<Measured> {
        let input = self.input((size, batch), facts)?;
        let Foretold { bytes: foretold, steps, .. } = self.model.foretell(self.task, [batch, size.height, size.width]);
        ensure!(
            foretold <= self.memory.as_u64(),
            "{batch} x {size} take {} besides the weights, even in bands; --memory allows {}",
            ByteSize(foretold),
            self.memory
        );
        let name = named(size, batch);
        let bar = bar(&name, u64::from(steps) * (u64::from(self.runs) + 1));
        self.arena.release();
        measure::rest();
        let is_peak_own = measure::forget_peak();
        if !is_peak_own {
            bar.suspend(|| {
                say("the system does not let the peak of memory be set back: it is that of the whole process so far");
            });
        }
        let before = Memory::now();
        let (mut answer, first) = self.run(&input, &bar)?;
        bar.suspend(|| say(format_args!("{name}: first run: {}", first.told())));
        let mut later = Vec::with_capacity(usize::from(self.runs));
        for index in 1..=self.runs {
            drop(answer);
            let cost;
            (answer, cost) = self.run(&input, &bar)?;
            bar.suspend(|| say(format_args!("{name}: run {index} of {}: {}", self.runs, cost.told())));
            later.push(cost);
        }
        bar.finish_and_clear();
        let after = Memory::now();
        if let Some(file) = &self.save {
            save(file, [("input", &input), ("answer", &answer)])?;
        }
        Ok(Measured { size, batch, first, later, before, after, foretold, is_peak_own })
    }

    /// How far the result in the memory that is allowed is from one without bands.
    fn compare(&mut self, (size, batch): (Size, usize), facts: &Facts) -> anyhow::Result<Apart> {
        let (input, allowed) = (self.input((size, batch), facts)?, self.memory.as_u64());
        let mut run = |memory: u64| {
            self.model.set_memory(memory);
            let foretold = self.model.foretell(self.task, [batch, size.height, size.width]);
            let (output, _) = self.run(&input, &bar(&named(size, batch), u64::from(foretold.steps)))?;
            self.arena.release();
            anyhow::Ok(output)
        };
        let whole = run(u64::MAX)?;
        let limited = run(allowed)?;
        Ok(Apart::of(&limited, &whole))
    }

    fn input(&self, (size, batch): (Size, usize), facts: &Facts) -> anyhow::Result<Tensor> {
        match self.task {
            Task::Decode => size.latents(batch, facts.latent_channels, facts.spatial_scale),
            Task::Encode => size.pictures(batch),
        }
    }

    fn run(&self, input: &Tensor, bar: &ProgressBar) -> anyhow::Result<(Tensor, Cost)> {
        let mut watch = Watch(bar);
        let (output, cost) = Cost::of(|| match self.task {
            Task::Decode => self.model.decode(input, Scaling::NONE, self.answer, &mut watch),
            Task::Encode => self.model.encode(input, (EncodeMode::Mean, Scaling::NONE), DType::F32, &mut watch),
        });
        let output = output.map_err(|error: EngineError| anyhow::Error::new(error).context("the engine failed"))?;
        ensure!(
            float::is_finite(&output),
            "the answer holds NaN or infinity: try --precision f32, or look at the weights"
        );
        Ok((output, cost))
    }
}

/// For a line about so many pictures of a size.
fn named(size: Size, batch: usize) -> String {
    if batch == 1 { size.to_string() } else { format!("{batch} x {size}") }
}

/// For so many steps of the engine; nothing where standard error is no terminal.
fn bar(name: &str, steps: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} [{bar:40}] {pos}/{len} steps, {elapsed}, {eta} to go")
        .expect("the template is valid");
    ProgressBar::new(steps).with_style(style.progress_chars("=> ")).with_prefix(name.to_owned())
}

impl Observer for Watch<'_> {
    fn step_done(&mut self) -> Result<(), Cancelled> {
        self.0.inc(1);
        Ok(())
    }
}
