use half::{bf16, f16};
use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;

use super::*;
use crate::{render, tensor::Tensor};

const WIDTH: u32 = 24;
const HEIGHT: u32 = 16;
const MOST: u64 = 10_000;

fn picture() -> Bytes {
    let data: Vec<u8> = (0..WIDTH * HEIGHT * 3).map(|i| (i * 7 % 251) as u8).collect();
    let shape = Shape::try_new(&[1, HEIGHT as usize, WIDTH as usize, 3]).unwrap();
    render::png(&Tensor::try_new(DType::U8, shape, data.into()).unwrap()).unwrap()
}

fn boxes(list: &[(&[u8; 4], &[u8])]) -> Bytes {
    let whole = |(name, body): &(&[u8; 4], &[u8])| [&(body.len() as u32 + 8).to_be_bytes(), &name[..], body].concat();
    list.iter().flat_map(whole).collect::<Vec<u8>>().into()
}

fn video() -> Bytes {
    boxes(&[(b"ftyp", b"isomiso2"), (b"mdat", &[7; 300]), (b"moov", b"index"), (b"free", b"")])
}

fn png_form() -> Form {
    Form::Png { width: WIDTH, height: HEIGHT, most: MOST }
}

/// Judges a body that comes in pieces of a length: as it comes, and then its pixels.
fn judge(form: &Form, length: Option<u64>, body: &[u8], piece: usize) -> Result<(), WrongReply> {
    let judged = Judged { dtype: DType::U8, length, most: MOST };
    let mut checker = Checker::new(form, &judged);
    for piece in body.chunks(piece.max(1)) {
        checker.feed(&Bytes::copy_from_slice(piece))?;
    }
    checker.end()?;
    prove(form, body, piece)
}

/// Judges the pixels of a file, in pieces of a length.
fn prove(form: &Form, body: &[u8], piece: usize) -> Result<(), WrongReply> {
    let Some(mut pixels) = Pixels::of(form) else { return Ok(()) };
    for piece in body.chunks(piece.max(1)) {
        pixels.feed(&Bytes::copy_from_slice(piece))?;
    }
    pixels.end()
}

fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
}

#[test]
fn a_tensor_is_judged_by_shape_type_and_length() {
    let form = Form::Tensor { shape: Shape::try_new(&[1, 3, 8, 8]).unwrap(), is_bytes: false };
    let right = headers(&[("shape", "[1,3,8,8]"), ("dtype", "float16")]);
    let judged = form.judge(&right, Some(384)).unwrap();
    assert_eq!((judged.dtype, judged.length), (DType::F16, Some(384)));
    // What the head does not say, the shape does.
    assert_eq!(form.judge(&right, None), Ok(judged));
    assert_eq!(form.judge(&right, Some(383)), Err(WrongReply::Announced { want: 384, got: 383 }));

    let wrong = |pairs| form.judge(&headers(pairs), Some(384)).unwrap_err().to_string();
    assert_eq!(wrong(&[("dtype", "float16")]), "it has no readable `shape` header");
    assert_eq!(wrong(&[("shape", "[1,3,8,8]")]), "it has no readable `dtype` header");
    assert_eq!(
        wrong(&[("shape", "[1,3,8,4]"), ("dtype", "float32")]),
        "it is float32 [1,3,8,4] instead of floats [1,3,8,8]"
    );
    assert!(wrong(&[("shape", "[1,3,8,8]"), ("dtype", "uint8")]).contains("instead of floats"));
    assert!(wrong(&[("shape", "[1,x"), ("dtype", "float16")]).contains("no readable"));
    assert!(wrong(&[("shape", "[1,3,8,8]"), ("dtype", "float64")]).contains("no readable"));
    assert_eq!(
        wrong(&[("content-encoding", "gzip"), ("shape", "[1,3,8,8]"), ("dtype", "float16")]),
        "it is compressed (gzip), which was not asked for"
    );
    let same = headers(&[("content-encoding", "identity"), ("shape", "[1,3,8,8]"), ("dtype", "bfloat16")]);
    assert!(form.judge(&same, None).is_ok());
}

#[test]
fn a_tensor_body_is_exactly_as_long_as_announced() {
    let form = Form::Tensor { shape: Shape::try_new(&[300]).unwrap(), is_bytes: true };
    let judged = form.judge(&headers(&[("shape", "[300]"), ("dtype", "uint8")]), None).unwrap();
    for (bytes, want) in
        [(299, Err(WrongReply::Short { want: 300, got: 299 })), (300, Ok(())), (301, Err(WrongReply::Long(300)))]
    {
        let mut checker = Checker::new(&form, &judged);
        let got = checker.feed(&Bytes::from(vec![0; bytes])).and_then(|()| checker.end());
        assert_eq!(got, want);
    }
}

/// Judges floats in pieces of a length.
fn judge_floats(dtype: DType, data: &[u8], piece: usize) -> Result<(), WrongReply> {
    let form = Form::Tensor { shape: Shape::try_new(&[data.len() / dtype.size()]).unwrap(), is_bytes: false };
    let judged = Judged { dtype, length: Some(data.len() as u64), most: data.len() as u64 };
    let mut checker = Checker::new(&form, &judged);
    data.chunks(piece).try_for_each(|piece| checker.feed(&Bytes::copy_from_slice(piece)))?;
    checker.end()
}

#[test]
fn nan_and_infinity_are_found_wherever_pieces_end() {
    let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    let good = [f32::MAX, f32::MIN, f32::MIN_POSITIVE, -0.0, 1.0];
    for dtype in [DType::F16, DType::BF16, DType::F32] {
        let bytes = |x: f32| match dtype {
            DType::F16 if x.is_finite() => f16::from_f32(x.clamp(-65504.0, 65504.0)).to_le_bytes().to_vec(),
            DType::F16 => f16::from_f32(x).to_le_bytes().to_vec(),
            DType::BF16 if x.is_finite() => bf16::from_f32(x.clamp(-3.3e38, 3.3e38)).to_le_bytes().to_vec(),
            DType::BF16 => bf16::from_f32(x).to_le_bytes().to_vec(),
            _ => x.to_le_bytes().to_vec(),
        };
        let numbers: Vec<f32> = good.iter().copied().cycle().take(23).collect();
        for piece in 1..24 {
            let whole: Vec<u8> = numbers.iter().flat_map(|&x| bytes(x)).collect();
            assert_eq!(judge_floats(dtype, &whole, piece), Ok(()), "{dtype} {piece}");
            for at in 0..numbers.len() {
                let mut numbers = numbers.clone();
                numbers[at] = bad[at % bad.len()];
                let whole: Vec<u8> = numbers.iter().flat_map(|&x| bytes(x)).collect();
                assert_eq!(judge_floats(dtype, &whole, piece), Err(WrongReply::NonFinite), "{dtype} {piece} {at}");
            }
        }
    }
}

#[test]
fn files_may_not_say_how_long_they_are_but_not_be_longer_than_possible() {
    let form = png_form();
    assert_eq!(form.judge(&HeaderMap::new(), None).unwrap().length, None);
    assert_eq!(form.judge(&HeaderMap::new(), Some(MOST)).unwrap().length, Some(MOST));
    let refused = form.judge(&HeaderMap::new(), Some(MOST + 1)).unwrap_err();
    assert_eq!(refused.to_string(), "it announces 10001 bytes, 10000 are the most there can be");
}

#[test]
fn html_is_neither_a_picture_nor_a_video() {
    let page = b"<!DOCTYPE html><html><body>Sign in</body></html>";
    assert_eq!(judge(&png_form(), None, page, 5), Err(WrongReply::Png("it does not begin like one")));
    assert_eq!(judge(&Form::Mp4 { most: MOST }, None, page, 5), Err(WrongReply::Mp4("it does not begin like one")));
}

#[test]
fn a_picture_of_another_size_or_kind_is_refused_by_its_header() {
    let form = Form::Png { width: HEIGHT, height: WIDTH, most: MOST };
    let refused = judge(&form, None, &picture(), 33).unwrap_err();
    assert_eq!(refused.to_string(), "its picture is 24x16 instead of 16x24");
    let mut grey = picture().to_vec();
    // The colour type of the header.
    grey[25] = 0;
    assert_eq!(judge(&png_form(), None, &grey, 7), Err(WrongReply::Png("its pixels are not plain 8-bit RGB")));
}

/// A PNG with the right frame around any pixels.
fn framed(chunks: &[&[u8]]) -> Vec<u8> {
    let chunk = |name: &[u8; 4], data: &[u8]| {
        let named = [&name[..], data].concat();
        [&(data.len() as u32).to_be_bytes(), &named[..], &crc32fast::hash(&named).to_be_bytes()].concat()
    };
    let head = [&WIDTH.to_be_bytes()[..], &HEIGHT.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    let mut file = [&b"\x89PNG\r\n\x1a\n"[..], &chunk(b"IHDR", &head)].concat();
    for data in chunks {
        file.extend(chunk(b"IDAT", data));
    }
    [file, chunk(b"IEND", b"")].concat()
}

#[test]
fn pixels_that_nobody_can_decode_are_refused_in_whatever_frame() {
    const ROW: usize = 1 + 3 * WIDTH as usize;
    let rows = vec![0; ROW * HEIGHT as usize];
    let deflated = |rows: &[u8]| fdeflate::compress_to_vec(rows);
    let right = deflated(&rows);
    for piece in [1, 7, 1000] {
        judge(&png_form(), None, &framed(&[&right]), piece).unwrap();
        let (first, rest) = right.split_at(5);
        judge(&png_form(), None, &framed(&[first, b"", rest]), piece).unwrap();
    }
    let mut filter = rows.clone();
    filter[ROW * 7] = 5;
    let mut flipped = right.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let cases: [(Vec<u8>, &str); 6] = [
        (b"no pixels at all".to_vec(), "its pixels cannot be inflated"),
        (flipped, "its pixels cannot be inflated"),
        (deflated(&rows[1..]), "it has fewer pixels than its header says"),
        (right[..right.len() - 1].to_vec(), "it has fewer pixels than its header says"),
        (deflated(&[&rows[..], &[0]].concat()), "it has more pixels than its header says"),
        (deflated(&filter), "a row has a filter that there is not"),
    ];
    for (pixels, why) in cases {
        for piece in [1, 13, 1000] {
            assert_eq!(judge(&png_form(), None, &framed(&[&pixels]), piece), Err(WrongReply::Png(why)));
        }
    }
}

#[test]
fn pixels_of_many_windows_pass_in_pieces_of_any_length() {
    let (height, width) = (300, 400);
    let data: Vec<u8> = (0..height * width * 3).map(|i| (i * i % 8191 % 256) as u8).collect();
    let shape = Shape::try_new(&[1, height, width, 3]).unwrap();
    let file = render::png(&Tensor::try_new(DType::U8, shape, data.into()).unwrap()).unwrap();
    let form = Form::Png { width: width as u32, height: height as u32, most: 1 << 20 };
    for piece in [97, 8192, 1 << 20] {
        prove(&form, &file, piece).unwrap();
    }
}

#[test]
fn nothing_is_convincing_before_the_header_is_whole() {
    let judged = png_form().judge(&HeaderMap::new(), None).unwrap();
    let (mut checker, file) = (Checker::new(&png_form(), &judged), picture());
    for at in 0..file.len() {
        assert_eq!(checker.is_convinced(), at >= 8 + 8 + 13, "after {at} bytes");
        checker.feed(&file.slice(at..=at)).unwrap();
    }
    checker.end().unwrap();
}

#[test]
fn videos_begin_with_their_type_have_an_index_and_end_with_a_box() {
    let form = Form::Mp4 { most: MOST };
    let refused = |body: &[u8]| judge(&form, None, body, 11).unwrap_err().to_string();
    assert_eq!(refused(&boxes(&[(b"ftyp", b""), (b"mdat", b"x")])), "it is no MP4: it has no index");
    let no_index = boxes(&[(b"ftyp", b""), (b"moov", b""), (b"mdat", b"x")]);
    assert_eq!(refused(&no_index), "it is no MP4: it has no index");
    for media in [&[][..], &boxes(&[(b"mdat", b"")]), b"\0\0\0\0mdat"] {
        let file = [&boxes(&[(b"ftyp", b""), (b"moov", b"x")])[..], media].concat();
        assert_eq!(refused(&file), "it is no MP4: it has no media");
    }
    assert_eq!(refused(&boxes(&[(b"moov", b""), (b"ftyp", b"x")])), "it is no MP4: it does not begin like one");
    assert_eq!(refused(b"\0\0\0\x07ftyp"), "it is no MP4: a box is smaller than its own head");
    let to_the_end = [&boxes(&[(b"ftyp", b""), (b"moov", b"x")])[..], b"\0\0\0\0mdat", &[9; 50]].concat();
    judge(&form, None, &to_the_end, 3).unwrap();
    let large = [&boxes(&[(b"ftyp", b""), (b"moov", b"x")])[..], b"\0\0\0\x01mdat\0\0\0\0\0\0\0\x14abcd"].concat();
    judge(&form, None, &large, 3).unwrap();
    assert_eq!(judge(&form, None, &large[..large.len() - 1], 3), Err(WrongReply::Mp4("it is cut short")));
}

proptest! {
    #[test]
    fn whole_files_pass_in_pieces_of_any_length(piece in 1usize..400) {
        judge(&png_form(), Some(picture().len() as u64), &picture(), piece).unwrap();
        judge(&png_form(), None, &picture(), piece).unwrap();
        judge(&Form::Mp4 { most: MOST }, None, &video(), piece).unwrap();
    }

    /// Also where the head announces the cut length.
    #[test]
    fn no_cut_picture_passes(cut in 0.0f64..1.0, piece in 1usize..400) {
        let file = picture();
        let cut = &file[..(file.len() as f64 * cut) as usize];
        prop_assert!(judge(&png_form(), None, cut, piece).is_err());
        prop_assert!(judge(&png_form(), Some(cut.len() as u64), cut, piece).is_err());
    }

    #[test]
    fn no_picture_with_a_flipped_bit_passes(at in 0.0f64..1.0, bit in 0u8..8, piece in 1usize..400) {
        let mut file = picture().to_vec();
        let at = (file.len() as f64 * at) as usize;
        file[at] ^= 1 << bit;
        prop_assert!(judge(&png_form(), None, &file, piece).is_err());
    }

    #[test]
    fn no_picture_with_something_behind_it_passes(more in prop::collection::vec(any::<u8>(), 1..20), piece in 1usize..400) {
        let file = [&picture()[..], &more].concat();
        prop_assert!(judge(&png_form(), None, &file, piece).is_err());
    }

    #[test]
    fn no_video_cut_before_its_index_passes(cut in 0usize..337) {
        let form = Form::Mp4 { most: MOST };
        prop_assert!(judge(&form, None, &video()[..cut], 64).is_err());
    }
}
