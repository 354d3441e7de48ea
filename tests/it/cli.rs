//! The built binary, used as a person or a supervisor uses it.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, ChildStderr, Command, Output, Stdio},
};

const PICTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/render/scene.png");

fn latentgate() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_latentgate"));
    // What the person who runs the tests has configured is not under test.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LATENTGATE")) {
        command.env_remove(name);
    }
    command
}

/// Runs a command to its end.
fn run<const N: usize>(arguments: [&str; N]) -> Output {
    latentgate().args(arguments).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn utf8(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A running `latentgate serve`. Killed if a test fails before it stops it.
struct Serve {
    child: Child,
    log: BufReader<ChildStderr>,
    url: String,
    admin: String,
}

impl Serve {
    fn start() -> Self {
        Self::of(latentgate())
    }

    /// With a disk tier in a folder.
    fn on_disk(folder: &Path) -> Self {
        let mut command = latentgate();
        command.env("LATENTGATE__CACHE__DISK__PATH", folder).env("LATENTGATE__CACHE__DISK__MIN_FREE", "0B");
        Self::of(command)
    }

    fn of(mut command: Command) -> Self {
        command.args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        // Its log is read at its end alone: a line for each request might fill the pipe.
        command.env("LATENTGATE__LOG__ACCESS", "false");
        #[allow(clippy::zombie_processes, reason = "`terminate` and `Drop` wait for it")]
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        // From here on a failing assertion ends the child.
        let mut serve = Self { child, log, url: String::new(), admin: String::new() };
        let mut seen = String::new();
        while serve.url.is_empty() {
            let start = seen.len();
            assert_ne!(serve.log.read_line(&mut seen).unwrap(), 0, "serve ended before it served:\n{seen}");
            let word = |name| seen[start..].split_whitespace().find_map(|word| word.strip_prefix(name));
            if let (Some(data), Some(admin)) = (word("data="), word("admin=")) {
                (serve.url, serve.admin) = (format!("http://{data}"), format!("http://{admin}"));
            }
        }
        serve
    }

    /// SIGTERM, and what it says until it ends.
    fn terminate(mut self) -> (Option<i32>, String) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let mut rest = String::new();
        while self.log.read_line(&mut rest).unwrap() > 0 {}
        (self.child.wait().unwrap().code(), rest)
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        // Gone already, unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_demo_holds_what_it_claims() {
    let folder = tempfile::tempdir().unwrap();
    let sheet = folder.path().join("demo.png");
    let output = run(["demo", "--concurrency", "8", "--output", utf8(&sheet)]);
    let (said, complained) = (stdout(&output), stderr(&output));
    assert!(output.status.success(), "{said}\n{complained}");
    assert!(said.contains("8 requests at once: 1 engine run, all answers identical"), "{said}");
    assert!(fs::read(&sheet).unwrap().starts_with(b"\x89PNG"));
}

#[test]
fn a_broken_configuration_is_told_whole() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("latentgate.toml");
    fs::write(
        &file,
        "[flight]\nkeep_from = 7.0\n[models.mine]\npreload = true\n[models.sd-v1]\nscaling_factor = 0.0\n",
    )
    .unwrap();
    let output = run(["config", "check", "--config", utf8(&file)]);
    assert_eq!(output.status.code(), Some(1));
    let told = stderr(&output);
    for key in ["flight.keep_from", "models.mine.weights", "models.sd-v1.scaling_factor"] {
        assert!(told.contains(key), "{key} is not in:\n{told}");
    }

    fs::write(&file, "[flight]\nkeep = 1\n").unwrap();
    let output = run(["config", "check", "--config", utf8(&file)]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("keep"), "{}", stderr(&output));
}

#[test]
fn a_server_that_is_not_there_is_one_clear_line() {
    let folder = tempfile::tempdir().unwrap();
    let (latents, picture) = (folder.path().join("z.safetensors"), folder.path().join("z.png"));
    fs::write(&latents, one_latent()).unwrap();
    // A port that was free a moment ago, and that nobody listens on.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let server = format!("http://{free}");
    let output = run(["decode", utf8(&latents), "-o", utf8(&picture), "--server", &server]);
    assert_eq!(output.status.code(), Some(1));
    let told = stderr(&output);
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(told.contains(&server) && told.contains("is `latentgate serve` running?"), "{told}");
    assert!(!picture.exists());
}

#[test]
fn a_picture_goes_to_latents_and_back_and_the_second_time_from_memory() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let serve = Serve::start();
    let url = serve.url.as_str();

    let models = run(["models", "--server", url]);
    assert!(models.status.success(), "{}", stderr(&models));
    let builtin = stdout(&models).lines().find(|line| line.starts_with("builtin ")).map(str::to_owned);
    assert!(builtin.is_some_and(|line| line.contains("decode,encode") && line.contains("local: ")));
    let json = stdout(&run(["models", "--json", "--server", url]));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(json.as_array().unwrap().iter().any(|model| model["id"] == "builtin"));

    let latents = at("latents.safetensors");
    let encode = run(["encode", PICTURE, "-o", &latents, "--server", url]);
    assert!(encode.status.success(), "{}", stderr(&encode));
    assert!(stderr(&encode).contains("computed: float16 [1,4,"), "{}", stderr(&encode));

    let (first, second) = (at("first.png"), at("second.png"));
    let decode = run(["decode", &latents, "-o", &first, "--preview", &at("preview.jpg"), "--server", url]);
    assert!(decode.status.success(), "{}", stderr(&decode));
    assert!(stderr(&decode).contains("computed: image/png"), "{}", stderr(&decode));
    assert!(fs::read(at("preview.jpg")).unwrap().starts_with(b"\xff\xd8"));

    let again = run(["decode", &latents, "-o", &second, "--digest-first", "--server", url]);
    let told = stderr(&again);
    assert!(told.contains("memory: image/png") && told.contains("input not sent"), "{told}");
    assert_eq!(fs::read(first).unwrap(), fs::read(second).unwrap());

    for (form, start) in [("a.jpg", &b"\xff\xd8"[..]), ("a.webp", b"RIFF"), ("a.npy", b"\x93NUMPY")] {
        let decode = run(["decode", &latents, "-o", &at(form), "--server", url]);
        assert!(decode.status.success(), "{}", stderr(&decode));
        assert!(fs::read(at(form)).unwrap().starts_with(start), "{form}");
    }

    let unknown = run(["decode", &latents, "-o", &at("b.png"), "--model", "nope", "--server", url]);
    assert_eq!(unknown.status.code(), Some(1));
    let told = stderr(&unknown);
    assert!(told.contains("NOT_FOUND") && told.contains("`latentgate models` lists"), "{told}");
    let absent =
        run(["decode", &latents, "-o", &at("b.npy"), "--dtype", "f32", "--cache", "only-if-cached", "--server", url]);
    assert_eq!(absent.status.code(), Some(1));
    assert!(stderr(&absent).contains("only-if-cached"), "{}", stderr(&absent));
    assert!(!Path::new(&at("b.png")).exists() && !Path::new(&at("b.npy")).exists());

    let (code, said) = serve.terminate();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("draining") && said.contains("stopped"), "{said}");
}

#[test]
fn a_cache_is_warmed_looked_at_and_purged() {
    let (folder, disk) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let serve = Serve::on_disk(disk.path());
    let (url, admin) = (serve.url.as_str(), serve.admin.as_str());
    let (latents, broken) = (at("z.safetensors"), at("broken.png"));
    fs::write(&latents, one_latent()).unwrap();
    fs::write(&broken, "no picture").unwrap();

    let warm = run(["cache", "warm", &latents, PICTURE, "--server", url]);
    assert!(warm.status.success(), "{}", stderr(&warm));
    assert!(stdout(&warm).contains("2 files: 2 computed"), "{}", stdout(&warm));
    let again = run(["cache", "warm", &latents, &broken, PICTURE, "--concurrency", "1", "--server", url]);
    assert_eq!(again.status.code(), Some(1));
    assert!(stdout(&again).contains("3 files: 2 memory, 1 failed"), "{}", stdout(&again));
    assert!(stderr(&again).contains("broken.png: "), "{}", stderr(&again));

    let listed = || {
        let list = run(["cache", "list", "--json", "--admin", admin]);
        assert!(list.status.success(), "{}", stderr(&list));
        serde_json::from_str::<serde_json::Value>(&stdout(&list)).unwrap().as_array().unwrap().clone()
    };
    let is_png = |item: &&serde_json::Value| item["content_type"] == "image/png";
    let png = listed().iter().find(is_png).unwrap().clone();
    let key = png["key"].as_str().unwrap();
    let table = stdout(&run(["cache", "list", "--admin", admin]));
    assert!(table.lines().any(|line| line.starts_with(&key[..16]) && line.contains("image/png 64x64")), "{table}");
    let stats = stdout(&run(["cache", "stats", "--admin", admin]));
    assert!(stats.lines().any(|line| line.starts_with("disk ")), "{stats}");

    let (asked, fetched) = (at("asked.png"), at("fetched.png"));
    assert!(run(["decode", &latents, "-o", &asked, "--server", url]).status.success());
    let get = run(["cache", "get", &key[..8], "-o", &fetched, "--admin", admin]);
    assert!(get.status.success(), "{}", stderr(&get));
    assert_eq!(fs::read(asked).unwrap(), fs::read(&fetched).unwrap());
    let wrong = run(["cache", "get", &key[..8], "-o", &at("x.npy"), "--admin", admin]);
    assert!(stderr(&wrong).contains("the artifact is image/png"), "{}", stderr(&wrong));
    let short = run(["cache", "get", "12", "-o", &at("x.png"), "--admin", admin]);
    assert!(stderr(&short).contains("64 hex digits"), "{}", stderr(&short));

    let verify = run(["cache", "verify", "--admin", admin]);
    assert!(verify.status.success(), "{}", stderr(&verify));
    assert!(stdout(&verify).contains("0 damaged"), "{}", stdout(&verify));
    let purge = run(["cache", "purge", "--key", key, "--admin", admin]);
    assert!(stdout(&purge).contains("purged 1 from memory"), "{}{}", stdout(&purge), stderr(&purge));
    assert!(!listed().iter().any(|item| item["key"] == key));
    assert_eq!(run(["cache", "purge", "--admin", admin]).status.code(), Some(2));
    assert!(run(["cache", "purge", "--all", "--json", "--admin", admin]).status.success());
    assert!(listed().is_empty());
    let gone = run(["cache", "get", key, "-o", &fetched, "--admin", admin]);
    assert!(stderr(&gone).contains("NOT_FOUND") && stderr(&gone).contains("cache list"), "{}", stderr(&gone));
    let (code, said) = serve.terminate();
    assert_eq!(code, Some(0), "{said}");
}

/// `.safetensors` of float32 [1,4,8,8] zeros.
fn one_latent() -> Vec<u8> {
    let header = r#"{"latents":{"dtype":"F32","shape":[1,4,8,8],"data_offsets":[0,1024]}}"#;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.resize(file.len() + 1024, 0);
    file
}
