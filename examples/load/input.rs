//! What is asked for: latents of a real photograph, since noise would neither decode nor compress like a picture.

use anyhow::Context as _;
use bytes::Bytes;
use half::f16;
use latentgate::proto::{self, DecodeSpec, Dtype, EncodeSpec, TensorSpec, encode_spec};

use crate::{Arguments, exchange::Client};

/// "Lake Sherburne", CC0, 512x512: the demo's picture.
const PICTURE: &[u8] = include_bytes!("../../assets/demo.jpg");
const MODEL: &str = "builtin";
/// Of the builtin model.
const CHANNELS: usize = 4;
const SCALE: usize = 8;
/// Latents of the picture, along each side.
const SIDE: usize = 512 / SCALE;

/// One decode request.
pub(crate) struct Input {
    pub(crate) spec: DecodeSpec,
    pub(crate) data: Bytes,
}

/// The inputs of a run: the picture's latents, tiled to the wanted size, and in each a first number of its own.
pub(crate) async fn inputs(client: &Client, arguments: &Arguments) -> anyhow::Result<Vec<Input>> {
    let spec = EncodeSpec {
        model: MODEL.to_owned(),
        input: Some(encode_spec::Input::Image(encode_spec::Image { length: PICTURE.len() as u64 })),
        ..EncodeSpec::default()
    };
    let picture = client.encode(spec, Bytes::from_static(PICTURE)).await.context("encoding the picture")?;
    let (values, _) = picture.as_chunks::<2>();
    let values: Vec<f32> = values.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f32()).collect();
    anyhow::ensure!(values.len() == CHANNELS * SIDE * SIDE, "the latents of the picture have another size");

    let side = arguments.size as usize / SCALE;
    let tiled = |channel: usize| {
        let values = &values;
        (0..side * side).map(move |at| values[(channel * SIDE + at / side % SIDE) * SIDE + at % side % SIDE])
    };
    let latents: Vec<f32> = (0..CHANNELS).flat_map(tiled).collect();
    let input = |which: u64| {
        let mut latents = latents.clone();
        latents[0] = which as f32 / 1e4;
        let shape = vec![1, CHANNELS as i64, side as i64, side as i64];
        let spec = DecodeSpec {
            model: MODEL.to_owned(),
            latents: Some(TensorSpec { dtype: Dtype::F32 as i32, shape }),
            output: Some(arguments.output.wish()),
            wants: Some(proto::Wants::default()),
            ..DecodeSpec::default()
        };
        Input { spec, data: latents.iter().flat_map(|value| value.to_le_bytes()).collect() }
    };
    Ok((0..arguments.distinct).map(input).collect())
}
