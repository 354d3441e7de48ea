//! The whole product on a disk: what it keeps over a restart, what it does about damage, and about a disk that is full.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use latentgate::{
    Config,
    proto::{CachePolicy, DecodeSpec, Dtype, Output, Source, output},
};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tonic::Code;

use crate::support::{Answer, Client, Gated, TestApp, config, decode_spec, latents, reason};

/// An app with a disk tier in a folder, before a backend with gates.
struct Rig {
    folder: TempDir,
    config: Config,
    app: TestApp,
    gated: Arc<Gated>,
    client: Client,
}

/// f32 numbers of `8h x 8w` pixels: 12 bytes each.
fn spec([h, w]: [usize; 2]) -> DecodeSpec {
    let kind = output::Kind::Tensor(output::Tensor { dtype: Dtype::F32 as i32 });
    DecodeSpec { output: Some(Output { kind: Some(kind) }), ..decode_spec(h, w) }
}

/// A little more than one chunk of a stored artifact, and a little more than four.
const SMALL: [usize; 2] = [8, 8];
const CHUNKS: [usize; 2] = [80, 72];

impl Rig {
    async fn start() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let folder = TempDir::new().unwrap();
        let mut config = config();
        config.cache.disk.path = Some(folder.path().join("cache"));
        config.cache.disk.min_free = bytesize::ByteSize(0);
        change(&mut config);
        let (app, gated) = TestApp::gated(config.clone()).await;
        gated.open(100);
        let client = app.client().await;
        Self { folder, config, app, gated, client }
    }

    /// A new process, as far as memory goes.
    async fn restart(self) -> Self {
        let Self { folder, config, mut app, client, .. } = self;
        drop(client);
        app.stop();
        app.stopped().await;
        let (app, gated) = TestApp::gated(config.clone()).await;
        gated.open(100);
        let client = app.client().await;
        Self { folder, config, app, gated, client }
    }

    async fn ask(&self, size: [usize; 2], seed: u32) -> Answer {
        self.client.decode(spec(size), latents(size[0], size[1], seed)).await.expect("an answer")
    }

    async fn until_written(&self) {
        self.app.until_idle().await;
        self.app.until("latentgate_cache_fill_queue_bytes", &[], 0.0).await;
    }

    async fn corruptions(&self) -> f64 {
        self.app.metric("latentgate_cache_corruptions_total", &[]).await
    }

    fn file(&self) -> PathBuf {
        let files = artifacts(&self.folder.path().join("cache"));
        assert_eq!(files.len(), 1, "{files:?}");
        files.into_iter().next().unwrap()
    }
}

/// Files of artifacts.
fn artifacts(cache: &Path) -> Vec<PathBuf> {
    let shelves = fs::read_dir(cache.join("v1")).unwrap().map(|shelf| shelf.unwrap().path());
    let shelves = shelves.filter(|shelf| shelf.file_name().is_some_and(|name| name.len() == 2));
    shelves.flat_map(|shelf| fs::read_dir(shelf).unwrap().map(|file| file.unwrap().path())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_outlives_the_process_and_is_proved_to_the_last_byte() {
    let mut rig = Rig::start().await;
    let mut answers = Vec::new();
    for (seed, size) in (1..).zip([SMALL, CHUNKS]) {
        answers.push(rig.ask(size, seed).await);
    }
    rig = rig.restart().await;
    for (before, (seed, size)) in answers.iter().zip((1..).zip([SMALL, CHUNKS])) {
        let after = rig.ask(size, seed).await;
        assert_eq!(after.source(), Source::Disk);
        assert!(after.bytes() == before.bytes());
        assert_eq!(rig.ask(size, seed).await.source(), Source::Memory);
    }
    assert_eq!(rig.gated.runs(), 0);
    assert_eq!(rig.app.metric("latentgate_requests_total", &["outcome=\"hit_disk\""]).await, 2.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_equal_misses_read_the_disk_once() {
    let rig = Rig::start().await;
    let right = rig.ask(CHUNKS, 1).await.bytes();
    let rig = rig.restart().await;
    let mut asking = JoinSet::new();
    for _ in 0..64 {
        let client = rig.app.client().await;
        asking.spawn(async move { client.decode(spec(CHUNKS), latents(CHUNKS[0], CHUNKS[1], 1)).await.unwrap() });
    }
    for answer in asking.join_all().await {
        assert!(answer.bytes() == right);
    }
    assert_eq!(rig.app.metric("latentgate_cache_lookups_total", &["result=\"hit\""]).await, 1.0);
    assert_eq!((rig.app.metric("latentgate_cache_lookups_total", &[]).await, rig.gated.runs()), (1.0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_flipped_the_answer_is_right_and_the_damage_counted() {
    for size in [SMALL, CHUNKS] {
        let mut rig = Rig::with(|config| config.cache.memory.capacity = bytesize::ByteSize(0)).await;
        let right = rig.ask(size, 1).await.bytes();
        rig = rig.restart().await;
        let length = fs::metadata(rig.file()).unwrap().len();
        // In the head, in the first chunk, in every later one: those turn up when others have been published.
        let places = [3, 100, 1000].into_iter().chain((0..length).step_by(1 << 20).skip(1)).chain([length - 1]);
        for (turn, at) in (1..).zip(places.map(|at| at as usize)) {
            let mut bytes = fs::read(rig.file()).unwrap();
            bytes[at] ^= 0x20;
            fs::write(rig.file(), bytes).unwrap();
            let answer = rig.ask(size, 1).await;
            assert!(answer.bytes() == right, "byte {at} of {length}");
            assert_eq!((rig.corruptions().await as usize, rig.gated.runs()), (turn, turn), "byte {at} of {length}");
            rig.until_written().await;
            assert_eq!(rig.ask(size, 1).await.source(), Source::Disk, "written anew");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_only_wants_what_is_kept_gets_it_from_disk_and_nothing_else() {
    let rig = Rig::start().await;
    rig.ask(SMALL, 1).await;
    let rig = rig.restart().await;
    let kept = |seed| {
        let spec = DecodeSpec { cache: CachePolicy::OnlyIfCached as i32, ..spec(SMALL) };
        rig.client.decode(spec, latents(8, 8, seed))
    };
    assert_eq!(kept(1).await.unwrap().source(), Source::Disk);
    assert_eq!(reason(&kept(2).await.err().unwrap()), (Code::NotFound, "NOT_CACHED".to_owned()));
    // Digest first: the name is known once the input was seen, and the answer is on disk alone.
    let fresh = DecodeSpec { cache: CachePolicy::Bypass as i32, ..spec(SMALL) };
    assert_eq!(rig.client.decode(fresh, latents(8, 8, 1)).await.unwrap().source(), Source::Computed);
    assert_eq!(rig.gated.runs(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn digest_first_finds_what_is_on_disk_alone() {
    let rig = Rig::with(|config| config.cache.memory.capacity = bytesize::ByteSize(0)).await;
    let data = latents(8, 8, 1);
    let right = rig.ask(SMALL, 1).await.bytes();
    rig.until_written().await;
    let digest = Bytes::copy_from_slice(blake3::hash(&data).as_bytes());
    let named = DecodeSpec { digest, ..spec(SMALL) };
    let answer = rig.client.decode(named.clone(), Bytes::new()).await.expect("the input is not needed");
    assert_eq!((answer.source(), answer.bytes() == right), (Source::Disk, true));
    fs::remove_file(rig.file()).unwrap();
    let message = latentgate::proto::DecodeRequest { spec: Some(named), data: Bytes::new() };
    let mut stream = rig.client.open_decode(tokio_stream::iter([message]), None).await.unwrap();
    let first = stream.message().await.unwrap().unwrap().event;
    assert!(matches!(first, Some(latentgate::proto::decode_response::Event::NeedData(_))), "it asks for the data");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_past_its_time_is_made_anew() {
    let live = |time| {
        move |config: &mut Config| {
            config.models.entry("builtin".to_owned()).or_default().time_to_live = Some(time);
        }
    };
    let rig = Rig::with(live(Duration::from_hours(1))).await;
    rig.ask(SMALL, 1).await;
    let mut rig = rig.restart().await;
    assert_eq!(rig.ask(SMALL, 1).await.source(), Source::Disk);
    live(Duration::from_nanos(1))(&mut rig.config);
    let rig = rig.restart().await;
    assert_eq!(rig.ask(SMALL, 1).await.source(), Source::Computed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_share_nothing() {
    let mut rig = Rig::start().await;
    rig.ask(SMALL, 1).await;
    rig.config.cache.namespace = "other".to_owned();
    let rig = rig.restart().await;
    assert_eq!(rig.ask(SMALL, 1).await.source(), Source::Computed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_another_process_owns_is_an_error_with_a_remedy() {
    let rig = Rig::start().await;
    let error = latentgate::App::bind(rig.config.clone()).await.err().expect("one owner at a time");
    assert!(error.to_string().contains("give each its own"), "{error}");
}

/// A file system of so many bytes; none where this process may not mount one, which is said.
struct Tmpfs(TempDir);

impl Tmpfs {
    fn mount(options: &str) -> Option<Self> {
        let folder = TempDir::new().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "none"]).arg(folder.path()).stderr(Stdio::null());
        let is_mounted = mount.status().is_ok_and(|status| status.success());
        if !is_mounted {
            println!("NOT RUN: a full disk; this process may not mount a tmpfs");
        }
        is_mounted.then_some(Self(folder))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

async fn on(disk: &Tmpfs) -> Rig {
    Rig::with(|config| {
        config.cache.disk.path = Some(disk.0.path().join("cache"));
        config.cache.disk.rest_time = Duration::from_millis(1);
        config.cache.memory.capacity = bytesize::ByteSize(0);
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_others_fill_costs_hits_and_no_answer_and_is_used_again() {
    let Some(disk) = Tmpfs::mount("size=4m") else { return };
    let rig = on(&disk).await;
    let filler = disk.0.path().join("filler");
    let system = rustix::fs::statvfs(disk.0.path()).unwrap();
    fs::write(&filler, vec![0; (system.f_bavail * system.f_frsize) as usize]).unwrap();
    for seed in 1..8 {
        assert_eq!(rig.ask(SMALL, seed).await.source(), Source::Computed);
        rig.until_written().await;
    }
    assert_eq!(rig.app.metric("latentgate_cache_write_failures_total", &[]).await, 7.0);
    fs::remove_file(filler).unwrap();
    rig.ask(SMALL, 7).await;
    rig.until_written().await;
    assert_eq!(rig.ask(SMALL, 7).await.source(), Source::Disk, "as if nothing had been");
}

/// The file system says that there is room, and fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_without_room_for_one_more_file_makes_some_and_goes_on() {
    let Some(disk) = Tmpfs::mount("size=64m,nr_inodes=270") else { return };
    let rig = on(&disk).await;
    let mut kept = 0;
    for seed in 1..40 {
        assert_eq!(rig.ask(SMALL, seed).await.source(), Source::Computed);
        rig.until_written().await;
        kept += u32::from(rig.ask(SMALL, seed).await.source() == Source::Disk);
    }
    assert_eq!(kept, 39, "every one, for a while");
    assert_eq!(rig.app.metric("latentgate_cache_write_failures_total", &[]).await, 0.0);
    assert!(rig.app.metric("latentgate_cache_evictions_total", &["reason=\"space\""]).await >= 25.0);
}

/// Files that a released version wrote are hits for this one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_every_released_version_stored_is_still_a_hit() {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stored/v1");
    let rig = Rig::start().await;
    let right = rig.ask([1, 1], 1).await.bytes();
    let rig = rig.restart().await;
    let file = rig.file();
    let name = file.strip_prefix(rig.folder.path().join("cache/v1")).unwrap().to_string_lossy().replace('/', "");
    if std::env::var_os("LATENTGATE_BLESS").is_some() {
        fs::create_dir_all(&sample).unwrap();
        fs::copy(&file, sample.join(&name)).unwrap();
    }
    fs::copy(sample.join(&name), &file).expect("a sample of this key: LATENTGATE_BLESS=1 writes it for a new version");
    let answer = rig.ask([1, 1], 1).await;
    assert_eq!((answer.source(), answer.bytes() == right, rig.gated.runs()), (Source::Disk, true, 0));
}
