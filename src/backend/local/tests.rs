//! The engine's thread with jobs that wait: a model whose weights do not come holds it until they do.

use std::{collections::HashSet, path::Path, sync::mpsc};

use futures_util::future::join_all;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    backend::Others,
    hops::Hops,
    job::EncodeMode,
    model::{ModelId, ModelTable, Scaling},
    progress::Progress,
    tensor::{DType, Shape, Tensor},
};

/// An engine with the builtin model, and one whose weights never come.
struct Rig {
    local: Arc<Local>,
    metrics: Metrics,
    table: ModelTable,
    /// Lets the one that was asked for weights know that there are none.
    hold: mpsc::Sender<()>,
}

const HELD: &str = "taesd";

impl Rig {
    async fn start(config: Config) -> Self {
        let rig = Self::new(config);
        rig.until("builtin", &ModelState::Ready).await;
        rig
    }

    fn new(config: Config) -> Self {
        let table = ModelTable::known();
        let (hold, held) = mpsc::channel();
        let held = parking_lot::Mutex::new(held);
        let never: ReadWeights = Box::new(move || {
            held.lock().recv().expect("the rig outlives the engine");
            Err(std::io::ErrorKind::NotFound.into())
        });
        let model = |name: &str, weights: ReadWeights, preload| {
            let spec = table.get(name).expect("a known model").clone();
            LocalModel { spec, weights: Ok(weights), preload }
        };
        let models = vec![model("builtin", Box::new(builtin), true), model(HELD, never, false)];
        let metrics = Metrics::new();
        let local = Arc::new(Local::start(&Config { threads: 2, ..config }, models, metrics.clone()).unwrap());
        Self { local, metrics, table, hold }
    }

    async fn until(&self, model: &str, state: &ModelState) {
        let id = ModelId::try_new(model).unwrap();
        self.local.health().wait_for(|health| health.get(&id) == Some(state)).await.unwrap();
    }

    fn job(&self, model: &str, mark: f32, work: Work) -> Compute {
        let model = self.table.get(model).unwrap().clone();
        let job = Arc::new(Job::new(model, Scaling { factor: mark, shift: 0.0 }, work));
        let (progress, cancel) = (watch::Sender::new(Progress::default()), CancellationToken::new());
        Compute { job, progress, cancel, others: Others::None, hops: Hops::default() }
    }

    fn decode(&self, latents: Tensor, output: Output) -> Compute {
        self.job("builtin", 1.0, Work::Decode { latents, output })
    }

    #[expect(clippy::disallowed_methods, reason = "a test owns what it spawned by its handle")]
    fn ask(&self, compute: Compute) -> JoinHandle<Result<Tensor, Error>> {
        let local = self.local.clone();
        tokio::spawn(async move { local.compute(compute).await.map(|made| made.tensor) })
    }

    /// Has all of these wait before the engine takes the first of them.
    async fn ask_at_once(&self, jobs: Vec<Compute>) -> Vec<Result<Tensor, Error>> {
        self.hold_until(jobs, || {}).await
    }

    /// The same, and something done while they wait.
    async fn hold_until(&self, jobs: Vec<Compute>, meanwhile: impl FnOnce()) -> Vec<Result<Tensor, Error>> {
        let latents = noise(&[1, 4, 8, 8], 1);
        let held = self.ask(self.job(HELD, 1.0, Work::Decode { latents, output: Output::Uint8 }));
        self.until(HELD, &ModelState::Loading).await;
        let mut asked = Vec::new();
        for job in jobs {
            asked.push(self.ask(job));
            while self.local.queue.waiting() < asked.len() {
                tokio::task::yield_now().await;
            }
        }
        meanwhile();
        self.hold.send(()).unwrap();
        assert_eq!(held.await.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
        join_all(asked).await.into_iter().map(Result::unwrap).collect()
    }

    /// Runs, and jobs that they answered.
    fn counted(&self) -> (f64, f64) {
        let text = self.metrics.render();
        let sum = |name: &str| {
            let ours = text.lines().filter(|line| line.starts_with(name));
            ours.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
        };
        (sum("latentgate_engine_run_seconds_count"), sum("latentgate_engine_jobs_total"))
    }
}

fn builtin() -> std::io::Result<Weights> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/builtin");
    let tensors = std::fs::read(folder.join("diffusion_pytorch_model.safetensors"))?.into();
    Ok(Weights { config: std::fs::read_to_string(folder.join("config.json"))?, tensors })
}

fn noise(dims: &[usize], seed: u64) -> Tensor {
    let mut random = fastrand::Rng::with_seed(seed);
    let data: Vec<u8> = (0..dims.iter().product()).flat_map(|_| (random.f32() * 2.0 - 1.0).to_le_bytes()).collect();
    Tensor::try_new(DType::F32, Shape::try_new(dims).unwrap(), data.into()).unwrap()
}

fn well(answers: Vec<Result<Tensor, Error>>) -> Vec<Tensor> {
    answers.into_iter().map(Result::unwrap).collect()
}

/// Jobs of three sorts; those of one sort may share a run.
fn mixed(rig: &Rig) -> Vec<Compute> {
    let encode = |seed, mode| {
        let work = Work::Encode { pixels: noise(&[1, 3, 64, 64], seed), mode, dtype: DType::F32 };
        rig.job("builtin", 0.5, work)
    };
    vec![
        rig.decode(noise(&[1, 4, 8, 8], 1), Output::Uint8),
        rig.decode(noise(&[1, 4, 16, 8], 2), Output::Uint8),
        encode(3, EncodeMode::Mean),
        rig.decode(noise(&[2, 4, 8, 8], 4), Output::Tensor(DType::F32)),
        encode(5, EncodeMode::Sample { seed: 9 }),
        rig.job("builtin", 2.0, Work::Decode { latents: noise(&[1, 4, 8, 8], 6), output: Output::Tensor(DType::BF16) }),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_wait_and_are_alike_share_a_run_and_have_the_bits_of_their_own() {
    let alone = Rig::start(Config { batch: 1, ..Config::default() }).await;
    let wanted = well(alone.ask_at_once(mixed(&alone)).await);
    assert_eq!(alone.counted(), (6.0, 6.0));
    let rig = Rig::start(Config { batch: 8, ..Config::default() }).await;
    let got = well(rig.ask_at_once(mixed(&rig)).await);
    assert_eq!(rig.counted(), (3.0, 6.0));
    assert!(got == wanted);
    // No two are the same, or equality would say little.
    let distinct: HashSet<_> = wanted.iter().map(|tensor| tensor.data().clone()).collect();
    assert_eq!(distinct.len(), wanted.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_bounded_in_pictures_in_pixels_and_in_memory() {
    let small = |rig: &Rig| (1..=5).map(|seed| rig.decode(noise(&[1, 4, 8, 8], seed), Output::Uint8)).collect();
    let rig = Rig::start(Config { batch: 2, ..Config::default() }).await;
    well(rig.ask_at_once(small(&rig)).await);
    assert_eq!(rig.counted(), (3.0, 5.0));
    let rig = Rig::start(Config { batch: 64, ..Config::default() }).await;
    let side = (worker::BATCH_PIXELS / 64).isqrt();
    let large = (1..=3).map(|seed| rig.decode(noise(&[1, 4, side, side], seed), Output::Uint8)).collect();
    well(rig.ask_at_once(large).await);
    assert_eq!(rig.counted(), (3.0, 3.0));
    // What one of them takes, and not what two take.
    let memory = Threads::start(2).unwrap().run(|| {
        let weights = builtin().unwrap();
        let checkpoint = engine::Checkpoint { config: &weights.config, weights: &weights.tensors };
        let model = engine::Autoencoder::load(&checkpoint, &Device::Cpu, Precision::F32).unwrap();
        ByteSize(model.foretell(engine::Task::Decode, [1, 64, 64]).bytes)
    });
    let rig = Rig::start(Config { batch: 64, memory, ..Config::default() }).await;
    well(rig.ask_at_once(small(&rig)).await);
    assert_eq!(rig.counted(), (5.0, 5.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_leaves_hurts_nobody() {
    let rig = Rig::start(Config { batch: 8, ..Config::default() }).await;
    let jobs: Vec<_> = (1..=3).map(|seed| rig.decode(noise(&[1, 4, 8, 8], seed), Output::Uint8)).collect();
    let leaves = jobs[1].cancel.clone();
    let mut answers = rig.hold_until(jobs.clone(), move || leaves.cancel()).await;
    let left = answers.remove(1);
    assert!(left.is_err());
    for (answer, job) in answers.into_iter().zip([&jobs[0], &jobs[2]]) {
        let again = Compute { cancel: CancellationToken::new(), ..job.clone() };
        assert!(answer.unwrap() == rig.ask(again).await.unwrap().unwrap());
    }
    assert_eq!(rig.counted(), (3.0, 4.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_one_is_no_others_fault() {
    let rig = Rig::start(Config { batch: 8, ..Config::default() }).await;
    let encode = |seed, factor| {
        let pixels = noise(&[1, 3, 64, 64], seed);
        rig.job("builtin", factor, Work::Encode { pixels, mode: EncodeMode::Mean, dtype: DType::F16 })
    };
    let wanted = rig.ask(encode(1, 1.0)).await.unwrap().unwrap();
    // Beyond what f16 holds.
    let answers = rig.ask_at_once(vec![encode(1, 1.0), encode(2, f32::MAX), encode(3, 1.0)]).await;
    assert!(*answers[0].as_ref().unwrap() == wanted && answers[2].is_ok());
    assert_eq!(answers[1].as_ref().unwrap_err().kind(), ErrorKind::BadRequest);
    assert_eq!(rig.counted(), (2.0, 3.0));
    // The network does not take it at all, and so not the run that it is in.
    let right = |seed| rig.decode(noise(&[1, 4, 8, 8], seed), Output::Uint8);
    let odd = rig.decode(noise(&[1, 5, 8, 8], 4), Output::Uint8);
    let answers = rig.ask_at_once(vec![right(5), odd, right(6)]).await;
    assert!(answers[0].is_ok() && answers[2].is_ok());
    assert_eq!(answers[1].as_ref().unwrap_err().kind(), ErrorKind::Internal);
    assert_eq!(rig.counted(), (4.0, 5.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_one_device_is_busy_another_takes_what_comes() {
    let device = Devices::new([Device::Cpu, Device::Cpu]);
    let rig = Rig::start(Config { device, ..Config::default() }).await;
    let latents = noise(&[1, 4, 8, 8], 1);
    let held = rig.ask(rig.job(HELD, 1.0, Work::Decode { latents: latents.clone(), output: Output::Uint8 }));
    rig.until(HELD, &ModelState::Loading).await;
    let answers = join_all((0..5).map(|_| rig.ask(rig.decode(latents.clone(), Output::Uint8)))).await;
    let answers = well(answers.into_iter().map(Result::unwrap).collect());
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    assert!(!held.is_finished());
    // Each of the two is told that there are no weights before the one who waits is.
    rig.hold.send(()).unwrap();
    rig.hold.send(()).unwrap();
    assert_eq!(held.await.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_does_not_open_leaves_its_work_to_the_others() {
    // Beyond what any machine has.
    let (none, metric) = (Device::Cuda(4096), r#"latentgate_engine_failing{device="cuda:4096",model="builtin"} 1"#);
    let rig = Rig::start(Config { device: Devices::new([none, Device::Cpu]), ..Config::default() }).await;
    let jobs = || (1..=9).map(|seed| rig.decode(noise(&[1, 4, 8, 8], seed), Output::Uint8));
    well(join_all(jobs().map(|job| rig.ask(job))).await.into_iter().map(Result::unwrap).collect());
    assert!(rig.metrics.render().contains(metric));
    let id = ModelId::try_new("builtin").unwrap();
    assert_eq!(rig.local.health().borrow().get(&id), Some(&ModelState::Ready));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_no_device_opens_every_job_is_told() {
    let device = Devices::new([Device::Cuda(4096), Device::Cuda(4097)]);
    let rig = Rig::new(Config { device, ..Config::default() });
    let jobs = (1..=3).map(|seed| rig.ask(rig.decode(noise(&[1, 4, 8, 8], seed), Output::Uint8)));
    for answer in join_all(jobs).await {
        let error = answer.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    }
    let id = ModelId::try_new("builtin").unwrap();
    assert!(matches!(rig.local.health().borrow().get(&id), Some(ModelState::Failed { .. })));
}
