use std::io::Write as _;

use super::*;
use crate::model::Endpoints;

fn load(text: &str) -> Result<Config, ConfigError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    Config::load(Some(file.path()), &Overrides::default())
}

fn faults(text: &str) -> Vec<String> {
    match load(text).unwrap_err() {
        ConfigError::Invalid(faults) => faults.into_iter().map(|fault| fault.key).collect(),
        other => panic!("{other}"),
    }
}

#[test]
fn the_defaults_are_safe_and_valid() {
    let config = load("").unwrap();
    assert!(config.listen.data.ip().is_loopback() && config.listen.admin.ip().is_loopback());
    assert_eq!(Config { weights: Weights::default(), ..config }, Config::default());
}

#[test]
fn what_is_printed_can_be_read_back() {
    let config = load("[limits]\nmax_input = \"12MiB\"\n[models.mine]\nweights = \"/\"\npreload = true\n").unwrap();
    assert_eq!(load(&config.to_toml()).unwrap(), config);
}

#[test]
fn the_example_file_is_the_defaults() {
    let text = include_str!("../../deploy/latentgate.example.toml");
    let values: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(
        values.join("\n").trim(),
        Config::default().to_toml().trim(),
        "run `latentgate config print` and bring it up to date"
    );
}

#[test]
fn sizes_and_durations_have_units() {
    let config =
        load("[cache.memory]\ncapacity = \"2GiB\"\ntime_to_live = \"1h\"\n[shutdown]\ngrace = \"5s\"").unwrap();
    assert_eq!(config.cache.memory.capacity, ByteSize::gib(2));
    assert_eq!(config.cache.memory.time_to_live, Some(Duration::from_hours(1)));
    assert_eq!(config.shutdown.grace, Duration::from_secs(5));
    assert!(load("[shutdown]\ngrace = \"5\"").is_err(), "a duration without unit");
}

#[test]
fn unknown_keys_are_named() {
    let error = load("[limits]\nmax_pixel = 3").unwrap_err().to_string();
    assert!(error.contains("max_pixel") && error.contains("max_pixels"), "{error}");
}

#[test]
fn all_faults_come_at_once() {
    let text = "[admission]\nmax_requests = 0\nmemory = \"1KiB\"\n[flight]\nkeep_from = 2.0\n\
                [models.\"-x\"]\n[models.mine]\nscaling_factor = 0.0\n";
    let found = faults(text);
    for key in [
        "admission.max_requests",
        "admission.memory",
        "flight.keep_from",
        "models.mine.weights",
        "models.mine.scaling_factor",
    ] {
        assert!(found.iter().any(|fault| fault == key), "{key} is not in {found:?}");
    }
}

#[test]
fn values_that_would_overflow_clocks_or_counters_are_refused() {
    let text = "[listen]\nmax_connections = 9223372036854775807\n[cache.memory]\ntime_to_live = \"2000years\"\n\
                [flight]\ntime = \"18446744073709551615s\"\n[limits]\nrequest_time = \"2days\"\n[log]\nfilter = \"a=b=c\"\n\
                [engine]\nthreads = 9999\nbatch = 0\nmemory = \"0B\"\ndevice = \"metal\"\n";
    let found = faults(text);
    let keys = [
        "listen.max_connections",
        "cache.memory.time_to_live",
        "flight.time",
        "limits.request_time",
        "log.filter",
        "engine.threads",
        "engine.batch",
        "engine.memory",
    ];
    for key in keys {
        assert!(found.iter().any(|fault| fault == key), "{key} is not in {found:?}");
    }
    assert_eq!(found.iter().any(|fault| fault == "engine.device"), !cfg!(feature = "metal"));
}

#[cfg(feature = "local")]
#[test]
fn devices_are_one_or_some() {
    let list = |n: usize| format!("[engine]\ndevice = {:?}", vec!["cpu"; n]);
    for text in ["[engine]\ndevice = \"cpu\"".to_owned(), list(1), list(2), list(64)] {
        assert!(load(&text).is_ok(), "{text}");
    }
    for text in [list(0), list(65)] {
        assert_eq!(faults(&text), ["engine.device"], "{text}");
    }
    let error = load("[engine]\ndevice = [\"cpu\", \"gpu\"]").unwrap_err().to_string();
    assert!(error.contains("is no device") && error.contains("engine.device"), "{error}");
}

#[test]
fn a_revision_of_digits_is_text() {
    let config = load("[models.builtin]\nrevision = 20261123").unwrap();
    assert_eq!(config.models["builtin"].revision.as_deref(), Some("20261123"));
    assert_eq!(load("[models.builtin]\npreload = true").unwrap().models["builtin"].revision, None);
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::load(Some(Path::new("/nowhere/latentgate.toml")), &Overrides::default()).unwrap_err();
    assert!(error.to_string().contains("/nowhere/latentgate.toml"), "{error}");
}

#[test]
fn flags_stand_above_the_file() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"[listen]\ndata = \"127.0.0.1:1\"\nadmin = \"127.0.0.1:2\"").unwrap();
    let flags = Overrides { listen: Some(ListenOverrides { data: Some("127.0.0.1:3".parse().unwrap()), admin: None }) };
    let config = Config::load(Some(file.path()), &flags).unwrap();
    assert_eq!((config.listen.data.port(), config.listen.admin.port()), (3, 2));
}

#[test]
fn tls_files_that_are_not_there_and_origins_that_no_browser_sends_are_faults() {
    let text = "[listen.tls]\ncertificate = \"/nowhere/a.pem\"\nprivate_key = \"/nowhere/a.key\"\n\
                [cors]\norigins = [\"https://studio.example\", \"https://studio.example/app\"]\n";
    assert_eq!(faults(text), ["listen.tls.certificate", "listen.tls.private_key", "cors.origins"]);
    assert_eq!(faults("[cors]\norigins = [\"*\", \"https://studio.example\"]\n"), ["cors.origins"]);
    let error = load("[cors]\norigins = [\"studio.example\"]\n").unwrap_err().to_string();
    assert!(error.contains("studio.example") && error.contains("https://"), "{error}");
    assert_eq!(load("[cors]\norigins = [\"*\"]\n").unwrap().cors.origins, ["*"]);
    let error = load("[listen.tls]\ncertificate = \"/a.pem\"\n").unwrap_err().to_string();
    assert!(error.contains("listen.tls") && error.contains("private_key"), "{error}");
}

#[test]
fn a_socket_has_a_path_that_the_kernel_takes_and_a_mode_that_its_owner_can_use() {
    let config = load("[listen]\nsocket = \"data.sock\"\nsocket_mode = \"0660\"\n").unwrap();
    assert_eq!(config.listen.socket.as_deref(), Some(Path::new("data.sock")));
    assert_eq!(config.listen.socket_mode, "660".parse().unwrap());
    assert_eq!(load(&config.to_toml()).unwrap(), config);
    for path in [String::new(), "x".repeat(200)] {
        assert_eq!(faults(&format!("[listen]\nsocket = \"{path}\"\n")), ["listen.socket"], "{path}");
    }
    for mode in ["", "+600", "0400", "0o600", "0680", "01600", "rw", "99999999999"] {
        let error = load(&format!("[listen]\nsocket_mode = \"{mode}\"\n")).unwrap_err().to_string();
        assert!(error.contains("listen.socket_mode") && error.contains("\"0600\""), "{mode}: {error}");
    }
}

#[test]
fn hosts_and_endpoints_name_what_can_be_there() {
    let text = "[hosts]\n\"a.example\" = \"decode/sd-v1\"\n\"b.example:443\" = \"decode/sd-v1\"\n\
                \"c.example\" = \"encode/hunyuan-video\"\n\"d.example\" = \"decode/nope\"\n";
    let keys = ["hosts.\"b.example:443\"", "hosts.\"c.example\"", "hosts.\"d.example\""];
    assert_eq!(faults(text), keys);
    let text = "[models.x]\nlike = \"nope\"\n[models.sdxl]\npreload = true\n[models.sd-v1.upstream]\n\
                decode = [\"ftp://host\", \"https://me:hunter2@host/x\", \"https://host/x\"]\n[route]\nbackends = []\n";
    let keys = ["route.backends", "models.sd-v1.upstream", "models.sd-v1.upstream", "models.sdxl", "models.x.like"];
    let mut found = faults(text);
    found.sort_by_key(|key| keys.iter().position(|known| known == key));
    assert_eq!(found, keys);
    let error = load(text).unwrap_err().to_string();
    assert!(!error.contains("hunter2"), "{error}");
}

#[test]
fn likeness_is_to_the_known_model_whatever_the_names_are() {
    let text = "[models.sd-v1]\nscaling_factor = 0.5\n[models.sd-v1.upstream]\ndecode = [\"https://mine.example\"]\n\
                [models.aaa]\nlike = \"sd-v1\"\n[models.zzz]\nlike = \"sd-v1\"\n";
    let table = load(text).unwrap().model_table();
    let [own, before, after] = ["sd-v1", "aaa", "zzz"].map(|name| table.get(name).unwrap());
    assert_eq!((own.scaling.factor, own.endpoints.encode.len()), (0.5, 0));
    assert_eq!((before.scaling, &before.endpoints), (after.scaling, &after.endpoints));
    assert_eq!((after.scaling.factor, after.endpoints.encode.len(), after.id.as_str()), (0.182_15, 1, "zzz"));
}

#[test]
fn weights_of_ones_own_have_no_public_endpoint() {
    let folder = tempfile::tempdir().unwrap();
    let weights = format!("[models.sd-v1]\nweights = {:?}\n", folder.path());
    assert_eq!(load(&weights).unwrap().model_table().get("sd-v1").unwrap().endpoints, Endpoints::default());
    let declared = format!("{weights}upstream.decode = [\"https://same.example\"]\n");
    let table = load(&declared).unwrap().model_table();
    assert_eq!(table.get("sd-v1").unwrap().endpoints.decode, ["https://same.example"]);
}

#[test]
fn a_collector_that_cannot_be_and_its_secrets() {
    let trace = |text: &str| load(&format!("[trace]\n{text}\n"));
    for (text, key) in [
        ("endpoint = \"collector:4317\"", "trace.endpoint"),
        ("endpoint = \"https://collector.example\"", "trace.endpoint"),
        ("endpoint = \"http://user:tok_secret@collector.example\"", "trace.endpoint"),
        ("headers.authorization = \"Bearer tok_secret\\n\"", "trace.headers.authorization"),
        ("headers.\"a b\" = \"tok_secret\"", "trace.headers.a b"),
        ("sample = 1.5", "trace.sample"),
        ("timeout = \"0s\"", "trace.timeout"),
        ("service = \"\"", "trace.service"),
        ("queue = 0", "trace.queue"),
    ] {
        assert_eq!(faults(&format!("[trace]\n{text}\n")), [key], "{text}");
        let told = trace(text).unwrap_err().to_string();
        assert!(!told.contains("tok_secret"), "{told}");
    }
    let config =
        trace("endpoint = \"https://collector.example\"\nprotocol = \"http\"\nheaders.x = \"tok_secret\"").unwrap();
    let shown = format!("{config:?} {}", config.to_toml());
    assert!(shown.contains("collector.example") && !shown.contains("tok_secret"), "{shown}");
}
