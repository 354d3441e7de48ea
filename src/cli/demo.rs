//! `demo`: the product at work, in this process, on a picture that is part of the binary.
//!
//! A server on ports of its own is asked over real gRPC: once, again, and by many at once. What is claimed is checked,
//! from the answers' bytes and from the server's own metrics, and the exit code is that of the checks.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use clap::Args;
use tokio::time::Instant;
use tracing::Span;

use self::{report::Step, server::Server};
use super::{
    answer,
    client::{Answer, BlockBar, Client},
    encode::image,
    files::{self, Format},
    request::{Connection, Order, tensor_spec},
    serve,
};
use crate::{
    config::Config,
    picture::{self, PictureLimits},
    proto::{self, encode_spec, output},
    task,
    tensor::Tensor,
};

mod report;
mod server;
mod sheet;

/// The picture of the demo when none is given: "Lake Sherburne", CC0, 512x512. No model here was trained on it.
const PICTURE: &[u8] = include_bytes!("../../assets/demo.jpg");
const MODEL: &str = "builtin";

/// Flags of `demo`.
#[derive(Debug, Args)]
pub(super) struct Demo {
    /// Where the picture of the results goes: input, preview and output side by side.
    #[arg(long, short, value_name = "FILE.png", default_value = "demo.png")]
    output: PathBuf,
    /// A picture to use instead of the demo's own.
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,
    /// How many equal requests are sent at once.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(2..=512))]
    concurrency: u16,
}

/// What the single requests found.
struct Trip {
    latents: Tensor,
    decoded: Answer,
    steps: Vec<Step>,
}

/// What the crowd found.
struct Crowd {
    step: Step,
    engine_runs: u64,
    are_identical: bool,
}

impl Demo {
    pub(super) fn run(self) -> anyhow::Result<()> {
        ensure!(Format::of(&self.output)? == Format::Png, "--output {}: wanted a .png", self.output.display());
        files::check_place(&self.output)?;
        let file = match &self.picture {
            None => Bytes::from_static(PICTURE),
            Some(path) => fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?.into(),
        };
        let input = picture::read(&file, &limits()).context("the picture")?;
        serve::runtime()?.block_on(self.show(file, input))
    }

    async fn show(self, file: Bytes, input: Tensor) -> anyhow::Result<()> {
        let server = Server::start().await?;
        let connection = Connection { server: server.url(), timeout: None, token_file: None };
        let client = Client::connect(&connection, BlockBar::hidden()).await?;
        answer(format_args!("a latentgate with model {MODEL} listens on {}", server.url()))?;

        let trip = there_and_back(&client, file).await?;
        let crowd = crowd(&server, &client, &trip.latents, usize::from(self.concurrency)).await?;
        let output = picture::read(&trip.decoded.data, &limits()).context("the answer is no picture")?;
        let preview = trip.decoded.preview.as_ref().context("the server sent no preview")?;
        files::write(&self.output, &sheet::png(&input, preview, &output)?)?;
        server.stop().await;

        let psnr = report::psnr(&input, &output);
        self.tell(&trip, &crowd, psnr)?;
        verdict(&trip, &crowd, psnr)
    }

    fn tell(&self, trip: &Trip, crowd: &Crowd, psnr: f64) -> anyhow::Result<()> {
        let steps = trip.steps.iter().chain([&crowd.step]);
        report::table(steps).iter().try_for_each(answer)?;
        let runs = if crowd.engine_runs == 1 {
            "1 engine run".to_owned()
        } else {
            format!("{} engine runs", crowd.engine_runs)
        };
        let alike = if crowd.are_identical { "identical" } else { "NOT identical" };
        answer(format_args!("{} requests at once: {runs}, all answers {alike}", self.concurrency))?;
        answer(format_args!("picture -> latents -> picture: PSNR {psnr:.2} dB"))?;
        answer(format_args!("input, preview from the latents, output: {}", self.output.display()))
    }
}

/// Encodes the picture and decodes its latents, then both again.
async fn there_and_back(client: &Client, file: Bytes) -> anyhow::Result<Trip> {
    let encode = || client.encode(encode_spec(&file), file.clone(), Order::DataAtOnce);
    let encoded = encode().await?;
    let latents = encoded.tensor()?;
    let decode = || client.decode(decode_spec(&latents), latents.data().clone(), Order::DataAtOnce);
    let decoded = decode().await?;
    let (encoded_again, decoded_again) = (encode().await?, decode().await?);
    ensure!(encoded.data == encoded_again.data, "the same picture gave other latents the second time");
    ensure!(decoded.data == decoded_again.data, "the same latents gave another picture the second time");
    let steps = vec![
        Step::of("encode the picture", &encoded),
        Step::of("decode its latents", &decoded),
        Step::of("encode it again", &encoded_again),
        Step::of("decode them again", &decoded_again),
    ];
    Ok(Trip { latents, decoded, steps })
}

/// Many equal requests at once, for latents that nobody has asked for before.
async fn crowd(server: &Server, client: &Client, latents: &Tensor, size: usize) -> anyhow::Result<Crowd> {
    let mut data = latents.data().to_vec();
    // The last bit of one number: another content key, the same picture to the eye.
    data[0] ^= 1;
    let data = Bytes::from(data);
    let runs_before = server.engine_runs().await?;
    let began = Instant::now();
    let ask = || {
        let (client, spec, data) = (client.clone(), decode_spec(latents), data.clone());
        task::spawn(Span::none(), async move {
            let answer = client.decode(spec, data, Order::DataAtOnce).await;
            answer.map(|answer| (answer, began.elapsed()))
        })
    };
    let asked: Vec<_> = (0..size).map(|_| ask()).collect();
    let mut answers: Vec<(Answer, Duration)> = Vec::with_capacity(size);
    for one in asked {
        answers.push(one.join().await.context("a request panicked")??);
    }
    let engine_runs = server.engine_runs().await? - runs_before;
    let are_identical = answers.iter().all(|(answer, _)| answer.data == answers[0].0.data);
    let step = Step::of_many(format!("decode others, {size} at once"), &answers);
    Ok(Crowd { step, engine_runs, are_identical })
}

/// What was claimed, or all of what did not hold.
fn verdict(trip: &Trip, crowd: &Crowd, psnr: f64) -> anyhow::Result<()> {
    use proto::Source::{Computed, Memory};
    /// Far below what any of these autoencoders reaches on a photograph, far above two unrelated pictures.
    const WORST_PSNR: f64 = 15.0;
    let mut faults = Vec::new();
    for (step, want) in trip.steps.iter().zip([Computed, Computed, Memory, Memory]) {
        if !step.is_all_from(want) {
            faults.push(format!("`{}` did not come from where it should", step.name()));
        }
    }
    if crowd.engine_runs != 1 {
        faults.push(format!("equal requests cost {} engine runs, not 1", crowd.engine_runs));
    }
    if !crowd.are_identical {
        faults.push("equal requests got different answers".to_owned());
    }
    if psnr.is_nan() || psnr < WORST_PSNR {
        faults.push(format!("the picture came back with a PSNR of {psnr:.2} dB"));
    }
    if faults.is_empty() { Ok(()) } else { bail!("the demo failed, please report it: {}", faults.join("; ")) }
}

fn encode_spec(file: &[u8]) -> proto::EncodeSpec {
    proto::EncodeSpec {
        model: MODEL.to_owned(),
        input: Some(encode_spec::Input::Image(image(file))),
        ..proto::EncodeSpec::default()
    }
}

fn decode_spec(latents: &Tensor) -> proto::DecodeSpec {
    proto::DecodeSpec {
        model: MODEL.to_owned(),
        latents: Some(tensor_spec(latents)),
        output: Some(proto::Output { kind: Some(output::Kind::Png(output::Png {})) }),
        wants: Some(proto::Wants { progress: false, preview: true }),
        ..proto::DecodeSpec::default()
    }
}

/// What the server would take, too.
fn limits() -> PictureLimits {
    PictureLimits { max_pixels: Config::default().limits.max_pixels, max_side: u32::from(u16::MAX) }
}
