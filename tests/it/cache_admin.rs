//! Cache administration: what gRPC's `CacheAdmin` and its JSON say of a real app with a disk tier, and do to it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use latentgate::{
    Config,
    proto::{
        self, Place, PurgeRequest, Source, VerifyRequest, cache_admin_client::CacheAdminClient, finding::Fault,
        get_response, purge_response, verify_response,
    },
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::timeout;
use tonic::{Code, Status, Streaming, transport::Channel};
use tonic_types::StatusExt as _;

use crate::support::{
    Answer, PATIENCE, TestApp, config, decode_spec,
    http::{HttpAnswer, raw, request},
    latents, reason,
};

/// An app with a disk tier, and its admin port.
struct Kept {
    app: TestApp,
    admin: CacheAdminClient<Channel>,
    folder: TempDir,
}

impl Kept {
    /// With an empty folder and `mine`, which is the builtin model by another name.
    async fn start() -> Self {
        Self::with(config(), tempfile::tempdir().unwrap()).await
    }

    async fn with(mut config: Config, folder: TempDir) -> Self {
        config.cache.disk.path = Some(folder.path().to_owned());
        config.cache.disk.min_free = bytesize::ByteSize::b(0);
        let mine = config.models.entry("mine".to_owned()).or_default();
        mine.weights = Some(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/builtin").into());
        let app = TestApp::start(config).await;
        let admin = admin(&app).await;
        let kept = Self { app, admin, folder };
        let scanned = async { while !kept.tier(Place::Disk).await.scanned {} };
        timeout(PATIENCE, scanned).await.expect("the names are read in time");
        kept
    }

    /// The same folder in another process, as far as the folder can tell.
    async fn restarted(self) -> Self {
        let Self { mut app, folder, .. } = self;
        app.stop();
        app.stopped().await;
        Self::with(config(), folder).await
    }

    /// Decodes by `model` of these seeds, each written to disk.
    async fn decoded(&self, model: &str, seeds: std::ops::Range<u32>) -> Vec<Answer> {
        let client = self.app.client().await;
        let before = self.tier(Place::Disk).await.entries;
        let count = seeds.end - seeds.start;
        let mut answers = Vec::new();
        for seed in seeds {
            let spec = proto::DecodeSpec { model: model.to_owned(), ..decode_spec(4, 4) };
            answers.push(client.decode(spec, latents(4, 4, seed)).await.unwrap());
        }
        self.until_written(before + u64::from(count)).await;
        answers
    }

    async fn until_written(&self, entries: u64) {
        let mut last = proto::TierStats::default();
        let written = async {
            while (last.queue_bytes, last.entries) != (0, entries) {
                last = self.tier(Place::Disk).await;
            }
        };
        let in_time = timeout(PATIENCE, written).await.is_ok();
        assert!(in_time, "{last:?}, wanted {entries} entries");
    }

    async fn tier(&self, place: Place) -> proto::TierStats {
        let tiers = self.admin.clone().stats(proto::StatsRequest {}).await.unwrap().into_inner().tiers;
        tiers.into_iter().find(|tier| tier.place() == place).unwrap()
    }

    async fn list(&self, model: &str, limit: u64) -> Vec<proto::ListResponse> {
        let request = proto::ListRequest { model: model.to_owned(), limit };
        let mut listed = self.admin.clone().list(request).await.unwrap().into_inner();
        let mut items = Vec::new();
        while let Some(item) = listed.message().await.unwrap() {
            items.push(item);
        }
        items
    }

    async fn get(&self, key: &Bytes) -> Result<(proto::ListResponse, Vec<Bytes>, Bytes), Status> {
        let request = proto::GetRequest { content_key: key.clone() };
        let mut events = self.admin.clone().get(request).await?.into_inner();
        let (mut header, mut chunks) = (None, Vec::new());
        while let Some(response) = events.message().await? {
            match response.event.unwrap() {
                get_response::Event::Header(item) => header = Some(item),
                get_response::Event::Chunk(chunk) => chunks.push(chunk),
                get_response::Event::Trailer(end) => return Ok((header.expect("a header first"), chunks, end.digest)),
            }
        }
        panic!("no trailer")
    }

    async fn purge(&self, request: PurgeRequest) -> Result<purge_response::Totals, Status> {
        let mut events: Streaming<_> = self.admin.clone().purge(request).await?.into_inner();
        while let Some(response) = events.message().await? {
            if let purge_response::Event::Done(totals) = response.event.unwrap() {
                assert!(events.message().await?.is_none(), "the totals come last");
                return Ok(totals);
            }
        }
        panic!("no totals")
    }

    async fn verify(&self, repair: bool) -> Result<(Vec<proto::Finding>, verify_response::Totals), Status> {
        let mut events = self.admin.clone().verify(VerifyRequest { repair }).await?.into_inner();
        let mut findings = Vec::new();
        while let Some(response) = events.message().await? {
            match response.event.unwrap() {
                verify_response::Event::Progress(at) => assert!(at.entries > 0 && at.bytes > 0),
                verify_response::Event::Finding(finding) => findings.push(finding),
                verify_response::Event::Done(totals) => return Ok((findings, totals)),
            }
        }
        panic!("no totals")
    }

    async fn http(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &str) -> HttpAnswer {
        let answer = raw(self.app.addresses.admin, &request(method, target, headers, body.as_bytes())).await;
        answer.unwrap_or_else(|| panic!("no answer to {method} {target}"))
    }

    async fn json(&self, method: &str, target: &str, body: &str) -> Value {
        let answer = self.http(method, target, &[], body).await;
        assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
        assert_eq!(answer.header("content-type"), Some("application/json"));
        serde_json::from_slice(&answer.body).unwrap()
    }

    /// Where the disk tier has the artifact of a key.
    fn file(&self, key: &Bytes) -> PathBuf {
        let digits = hex(key);
        self.folder.path().join("v1").join(&digits[..2]).join(&digits[2..])
    }
}

async fn admin(app: &TestApp) -> CacheAdminClient<Channel> {
    CacheAdminClient::connect(format!("http://{}", app.addresses.admin)).await.expect("the admin port answers")
}

fn hex(key: &[u8]) -> String {
    use std::fmt::Write as _;
    key.iter().fold(String::new(), |mut digits, byte| {
        write!(digits, "{byte:02x}").unwrap();
        digits
    })
}

fn flip_last_byte(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stats_count_what_is_in_memory_and_on_disk() {
    let kept = Kept::start().await;
    assert_eq!(kept.tier(Place::Disk).await.entries, 0);
    kept.decoded("builtin", 0..3).await;
    let (memory, disk) = (kept.tier(Place::Memory).await, kept.tier(Place::Disk).await);
    assert_eq!((memory.entries, disk.entries), (3, 3));
    assert!(disk.bytes >= disk.entries * 4096 && disk.bytes.is_multiple_of(4096), "{disk:?}");
    assert!(memory.bytes > 0 && memory.bytes <= memory.capacity_bytes && memory.scanned);
    assert!(disk.scanned && !disk.degraded && disk.queue_capacity_bytes > 0);
    assert_eq!(disk.path, kept.folder.path().display().to_string());
    let json = kept.json("GET", "/cache", "").await;
    assert_eq!(json["tiers"][0]["tier"], "memory");
    assert_eq!(json["tiers"][1]["entries"], json!(disk.entries));
    assert_eq!(json["tiers"][1]["bytes"], json!(disk.bytes));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_is_listed_once_with_all_its_places() {
    let kept = Kept::start().await;
    let answers = kept.decoded("builtin", 0..2).await;
    kept.decoded("mine", 0..1).await;
    let all = kept.list("", 0).await;
    assert_eq!(all.len(), 3);
    let item = all.iter().find(|item| item.content_key == answers[0].accepted.content_key).unwrap();
    assert_eq!(item.header.as_ref(), Some(&answers[0].header));
    assert_eq!((item.model.as_str(), item.task()), ("builtin", proto::Task::Decode));
    assert_eq!(item.places().collect::<Vec<_>>(), [Place::Memory, Place::Disk]);
    assert!(item.disk_bytes >= 4096 && item.made_unix_ms > 1_700_000_000_000, "{item:?}");
    assert_eq!(kept.list("mine", 0).await.len(), 1);
    assert_eq!(kept.list("", 2).await.len(), 2);
    assert!(kept.list("nope", 0).await.is_empty());
    let json = kept.json("GET", "/cache/entries?model=builtin&limit=1", "").await;
    assert_eq!((json["entries"].as_array().unwrap().len(), &json["more"]), (1, &json!(true)));
    let json = kept.json("GET", "/cache/entries?model=mine", "").await;
    assert_eq!((json["entries"][0]["model"].as_str(), &json["more"]), (Some("mine"), &json!(false)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_artifact_is_given_out_as_it_was_answered_from_memory_and_from_disk() {
    let kept = Kept::start().await;
    let answers = kept.decoded("builtin", 0..1).await;
    let (key, bytes) = (&answers[0].accepted.content_key, answers[0].bytes());
    let from_memory = kept.get(key).await.unwrap();
    assert_eq!((from_memory.1.concat(), &from_memory.2), (bytes.clone(), &answers[0].trailer.digest));
    assert_eq!(from_memory.0.places().collect::<Vec<_>>(), [Place::Memory]);

    // Another process, in the same folder, has it on disk alone.
    let kept = kept.restarted().await;
    let from_disk = kept.get(key).await.unwrap();
    assert_eq!((from_disk.1.concat(), &from_disk.2), (bytes.clone(), &answers[0].trailer.digest));
    assert_eq!(from_disk.0.places().collect::<Vec<_>>(), [Place::Disk]);
    let over_http = kept.http("GET", &format!("/cache/entries/{}", hex(key)), &[], "").await.whole();
    assert_eq!((over_http.status, &over_http.body[..]), (200, &bytes[..]));
    assert_eq!(over_http.header("content-type"), Some("image/png"));
    assert_eq!(over_http.header("latentgate-key"), Some(hex(key).as_str()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_reaches_memory_and_disk_and_nothing_that_is_not_meant() {
    let kept = Kept::start().await;
    let answers = kept.decoded("builtin", 0..3).await;
    kept.decoded("mine", 0..2).await;
    let key = answers[0].accepted.content_key.clone();
    let one = kept.purge(PurgeRequest { content_key: key.clone(), ..PurgeRequest::default() }).await.unwrap();
    assert_eq!((one.memory_entries, one.disk_entries, one.left_entries), (1, 1, 0));
    assert!(one.disk_bytes >= 4096 && !kept.file(&key).exists());
    assert_eq!(reason(&kept.get(&key).await.unwrap_err()), (Code::NotFound, "UNKNOWN_KEY".to_owned()));

    let young = kept.purge(PurgeRequest { older_than_seconds: Some(3600), ..PurgeRequest::default() }).await.unwrap();
    assert_eq!((young.memory_entries, young.disk_entries), (0, 0));
    let mine = PurgeRequest { model: "mine".to_owned(), older_than_seconds: Some(0), ..PurgeRequest::default() };
    let mine = kept.purge(mine).await.unwrap();
    assert_eq!((mine.memory_entries, mine.disk_entries), (2, 2));
    assert!(kept.list("mine", 0).await.is_empty());
    assert_eq!(kept.list("builtin", 0).await.len(), 2);

    let all = kept.purge(PurgeRequest { all: true, ..PurgeRequest::default() }).await.unwrap();
    assert_eq!((all.memory_entries, all.disk_entries), (2, 2));
    assert!(kept.list("", 0).await.is_empty());
    assert_eq!(kept.tier(Place::Disk).await.bytes, 0);
    let client = kept.app.client().await;
    let anew = client.decode(decode_spec(4, 4), latents(4, 4, 1)).await.unwrap();
    assert_eq!((anew.source(), anew.bytes()), (Source::Computed, answers[1].bytes()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verification_finds_what_is_damaged_and_repairs_it_if_it_is_to() {
    let kept = Kept::start().await;
    let answers = kept.decoded("builtin", 0..3).await;
    let (findings, totals) = kept.verify(false).await.unwrap();
    assert_eq!((findings.len(), totals.entries, totals.damaged_entries), (0, 3, 0));
    assert_eq!(totals.bytes, kept.tier(Place::Disk).await.bytes);

    let key = &answers[1].accepted.content_key;
    flip_last_byte(&kept.file(key));
    for repair in [false, true] {
        let (findings, totals) = kept.verify(repair).await.unwrap();
        assert_eq!(findings.len(), 1);
        let found = &findings[0];
        assert_eq!((&found.content_key, found.fault(), found.removed), (key, Fault::Damaged, repair));
        assert!(!found.detail.is_empty() && found.disk_bytes >= 4096, "{found:?}");
        assert_eq!((totals.damaged_entries, totals.removed_entries), (1, u64::from(repair)));
        assert_eq!(kept.file(key).exists(), !repair);
    }
    let (findings, totals) = kept.verify(false).await.unwrap();
    assert_eq!((findings.len(), totals.entries), (0, 2));
    assert_eq!(kept.app.metric("latentgate_cache_corruptions_total", &[r#"tier="disk""#]).await, 2.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_purges_and_verifies_too() {
    let kept = Kept::start().await;
    let answers = kept.decoded("builtin", 0..2).await;
    let key = &answers[0].accepted.content_key;
    flip_last_byte(&kept.file(key));
    let verified = kept.json("POST", "/cache/verify?repair=true", "").await;
    assert_eq!((&verified["damaged_entries"], &verified["removed_entries"]), (&json!(1), &json!(1)));
    assert_eq!(
        (&verified["findings"][0]["key"], &verified["findings"][0]["fault"]),
        (&json!(hex(key)), &json!("damaged"))
    );
    let young = kept.json("POST", "/cache/purge", r#"{"older_than": "7d"}"#).await;
    assert_eq!((&young["disk_entries"], &young["memory_entries"]), (&json!(0), &json!(0)));
    let body = json!({ "key": hex(&answers[1].accepted.content_key) }).to_string();
    assert_eq!(kept.json("POST", "/cache/purge", &body).await["disk_entries"], 1);
    let all = kept.json("POST", "/cache/purge", r#"{"all": true}"#).await;
    assert_eq!((&all["memory_entries"], &all["disk_entries"]), (&json!(1), &json!(0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_meant_is_refused_with_its_remedy() {
    let kept = Kept::start().await;
    let empty = kept.purge(PurgeRequest::default()).await.unwrap_err();
    assert_eq!(reason(&empty), (Code::InvalidArgument, "BAD_REQUEST".to_owned()));
    assert!(empty.message().contains("`all`"), "{}", empty.message());
    let both = PurgeRequest { all: true, model: "mine".to_owned(), ..PurgeRequest::default() };
    assert_eq!(kept.purge(both).await.unwrap_err().code(), Code::InvalidArgument);
    let short = kept.get(&Bytes::from_static(b"short")).await.unwrap_err();
    assert_eq!(short.get_details_bad_request().unwrap().field_violations[0].field, "content_key");

    for (method, target, body, status, said) in [
        ("POST", "/cache/purge", "{}", 400, "`all`"),
        ("POST", "/cache/purge", r#"{"al": true}"#, 400, "al"),
        ("POST", "/cache/purge", r#"{"key": "12"}"#, 400, "64 hex digits"),
        ("POST", "/cache/verify?repair=perhaps", "", 400, "true or false"),
        ("GET", "/cache/entries?limit=0", "", 400, "1 to 1000"),
        ("GET", "/cache/entries?colour=red", "", 400, "colour"),
        ("GET", "/cache/entries/12", "", 400, "64 hex digits"),
        ("GET", &format!("/cache/entries/{}", "0".repeat(64)), "", 404, "nothing is kept"),
    ] {
        let answer = kept.http(method, target, &[], body).await;
        assert_eq!(answer.status, status, "{method} {target}");
        assert!(answer.error().contains(said), "{method} {target}: {}", answer.error());
    }
    let page = kept.http("POST", "/cache/purge", &[("Origin", "http://evil.example")], r#"{"all": true}"#).await;
    assert_eq!(page.status, 400);
    assert!(page.error().contains("web pages"), "{}", page.error());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_disk_tier_memory_is_administered_and_a_verification_names_the_key_to_set() {
    let app = TestApp::start(config()).await;
    let mut admin = admin(&app).await;
    let client = app.client().await;
    let answer = client.decode(decode_spec(4, 4), latents(4, 4, 1)).await.unwrap();
    let refused = admin.verify(VerifyRequest { repair: false }).await.unwrap_err();
    assert_eq!(reason(&refused), (Code::FailedPrecondition, "NO_DISK_TIER".to_owned()));
    assert!(refused.message().contains("cache.disk.path"), "{}", refused.message());
    let stats = admin.stats(proto::StatsRequest {}).await.unwrap().into_inner();
    assert_eq!(stats.tiers.len(), 1);
    let mut listed = admin.list(proto::ListRequest::default()).await.unwrap().into_inner();
    let mut keys = Vec::new();
    while let Some(item) = listed.message().await.unwrap() {
        assert_eq!((item.disk_bytes, item.places().collect::<Vec<_>>()), (0, vec![Place::Memory]));
        keys.push(item.content_key);
    }
    assert!(keys.contains(&answer.accepted.content_key));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_admin_port_alone_speaks_cache_admin_and_reflects_it() {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let app = TestApp::start(config()).await;
    let mut on_data = CacheAdminClient::connect(format!("http://{}", app.addresses.data)).await.unwrap();
    let refused = on_data.stats(proto::StatsRequest {}).await.unwrap_err();
    assert!(refused.message().contains("on the admin port"), "{}", refused.message());
    let admin = tonic::transport::Endpoint::from_shared(format!("http://{}", app.addresses.admin)).unwrap();
    let mut reflection = ServerReflectionClient::new(admin.connect().await.unwrap());
    let list = MessageRequest::ListServices(String::new());
    let asked = ServerReflectionRequest { host: String::new(), message_request: Some(list) };
    let mut answers = reflection.server_reflection_info(tokio_stream::iter([asked])).await.unwrap().into_inner();
    let listed = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = listed else { panic!("{listed:?}") };
    let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    assert!(names.contains(&"latentgate.v1.CacheAdmin".to_owned()), "{names:?}");
    assert!(!names.contains(&"latentgate.v1.Latents".to_owned()), "{names:?}");
}
