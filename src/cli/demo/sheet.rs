//! One picture of the demo's results: input, preview and output side by side.

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use image::ImageFormat;

use crate::{
    render,
    tensor::{DType, Shape, Tensor},
};

/// Pixels between the pictures and around them.
const GAP: usize = 8;
/// Light grey: neither a picture's black nor its white.
const GROUND: u8 = 224;

/// A picture of u8 RGB.
struct Rgb<'a> {
    data: &'a [u8],
    width: usize,
    height: usize,
}

/// The sheet as a PNG. `input` and `output` are u8 `[1,h,w,3]` of one shape; `preview` is a JPEG, which is blown up to
/// their size.
pub(super) fn png(input: &Tensor, preview: &[u8], output: &Tensor) -> anyhow::Result<Bytes> {
    let input = rgb(input)?;
    let output = rgb(output)?;
    ensure!(
        (input.width, input.height) == (output.width, output.height),
        "the picture came back as {}x{}, and was {}x{}",
        output.width,
        output.height,
        input.width,
        input.height
    );
    let (width, height) = (input.width, input.height);
    let preview = image::load_from_memory_with_format(preview, ImageFormat::Jpeg).context("the preview")?.into_rgb8();
    let small = Rgb { data: preview.as_raw(), width: preview.width() as usize, height: preview.height() as usize };
    let large = small.blown_up(width, height);

    let sheet_width = 3 * width + 4 * GAP;
    let sheet_height = height + 2 * GAP;
    let mut sheet = vec![GROUND; sheet_width * sheet_height * 3];
    for (place, picture) in [input.data, &large, output.data].into_iter().enumerate() {
        let left = GAP + place * (width + GAP);
        for (y, row) in picture.chunks_exact(width * 3).enumerate() {
            let start = ((y + GAP) * sheet_width + left) * 3;
            sheet[start..start + row.len()].copy_from_slice(row);
        }
    }
    let shape = Shape::try_new(&[1, sheet_height, sheet_width, 3])?;
    Ok(render::png(&Tensor::try_new(DType::U8, shape, sheet.into())?)?)
}

fn rgb(tensor: &Tensor) -> anyhow::Result<Rgb<'_>> {
    match (tensor.dtype(), tensor.shape().dims()) {
        (DType::U8, &[1, height, width, 3]) => Ok(Rgb { data: tensor.data(), width, height }),
        _ => anyhow::bail!("wanted one picture, got {tensor:?}"),
    }
}

impl Rgb<'_> {
    /// By nearest neighbour: one square a latent.
    fn blown_up(&self, width: usize, height: usize) -> Vec<u8> {
        let pixel = |x: usize, y: usize| {
            let start = ((y * self.height / height) * self.width + x * self.width / width) * 3;
            &self.data[start..start + 3]
        };
        (0..height).flat_map(|y| (0..width).map(move |x| (x, y))).flat_map(|(x, y)| pixel(x, y)).copied().collect()
    }
}
