//! What a preview shows of latents whose colours can be worked out by hand.

use super::*;

/// Latents of `dims` whose value depends on the channel alone.
fn flat(dims: &[usize], channel: impl Fn(usize) -> f32) -> Tensor {
    let plane: usize = dims[2..].iter().product();
    let values = (0..dims[0]).flat_map(|_| (0..dims[1]).flat_map(|c| std::iter::repeat_n(channel(c), plane)));
    let data: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
    Tensor::try_new(DType::F32, Shape::try_new(dims).unwrap(), data.into()).unwrap()
}

/// The colour in the middle of a preview.
fn shown(latents: &Tensor, space: &Projection) -> [u8; 3] {
    let Preview { jpeg: file, width, height } = jpeg(latents, space, [1.0, 0.0]).unwrap();
    let image = image::load_from_memory(&file).unwrap().to_rgb8();
    assert_eq!((image.width(), image.height()), (width, height));
    image.get_pixel(width / 2, height / 2).0
}

/// JPEG's colour conversion and quantisation of a flat block, in levels.
const FLAT_BLOCK_ERROR: u8 = 3;

#[track_caller]
fn assert_close(got: [u8; 3], want: [u8; 3]) {
    assert!(got.iter().zip(want).all(|(&g, w)| g.abs_diff(w) <= FLAT_BLOCK_ERROR), "{got:?}, wanted {want:?}");
}

#[test]
fn a_colour_is_bias_plus_factors_times_latents() {
    // No latents: the bias alone, 127.5 + 127.5 * (0.1084, -0.0175, -0.0011).
    assert_close(shown(&flat(&[1, 4, 8, 8], |_| 0.0), &SD_XL), [141, 125, 127]);
    // Channel 1 of SD alone: 127.5 * (1 + (0.3250, 0.4974, 0.2350)).
    assert_close(shown(&flat(&[1, 4, 8, 8], |c| f32::from(c == 1)), &SD_V1), [169, 191, 157]);
    // Beyond the range is clamped, not wrapped.
    assert_close(shown(&flat(&[1, 32, 8, 8], |c| if c == 3 { 50.0 } else { 0.0 }), &FLUX_2), [255, 255, 255]);
}

#[test]
fn sizes_are_those_of_the_latents_and_only_the_first_frame_counts() {
    let preview = jpeg(&flat(&[3, 16, 5, 9], |_| 0.1), &FLUX_1, [1.0, 0.0]).unwrap();
    assert_eq!((preview.width, preview.height), (9, 5));
    // Frames are inside the channels: the second frame is white, the first is the bias.
    let plane = [[0f32; 64], [90.0; 64]].concat();
    let data: Vec<u8> = (0..4).flat_map(|_| plane.iter().flat_map(|v| v.to_le_bytes())).collect();
    let video = Tensor::try_new(DType::F32, Shape::try_new(&[1, 4, 2, 8, 8]).unwrap(), data.into()).unwrap();
    assert_close(shown(&video, &SD_XL), [141, 125, 127]);
}

#[test]
fn latents_of_another_scale_are_moved_to_the_projections() {
    // Channel 1 of SD at 2, and latents of half its size with a shift of 0.5 on every channel taken back.
    let want = shown(&flat(&[1, 4, 8, 8], |c| 2.0 * f32::from(c == 1)), &SD_V1);
    let moved = jpeg(&flat(&[1, 4, 8, 8], |c| f32::from(c == 1) + 0.5), &SD_V1, [2.0, -1.0]).unwrap();
    let image = image::load_from_memory(&moved.jpeg).unwrap().to_rgb8();
    assert_close(image.get_pixel(4, 4).0, want);
}

#[test]
fn the_fit_of_the_builtin_model_is_readable() {
    assert_eq!(BUILTIN.channels(), 4);
}

#[test]
fn latents_of_another_space_are_refused() {
    let refused = jpeg(&flat(&[1, 4, 8, 8], |_| 0.0), &SD_3, [1.0, 0.0]).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "the preview of this latent space takes float32 [n,16,h,w] or [n,16,f,h,w], got float32 [1,4,8,8]"
    );
    assert_eq!([&SD_V1, &SD_XL, &SD_3, &FLUX_1, &FLUX_2].map(Projection::channels), [4, 4, 16, 16, 32]);
}
