use super::*;

const ALL: [Output; 8] = [
    Output::Tensor(DType::F32),
    Output::Tensor(DType::F16),
    Output::Tensor(DType::BF16),
    Output::Unit,
    Output::Uint8,
    Output::Png,
    Output::Jpeg(80),
    Output::Webp,
];

/// Decoder output with values on both sides of every rounding, and beyond -1..1.
fn numbers() -> Tensor {
    let data: Vec<u8> = (0..3 * 16 * 24).flat_map(|i| ((i as f32 * 0.37).sin() * 1.3).to_le_bytes()).collect();
    Tensor::try_new(DType::F32, Shape::try_new(&[1, 3, 16, 24]).unwrap(), data.into()).unwrap()
}

#[test]
fn what_is_derived_is_bit_for_bit_what_a_run_makes() {
    let numbers = numbers();
    for to in ALL {
        let direct = to.of_decoded(&numbers).unwrap();
        for &from in to.sources() {
            let source = from.of_decoded(&numbers).unwrap();
            let derived = to.derive(from, (source.dtype, source.shape), &source.bytes).unwrap();
            assert_eq!(derived.bytes, direct.bytes, "{to:?} of {from:?}");
            assert_eq!((derived.dtype, derived.shape), (direct.dtype, direct.shape.clone()), "{to:?} of {from:?}");
        }
    }
}

#[test]
fn nothing_is_made_of_what_has_lost_more() {
    let numbers = numbers();
    for to in ALL {
        assert!(!to.sources().contains(&to));
        for from in ALL.into_iter().filter(|from| *from != to && !to.sources().contains(from)) {
            let source = from.of_decoded(&numbers).unwrap();
            assert!(to.derive(from, (source.dtype, source.shape), &source.bytes).is_err(), "{to:?} of {from:?}");
        }
    }
}

#[test]
fn a_source_that_is_not_what_it_says_is_an_error() {
    let shape = || Shape::try_new(&[1, 16, 24, 3]).unwrap();
    let f16s = Bytes::from(vec![0u8; 3 * 16 * 24 * 2 - 1]);
    let planar = Shape::try_new(&[1, 3, 16, 24]).unwrap();
    let f16_source = Output::Tensor(DType::F16);
    assert!(Output::Png.derive(f16_source, (DType::F16, planar), &f16s).is_err());
    assert!(Output::Png.derive(Output::Uint8, (DType::U8, shape()), &Bytes::from_static(b"short")).is_err());
    assert!(Output::Jpeg(75).derive(Output::Png, (DType::U8, shape()), &Bytes::from_static(b"no file")).is_err());
}

#[test]
fn a_number_that_a_form_cannot_hold_makes_no_such_form() {
    let data: Vec<u8> = [70_000f32, 1.0, -1.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let wide = Tensor::try_new(DType::F32, Shape::try_new(&[1, 3, 1, 1]).unwrap(), data.into()).unwrap();
    assert!(Output::Tensor(DType::BF16).of_decoded(&wide).is_ok());
    for to in [Output::Tensor(DType::F16), Output::Unit, Output::Uint8, Output::Png] {
        assert!(matches!(to.of_decoded(&wide), Err(RenditionError::TooLarge(DType::F16))), "{to:?}");
    }
}
