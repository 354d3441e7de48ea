//! Reading pictures against Pillow and torch (`tests/fixtures/make_render_goldens.py`), and hostile files.

use bytes::Bytes;
use image::RgbImage;
use proptest::prelude::*;

use super::tensor::nearest;
use super::*;
use crate::float;
use crate::tensor::Tensor;

const LIMITS: PictureLimits = PictureLimits { max_pixels: 1 << 20, max_side: 4096 };

fn fixture(name: &str) -> Bytes {
    let path = format!("{}/tests/fixtures/render/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(path).expect("a committed fixture").into()
}

/// Pixels of an 8-bit RGB PNG by the decoder alone.
fn golden(name: &str) -> RgbImage {
    image::load_from_memory(&fixture(name)).unwrap().to_rgb8()
}

fn pixels(name: &str) -> Vec<u8> {
    read(&fixture(name), &LIMITS).unwrap().into_data().to_vec()
}

/// Largest difference of two pictures in levels.
fn furthest(a: &[u8], b: &[u8]) -> u8 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

#[test]
fn every_kind_of_png_becomes_the_rgb_that_pillow_makes() {
    for kind in ["rgba", "palette", "grey", "grey_alpha", "bilevel"] {
        assert!(pixels(&format!("{kind}.png")) == *golden(&format!("{kind}_rgb.png")).as_raw(), "{kind}");
    }
    // Alpha is dropped, not blended.
    assert!(pixels("rgba.png") == *golden("rgb.png").as_raw());
    // Of 16 bits the upper byte is left.
    assert!(pixels("grey16.png") == *golden("grey_rgb.png").as_raw());
}

#[test]
fn the_same_pixels_in_any_lossless_file_are_the_same_tensor() {
    let canonical = read(&fixture("rgb.png"), &LIMITS).unwrap();
    assert_eq!(canonical.shape().dims(), [1, 32, 48, 3]);
    for name in ["rgb_stored.png", "lossless.webp", "lossless_alpha.webp"] {
        assert!(read(&fixture(name), &LIMITS).unwrap() == canonical, "{name}");
    }
    // And as a tensor of planes.
    let interleaved = canonical.data().as_chunks::<3>().0;
    let planes: Vec<u8> = (0..3).flat_map(|c| interleaved.iter().map(move |p| p[c])).collect();
    let planes = Tensor::try_new(DType::U8, Shape::try_new(&[1, 3, 32, 48]).unwrap(), planes.into()).unwrap();
    assert!(from_tensor(&planes, Range::Auto).unwrap() == canonical);
}

#[test]
fn lossy_files_come_close_to_what_pillow_decodes() {
    // Decoders differ in the inverse transform's rounding (1 level) and in how chroma is upsampled.
    for (name, most) in [
        ("grey.jpg", 1),
        ("colour.jpg", CHROMA_LEVELS),
        ("progressive.jpg", CHROMA_LEVELS),
        ("cmyk.jpg", 4),
        ("lossy.webp", CHROMA_LEVELS),
    ] {
        let want = golden(&format!("{}_rgb.png", name.replace('.', "_")));
        let off = furthest(&pixels(name), &want);
        assert!(off <= most, "{name} is up to {off} levels off");
    }
}

/// Levels that another upsampling of chroma may move a pixel at a hard edge of colour.
const CHROMA_LEVELS: u8 = 4;

#[test]
fn lanczos_is_pillows_to_the_bit() {
    for name in ["odd_61x45", "odd_64x47", "odd_71x40", "odd_47x39"] {
        let want = golden(&format!("{name}_cut.png"));
        let got = read(&fixture(&format!("{name}.png")), &LIMITS).unwrap();
        assert_eq!(got.shape().dims(), [1, want.height() as usize, want.width() as usize, 3]);
        assert_eq!(furthest(got.data(), &want), 0, "{name}");
    }
}

#[test]
fn nearest_places_are_torchs() {
    let goldens: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&fixture("nearest.json")).unwrap();
    for (side, places) in goldens {
        let side: usize = side.parse().unwrap();
        let want: Vec<usize> = serde_json::from_value(places).unwrap();
        assert_eq!(nearest(side, cut(side)), want, "{side}");
    }
}

#[test]
fn dimensions_come_from_the_header_alone() {
    let jpegs = ["colour.jpg", "progressive.jpg", "grey.jpg", "cmyk.jpg"].map(|name| (name, 700));
    let others = [("rgb.png", 24), ("lossless.webp", 25), ("lossy.webp", 30)];
    for (name, header) in others.into_iter().chain(jpegs) {
        let file = fixture(name);
        assert_eq!(dimensions(&file[..header.min(file.len())]), Ok((48, 32)), "{name}");
    }
    let short = dimensions(&fixture("rgb.png")[..23]).unwrap_err();
    assert_eq!(short.to_string(), "the PNG file is cut short after 23 bytes");
    assert_eq!(dimensions(b"GIF89a\x01\0\x01\0"), Err(PictureError::Format));
    assert_eq!(dimensions(b""), Err(PictureError::Format));
}

#[test]
fn a_bomb_is_refused_before_it_can_cost_anything() {
    let mut bomb = fixture("rgb.png").to_vec();
    bomb[16..20].copy_from_slice(&60_000u32.to_be_bytes());
    bomb[20..24].copy_from_slice(&60_000u32.to_be_bytes());
    // By its header: the pixels are cut off, so that nobody could have looked at them.
    bomb.truncate(33);
    let refused = read(&bomb.into(), &LIMITS).unwrap_err();
    assert_eq!(refused.to_string(), "a picture is at most 4096 pixels a side and 1048576 in all, got 60000x60000");
    let long = PictureLimits { max_pixels: u64::MAX, max_side: 47 };
    assert!(matches!(read(&fixture("colour.jpg"), &long), Err(PictureError::TooLarge { width: 48, .. })));
}

#[test]
fn a_webp_frame_larger_than_its_canvas_is_refused() {
    let mut file = fixture("lossless_alpha.webp").to_vec();
    assert_eq!(file[12..16], *b"VP8L");
    // An extended header in front, whose canvas is a pixel less wide than the frame.
    let canvas = [b"VP8X".as_slice(), &[10, 0, 0, 0, 0x10, 0, 0, 0, 46, 0, 0, 31, 0, 0]].concat();
    file.splice(12..12, canvas);
    let length = file.len() as u32 - 8;
    file[4..8].copy_from_slice(&length.to_le_bytes());
    let refused = read(&file.into(), &LIMITS).unwrap_err();
    assert_eq!(refused.to_string(), "the WebP file is broken: the frame is not of the canvas's size");
    let refused = read(&fixture("animated.webp"), &LIMITS).unwrap_err();
    assert_eq!(refused.to_string(), "an animated WebP is not taken");
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    for name in ["rgb.png", "palette.png", "colour.jpg", "progressive.jpg", "lossless.webp", "lossy.webp"] {
        let file = fixture(name);
        // A PNG's IEND chunk and a RIFF's padding byte hold no pixels.
        let needed = file.len() - if name.ends_with("png") { 16 } else { 1 };
        for length in (0..needed).step_by(7).chain([needed - 1]) {
            let refused = read(&file.slice(..length), &LIMITS);
            assert!(refused.is_err(), "{name} is taken when cut to {length} of {}", file.len());
        }
    }
    let refused = read(&fixture("colour.jpg").slice(..900), &LIMITS).unwrap_err();
    assert_eq!(refused.to_string(), "the JPEG file is cut short after 900 bytes");
    let refused = read(&fixture("rgb.png").slice(..2000), &LIMITS).unwrap_err();
    assert_eq!(refused.to_string(), "the PNG file is cut short after 2000 bytes");
}

#[test]
fn a_jpeg_of_a_thousand_scans_is_refused() {
    let file = fixture("progressive.jpg");
    let end = file.len() - 2;
    let last = (0..end).rev().find(|&i| file[i..i + 2] == [0xff, 0xda]).unwrap();
    let mut many = file[..end].to_vec();
    (0..1000).for_each(|_| many.extend_from_slice(&file[last..end]));
    many.extend_from_slice(&file[end..]);
    let refused = read(&many.into(), &LIMITS).unwrap_err();
    assert_eq!(refused.to_string(), "the JPEG file is broken: more than 100 scans");
}

#[test]
fn a_picture_below_one_latent_is_refused() {
    let tiny =
        Tensor::try_new(DType::U8, Shape::try_new(&[1, 3, 7, 8]).unwrap(), Bytes::from_static(&[0; 168])).unwrap();
    let refused = from_tensor(&tiny, Range::Auto).unwrap_err();
    assert_eq!(refused.to_string(), "a picture is at least 8 pixels a side, got 8x7");
}

/// `[1,3,8,w]` floats.
fn floats(w: usize, value: impl Fn(usize) -> f32) -> Tensor {
    let data: Vec<u8> = (0..24 * w).flat_map(|i| value(i).to_le_bytes()).collect();
    Tensor::try_new(DType::F32, Shape::try_new(&[1, 3, 8, w]).unwrap(), data.into()).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    float::values(tensor.data()).collect()
}

#[test]
fn the_range_is_taken_or_guessed() {
    let unit = floats(8, |i| if i == 5 { 1.0 } else { 0.25 });
    for range in [Range::Auto, Range::Unit] {
        let mapped = values(&from_tensor(&unit, range).unwrap());
        assert_eq!((mapped[0], mapped[5]), (-0.5, 1.0));
    }
    // Signed floats are taken as they are, without a copy.
    let signed = floats(8, |i| if i == 9 { -0.125 } else { 0.5 });
    for tensor in [from_tensor(&signed, Range::Auto), from_tensor(&unit, Range::Signed)].map(Result::unwrap) {
        assert!([signed.data().as_ptr(), unit.data().as_ptr()].contains(&tensor.data().as_ptr()));
    }
    assert_eq!(values(&from_tensor(&signed, Range::Unit).unwrap())[9..10], [-1.25]);
    // The last of nine columns is cut away, and with it the only negative value.
    let cut_away = floats(9, |i| if i == 8 { -1.0 } else { 0.5 });
    let kept = from_tensor(&cut_away, Range::Auto).unwrap();
    assert_eq!((kept.shape().dims(), values(&kept)[0]), ([1, 3, 8, 8].as_slice(), 0.0));
}

#[test]
fn tensors_that_are_no_pixels_are_refused_with_what_came() {
    let grey =
        Tensor::try_new(DType::U8, Shape::try_new(&[1, 1, 8, 8]).unwrap(), Bytes::from_static(&[0; 64])).unwrap();
    let refused = from_tensor(&grey, Range::Auto).unwrap_err();
    assert_eq!(refused.to_string(), "pixel tensors are [n,3,h,w], got uint8 [1,1,8,8]");
    let refused = from_tensor(&floats(8, |i| if i == 77 { f32::INFINITY } else { 0.0 }), Range::Unit).unwrap_err();
    assert_eq!(refused.to_string(), "pixels must be finite, got inf at index 77");
}

proptest! {
    #[test]
    fn no_bytes_behind_a_magic_make_the_reader_panic(
        kind in prop::sample::select(vec!["palette.png", "progressive.jpg", "cmyk.jpg", "lossy.webp", "lossless.webp"]),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut file = fixture(kind).to_vec();
        for (at, byte) in flips {
            let at = at.index(file.len());
            file[at] = byte;
        }
        // Any answer is right that is one: most flips break the file, some only change pixels.
        if let Ok(tensor) = read(&file.into(), &LIMITS) {
            prop_assert_eq!(tensor.shape().rank(), 4);
        }
    }
}
