//! The real client. Its recorded requests, over every combination, are replayed and the answers compared with PyTorch's
//! (`tests/fixtures/hf/capture.py`); where Python and its packages are, the client itself is let loose on the server.

use std::{net::SocketAddr, process::Stdio, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use half::f16;
use safetensors::SafeTensors;
use serde::Deserialize;
use tokio::task::JoinSet;

use crate::support::{
    TestApp,
    http::{self, HttpAnswer},
    pytorch::{client, fixtures, python, with_models},
};

/// f16 rounds the answer once, and what PyTorch gave was f32.
const FLOAT_TOLERANCE: f64 = 2e-3;
/// Values on the edge between two levels fall to either side.
const PIXEL_SHARE: f64 = 0.005;
/// How far a JPEG may be below Pillow's, in dB: all channels, and luma alone (PROTOCOL).
const JPEG_DB: f64 = 3.0;
const LUMA_DB: f64 = 2.0;

#[derive(Deserialize)]
struct Recorded {
    name: String,
    task: String,
    model: String,
    method: String,
    query: String,
    headers: Vec<(String, String)>,
    body: String,
    expect: Expect,
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Expect {
    Float { shape: Vec<usize>, dtype: String, reference: String },
    Uint8 { shape: Vec<usize>, dtype: String, reference: String },
    Png { width: u32, height: u32, reference: String },
    Jpeg { width: u32, height: u32, reference: String, pillow_rgb_db: f64, pillow_luma_db: f64 },
    Error,
}

/// Bodies and references by name.
struct Arrays(Bytes);

impl Arrays {
    fn get(&self, name: &str) -> Vec<u8> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        file.tensor(name).unwrap_or_else(|_| panic!("no array {name}")).data().to_vec()
    }
}

/// A tensor's answer, however it travelled.
fn tensor(answer: &HttpAnswer) -> (Vec<usize>, String, Vec<u8>) {
    if answer.header("content-type") != Some("tensor/base64") {
        return (answer.shape(), answer.header("dtype").expect("a dtype").to_owned(), answer.body.to_vec());
    }
    let value: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    let parameters = &value["parameters"];
    let shape = serde_json::from_value(parameters["shape"].clone()).unwrap();
    let dtype = parameters["dtype"].as_str().unwrap().to_owned();
    (shape, dtype, STANDARD.decode(value["inputs"].as_str().unwrap()).unwrap())
}

fn halves(bytes: &[u8]) -> Vec<f64> {
    bytes.as_chunks::<2>().0.iter().map(|&bits| f16::from_le_bytes(bits).to_f64()).collect()
}

fn check_floats(got: &[u8], want: &[u8]) -> Result<(), String> {
    let (got, want) = (halves(got), halves(want));
    let is_far = |(got, want): &(&f64, &f64)| {
        let near = (*got - *want).abs() <= FLOAT_TOLERANCE + FLOAT_TOLERANCE * want.abs();
        !near
    };
    let far = got.iter().zip(&want).filter(is_far).count();
    if got.len() == want.len() && far == 0 {
        Ok(())
    } else {
        Err(format!("{far} of {} values are far off", want.len()))
    }
}

fn check_pixels(got: &[u8], want: &[u8]) -> Result<(), String> {
    let steps: Vec<u8> = got.iter().zip(want).map(|(got, want)| got.abs_diff(*want)).collect();
    let (worst, off) = (steps.iter().copied().max().unwrap_or(0), steps.iter().filter(|step| **step > 0).count());
    let allowed = (want.len() as f64 * PIXEL_SHARE).max(1.0);
    if got.len() == want.len() && worst <= 1 && off as f64 <= allowed {
        return Ok(());
    }
    Err(format!("{} of {} values differ, by up to {worst}", off, want.len()))
}

/// Peak signal to noise in dB.
fn psnr(errors: impl Iterator<Item = f64>) -> f64 {
    let (count, sum) = errors.fold((0usize, 0.0), |(count, sum), error| (count + 1, sum + error * error));
    10.0 * (255.0 * 255.0 / (sum / count as f64).max(1e-9)).log10()
}

fn check_jpeg(got: &[u8], want: &[u8], [rgb_db, luma_db]: [f64; 2]) -> Result<(), String> {
    let rgb = psnr(got.iter().zip(want).map(|(got, want)| f64::from(*got) - f64::from(*want)));
    let luma =
        |pixel: &[u8; 3]| 0.299 * f64::from(pixel[0]) + 0.587 * f64::from(pixel[1]) + 0.114 * f64::from(pixel[2]);
    let pixels = got.as_chunks::<3>().0.iter().zip(want.as_chunks::<3>().0);
    let grey = psnr(pixels.map(|(got, want)| luma(got) - luma(want)));
    if rgb >= rgb_db - JPEG_DB && grey >= luma_db - LUMA_DB {
        return Ok(());
    }
    Err(format!("{rgb:.1} dB, luma {grey:.1} dB; Pillow has {rgb_db:.1} and {luma_db:.1}"))
}

/// The pixels of a picture's answer and those of the reference, of which a batch has more.
fn pictures(answer: &HttpAnswer, size: [u32; 2], reference: &[u8]) -> Result<[Vec<u8>; 2], String> {
    let picture = image::load_from_memory(&answer.body).map_err(|error| error.to_string())?;
    if picture.color() != image::ColorType::Rgb8 || [picture.width(), picture.height()] != size {
        return Err(format!("{:?} {}x{}", picture.color(), picture.width(), picture.height()));
    }
    let pixels = picture.into_rgb8().into_raw();
    let want = reference[..pixels.len()].to_vec();
    Ok([pixels, want])
}

fn check(answer: &HttpAnswer, expect: &Expect, arrays: &Arrays) -> Result<(), String> {
    if matches!(expect, Expect::Error) {
        if !(400..500).contains(&answer.status) {
            return Err(format!("status {}", answer.status));
        }
        answer.error();
        return Ok(());
    }
    if answer.status != 200 {
        return Err(format!("status {}: {}", answer.status, answer.error()));
    }
    match expect {
        Expect::Float { shape, dtype, reference } | Expect::Uint8 { shape, dtype, reference } => {
            let (got_shape, got_dtype, got) = tensor(answer);
            if (&got_shape, &got_dtype) != (shape, dtype) {
                return Err(format!("{got_dtype} {got_shape:?}"));
            }
            let want = arrays.get(reference);
            if dtype == "uint8" { check_pixels(&got, &want) } else { check_floats(&got, &want) }
        }
        Expect::Png { width, height, reference } => {
            let [got, want] = pictures(answer, [*width, *height], &arrays.get(reference))?;
            check_pixels(&got, &want)
        }
        Expect::Jpeg { width, height, reference, pillow_rgb_db, pillow_luma_db } => {
            let [got, want] = pictures(answer, [*width, *height], &arrays.get(reference))?;
            check_jpeg(&got, &want, [*pillow_rgb_db, *pillow_luma_db])
        }
        Expect::Error => Ok(()),
    }
}

async fn replay(address: SocketAddr, recorded: &Recorded, arrays: &Arrays) -> Result<(), String> {
    let target = format!("/{}/{}?{}", recorded.task, recorded.model, recorded.query);
    let headers: Vec<_> = recorded.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let request = http::request(&recorded.method, &target, &headers, &arrays.get(&recorded.body));
    let answer = http::raw(address, &request).await.ok_or_else(|| format!("{}: no answer", recorded.name))?.whole();
    check(&answer, &recorded.expect, arrays).map_err(|why| format!("{}: {why}", recorded.name))
}

/// Replays the requests for these tasks and models, as many at a time as a busy user has. Fails unless all are answered
/// as PyTorch would; says how many there were.
pub async fn replay_all(address: SocketAddr, is_asked: impl Fn(&str, &str) -> bool) -> usize {
    let folder = fixtures().join("hf");
    let mut recorded: Vec<Recorded> =
        serde_json::from_slice(&std::fs::read(folder.join("requests.json")).unwrap()).unwrap();
    recorded.retain(|request| is_asked(&request.task, &request.model));
    let arrays = Arc::new(Arrays(std::fs::read(folder.join("arrays.safetensors")).unwrap().into()));
    let count = recorded.len();
    let mut work = JoinSet::<Result<(), String>>::new();
    let mut wrong = Vec::new();
    for request in recorded {
        if work.len() == 16 {
            wrong.extend(work.join_next().await.and_then(|done| done.unwrap().err()));
        }
        let arrays = arrays.clone();
        work.spawn(async move { replay(address, &request, &arrays).await });
    }
    while let Some(done) = work.join_next().await {
        wrong.extend(done.unwrap().err());
    }
    assert!(wrong.is_empty(), "{} of {count} are wrong:\n{}", wrong.len(), wrong.join("\n"));
    count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recorded_requests_of_the_real_clients_are_answered_as_pytorch_would() {
    let app = TestApp::start(with_models()).await;
    let count = replay_all(app.addresses.data, |_, _| true).await;
    assert!(count > 250, "{count} requests");
    println!("{count} recorded requests, all answered as PyTorch would");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_real_client_gets_what_pytorch_would_give() {
    let Some(python) = python("the real client") else { return };
    let app = TestApp::start(with_models()).await;
    let url = format!("http://{}", app.addresses.data);
    let run = move || {
        let mut command = std::process::Command::new(python);
        command.arg(client("remote_utils.py")).args(["--url", &url, "--models"]).arg(fixtures().join("models"));
        command.stdin(Stdio::null()).output()
    };
    let output = tokio::task::spawn_blocking(run).await.unwrap().expect("the interpreter runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let last = said.lines().last().unwrap_or_default().to_owned();
    assert!(output.status.success(), "{last}\n{}", String::from_utf8_lossy(&output.stderr));
    println!("the real client: {last}");
}
