//! Renditions against torch's and Pillow's, made by `tests/fixtures/make_render_goldens.py`.

use bytes::Bytes;
use half::f16;
use image::RgbImage;

use super::*;
use crate::float;
use crate::tensor::Tensor;

/// A committed golden.
fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/fixtures/render/{name}", env!("CARGO_MANIFEST_DIR"))).expect("a committed fixture")
}

fn decoded(file: &[u8]) -> RgbImage {
    image::load_from_memory(file).unwrap().to_rgb8()
}

fn tensor(image: &RgbImage) -> Tensor {
    let shape = Shape::try_new(&[1, image.height() as usize, image.width() as usize, 3]).unwrap();
    Tensor::try_new(DType::U8, shape, Bytes::copy_from_slice(image)).unwrap()
}

/// Pixels without any order, by a small congruential generator.
fn noise(width: u32, height: u32) -> RgbImage {
    let mut state = 1u64;
    RgbImage::from_fn(width, height, |_, _| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        image::Rgb([(state >> 33) as u8, (state >> 41) as u8, (state >> 49) as u8])
    })
}

/// Two pixels of noise only: 0 and 255, the most energy a block can have.
fn hard_noise(width: u32, height: u32) -> RgbImage {
    let mut image = noise(width, height);
    image.iter_mut().for_each(|v| *v = if *v & 4 == 0 { 0 } else { 255 });
    image
}

#[test]
fn all_halves_become_the_bytes_that_torch_makes() {
    let golden = image::load_from_memory(&fixture("unit_to_u8.png")).unwrap().to_luma8();
    for (bits, &want) in (0..=u16::MAX).zip(golden.as_raw()) {
        let y = f16::from_bits(bits);
        assert_eq!(unit_to_u8(y), want, "{y:?} = {bits:#06x}");
    }
}

#[test]
fn all_halves_become_the_bytes_that_the_formula_spells() {
    for bits in 0..=u16::MAX {
        let y = f16::from_bits(bits);
        let halved = f16::from_f64(y.to_f64() * 0.5);
        let unit = f16::from_f64(halved.to_f64() + 0.5);
        let want = match unit.to_f64() {
            unit if unit.is_nan() || unit < 0.0 => 0.0,
            unit if unit > 1.0 => 255.0,
            _ => (unit.to_f32() * 255.0).round_ties_even(),
        };
        assert_eq!(f32::from(unit_to_u8(y)).to_bits(), want.to_bits(), "{y:?} = {bits:#06x}");
    }
}

#[test]
fn planes_become_pixels_of_each_picture_of_a_batch() {
    // 2 pictures of 1x2 pixels: red, green and blue planes hold -1, 0 and 1 in another order each.
    let planes = [-1f32, 0., 0., 1., 1., -1., /* second */ 1., 1., -1., -1., 0., f32::NAN];
    let data: Vec<u8> = planes.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
    let pixels = Tensor::try_new(DType::F16, Shape::try_new(&[2, 3, 1, 2]).unwrap(), data.into()).unwrap();
    let rgb = uint8(&pixels).unwrap();
    assert_eq!(rgb.shape().dims(), [2, 1, 2, 3]);
    assert_eq!(rgb.data()[..], [0, 128, 255, 128, 255, 0, 255, 0, 128, 255, 0, 0]);
    let refused = uint8(&float::cast(&pixels, DType::F32).unwrap()).unwrap_err();
    assert_eq!(refused.to_string(), "wanted float16 [n,3,h,w], got float32 [2,3,1,2]");
}

#[test]
fn lossless_files_give_back_every_pixel_of_odd_sizes() {
    for (width, height) in [(1, 1), (7, 5), (33, 1), (1, 33), (127, 65)] {
        for image in [noise(width, height), RgbImage::from_pixel(width, height, image::Rgb([9, 200, 77]))] {
            let pixels = tensor(&image);
            assert!(decoded(&png(&pixels).unwrap()) == image, "png {width}x{height}");
            assert!(decoded(&webp(&pixels).unwrap()) == image, "webp {width}x{height}");
        }
    }
}

#[test]
fn no_file_is_larger_than_its_bound() {
    for (width, height) in [(1, 1), (16, 16), (17, 33), (256, 256), (500, 300)] {
        for image in [noise(width, height), hard_noise(width, height)] {
            let pixels = tensor(&image);
            let check = |format: &str, file: Bytes, bound: u64| {
                assert!(file.len() as u64 <= bound, "{format} {width}x{height}: {} over {bound}", file.len());
            };
            check("png", png(&pixels).unwrap(), png_bound(height, width));
            check("jpeg", jpeg(&pixels, 100).unwrap(), jpeg_bound(height, width));
            check("webp", webp(&pixels).unwrap(), webp_bound(height, width));
        }
    }
    assert!(png_bound(u32::MAX, u32::MAX) >= u64::from(u32::MAX).pow(2), "bounds saturate and never wrap");
}

#[test]
fn files_say_what_they_are() {
    let pixels = tensor(&noise(16, 16));
    assert!(png(&pixels).unwrap().starts_with(b"\x89PNG\r\n\x1a\n"));
    assert!(webp(&pixels).unwrap().starts_with(b"RIFF"));
    let file = jpeg(&pixels, 75).unwrap();
    assert_eq!(file[..4], [0xff, 0xd8, 0xff, 0xe0]);
    assert_eq!(file[6..11], *b"JFIF\0");
    // The one frame is baseline, 8 bits, three components, luma sampled 2x2.
    let frame = file.windows(2).position(|w| w == [0xff, 0xc0]).expect("a baseline frame");
    assert_eq!(file[frame + 2..frame + 12], [0, 17, 8, 0, 16, 0, 16, 3, file[frame + 10], 0x22]);
}

#[test]
fn what_cannot_be_a_file_is_refused_by_name() {
    let batch =
        Tensor::try_new(DType::U8, Shape::try_new(&[2, 1, 1, 3]).unwrap(), Bytes::from_static(&[0; 6])).unwrap();
    assert_eq!(png(&batch).unwrap_err().to_string(), "wanted one picture, uint8 [1,h,w,3], got uint8 [2,1,1,3]");
    let pixels = tensor(&noise(1, 1));
    assert_eq!(jpeg(&pixels, 0), Err(RenderError::Quality(0)));
    assert_eq!(jpeg(&pixels, 101), Err(RenderError::Quality(101)));
    let wide = tensor(&RgbImage::new(16_384, 1));
    assert_eq!(webp(&wide).unwrap_err().to_string(), "a webp is at most 16383 pixels a side, got 16384x1");
    assert_eq!(decoded(&webp(&tensor(&RgbImage::new(16_383, 1))).unwrap()).width(), 16_383);
}

/// Peak signal to noise ratio of two pictures in dB, over the values that `of` takes from a pixel.
fn psnr<const N: usize>(a: &RgbImage, b: &RgbImage, of: impl Fn(&image::Rgb<u8>) -> [f64; N]) -> f64 {
    let squares = a.pixels().zip(b.pixels()).flat_map(|(a, b)| {
        let (a, b) = (of(a), of(b));
        (0..N).map(move |i| (a[i] - b[i]).powi(2))
    });
    let values = (a.width() * a.height()) as f64 * N as f64;
    10.0 * (255f64.powi(2) / (squares.sum::<f64>() / values)).log10()
}

#[test]
fn a_jpeg_is_about_as_good_as_pillows_of_the_same_quality() {
    let marks: serde_json::Value = serde_json::from_slice(&fixture("jpeg_psnr.json")).unwrap();
    let scene = decoded(&fixture("scene.png"));
    for quality in [30u8, 75, 95] {
        let mark = |name: &str| marks[quality.to_string()][name].as_f64().unwrap();
        let file = jpeg(&tensor(&scene), quality).unwrap();
        let again = decoded(&file);
        let rgb = psnr(&scene, &again, |p| p.0.map(f64::from));
        let luma = psnr(&scene, &again, |p| {
            let [r, g, b] = p.0.map(f64::from);
            [0.299 * r + 0.587 * g + 0.114 * b]
        });
        // The protocol allows 3 and 2 dB; half a dB is what another decoder's rounding and upsampling may cost.
        assert!(rgb > mark("rgb_db") - 0.5, "quality {quality}: {rgb} dB, Pillow {}", mark("rgb_db"));
        assert!(luma > mark("luma_db") - 0.5, "quality {quality}: luma {luma} dB, Pillow {}", mark("luma_db"));
        let size = file.len() as f64 / mark("bytes");
        assert!((0.9..1.1).contains(&size), "quality {quality}: {} bytes, Pillow {}", file.len(), mark("bytes"));
    }
}
