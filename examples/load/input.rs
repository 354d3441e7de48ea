//! What is asked for: a real photograph and its latents, since noise would neither decode nor compress like a picture.

use anyhow::Context as _;
use bytes::Bytes;
use half::f16;
use latentgate::proto::{self, DecodeSpec, Dtype, EncodeSpec, TensorSpec, encode_spec};

use crate::{Arguments, exchange::Client};

/// "Lake Sherburne", CC0, 512x512: the demo's picture.
const PICTURE: &[u8] = include_bytes!("../../assets/demo.jpg");
const PICTURE_SIDE: usize = 512;
const MODEL: &str = "builtin";
/// Of the builtin model.
const CHANNELS: usize = 4;
const SCALE: usize = 8;
/// Latents of the picture, along each side.
const SIDE: usize = PICTURE_SIDE / SCALE;

/// What goes before an input.
pub(crate) enum Spec {
    Decode(DecodeSpec),
    Encode(EncodeSpec),
}

/// One request.
pub(crate) struct Input {
    pub(crate) spec: Spec,
    pub(crate) data: Bytes,
}

/// The inputs of a run. In each a first number is its own; sizes alternate.
pub(crate) struct Inputs {
    decodes: Vec<Input>,
    encodes: Vec<Input>,
    /// Of a hundred requests so many are encodes.
    percent: u64,
    law: Option<Zipf>,
}

/// How often the n-th is asked for: 1 / n^exponent, of all.
struct Zipf {
    /// Of those up to each.
    cumulative: Vec<f64>,
}

impl Inputs {
    pub(crate) async fn make(client: &Client, arguments: &Arguments) -> anyhow::Result<Self> {
        let spec = EncodeSpec {
            model: MODEL.to_owned(),
            input: Some(encode_spec::Input::Image(encode_spec::Image { length: PICTURE.len() as u64 })),
            ..EncodeSpec::default()
        };
        let latents = client.encode(spec, Bytes::from_static(PICTURE)).await.context("encoding the picture")?;
        let (latents, _) = latents.as_chunks::<2>();
        let latents: Vec<f32> = latents.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f32()).collect();
        anyhow::ensure!(latents.len() == CHANNELS * SIDE * SIDE, "the latents of the picture have another size");
        let pixels = image::load_from_memory(PICTURE).context("the picture")?.to_rgb8().into_raw();
        let all = || (0..arguments.distinct).flat_map(|which| arguments.sizes.iter().map(move |&size| (which, size)));
        let decodes: Vec<_> =
            all().map(|(which, size)| decode(&latents, (which, size), arguments.output.wish())).collect();
        let wanted = if arguments.encodes == 0 { 0 } else { usize::MAX };
        let encodes: Vec<_> = all().take(wanted).map(|(which, size)| encode(&pixels, which, size)).collect();
        let law = arguments.zipf.map(|exponent| Zipf::new(exponent, decodes.len()));
        Ok(Self { decodes, encodes, percent: arguments.encodes, law })
    }

    pub(crate) const fn len(&self) -> usize {
        self.decodes.len() + self.encodes.len()
    }

    /// Each once, in this order.
    pub(crate) fn nth(&self, turn: u64) -> &Input {
        let turn = turn as usize % self.len();
        self.decodes.get(turn).unwrap_or_else(|| &self.encodes[turn - self.decodes.len()])
    }

    /// The input of a turn, by the mix and the law.
    pub(crate) fn pick(&self, turn: u64) -> &Input {
        // Spread over a hundred turns, and not the first of them.
        let is_encode = (turn * 37 % 100) < self.percent;
        let from = if is_encode { &self.encodes } else { &self.decodes };
        let which = match &self.law {
            Some(law) => law.draw(),
            None => turn as usize % from.len(),
        };
        &from[which]
    }
}

impl Zipf {
    fn new(exponent: f64, count: usize) -> Self {
        let mut sum = 0.0;
        let weights = (1..=count).map(|rank| (rank as f64).powf(-exponent));
        let cumulative = weights.map(|weight| {
            sum += weight;
            sum
        });
        Self { cumulative: cumulative.collect() }
    }

    fn draw(&self) -> usize {
        let at = fastrand::f64() * self.cumulative.last().copied().unwrap_or_default();
        self.cumulative.partition_point(|sum| *sum <= at).min(self.cumulative.len() - 1)
    }
}

/// The picture's latents, tiled to the wanted size.
fn decode(latents: &[f32], (which, size): (u64, usize), output: proto::Output) -> Input {
    let side = size / SCALE;
    let tiled = |channel: usize| {
        (0..side * side).map(move |at| latents[(channel * SIDE + at / side % SIDE) * SIDE + at % side % SIDE])
    };
    let mut latents: Vec<f32> = (0..CHANNELS).flat_map(tiled).collect();
    latents[0] = which as f32 / 1e4;
    let shape = vec![1, CHANNELS as i64, side as i64, side as i64];
    let spec = DecodeSpec {
        model: MODEL.to_owned(),
        latents: Some(TensorSpec { dtype: Dtype::F32 as i32, shape }),
        output: Some(output),
        wants: Some(proto::Wants::default()),
        ..DecodeSpec::default()
    };
    Input { spec: Spec::Decode(spec), data: latents.iter().flat_map(|value| value.to_le_bytes()).collect() }
}

/// The picture's pixels, a plane a colour, tiled likewise.
fn encode(pixels: &[u8], which: u64, size: usize) -> Input {
    let at = |x: usize, y: usize| (y % PICTURE_SIDE * PICTURE_SIDE + x % PICTURE_SIDE) * 3;
    let plane = |colour: usize| (0..size * size).map(move |n| pixels[at(n % size, n / size) + colour]);
    let mut data: Vec<u8> = (0..3).flat_map(plane).collect();
    data[..2].copy_from_slice(&(which as u16).to_le_bytes());
    let tensor = TensorSpec { dtype: Dtype::U8 as i32, shape: vec![1, 3, size as i64, size as i64] };
    let input = encode_spec::Input::Pixels(encode_spec::Pixels { tensor: Some(tensor), ..Default::default() });
    let spec = EncodeSpec { model: MODEL.to_owned(), input: Some(input), ..EncodeSpec::default() };
    Input { spec: Spec::Encode(spec), data: data.into() }
}
