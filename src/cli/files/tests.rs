use super::*;
use crate::tensor::{DType, Shape};

fn tensor(dtype: DType, dims: &[usize]) -> Tensor {
    let shape = Shape::try_new(dims).unwrap();
    let data: Vec<u8> = (0..shape.bytes(dtype)).map(|i| (i % 60) as u8).collect();
    Tensor::try_new(dtype, shape, data.into()).unwrap()
}

fn saved(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    write(&path, bytes).unwrap();
    path
}

fn refusal(path: &Path, tensor: Option<&str>) -> String {
    format!("{:#}", read(path, tensor).unwrap_err())
}

#[test]
fn tensors_come_back_from_files_as_they_went() {
    let folder = tempfile::tempdir().unwrap();
    for format in [Format::Safetensors, Format::Npy] {
        for dtype in [DType::F32, DType::F16, DType::BF16, DType::U8] {
            if (format, dtype) == (Format::Npy, DType::BF16) {
                continue;
            }
            let tensor = tensor(dtype, &[1, 4, 3, 5]);
            let path = saved(folder.path(), &format!("{dtype}{format}"), &format.file_of("latents", &tensor).unwrap());
            assert_eq!(read(&path, None).unwrap(), Input::Tensor(tensor), "{dtype} {format}");
        }
    }
}

#[test]
fn numpy_has_no_bf16_and_the_refusal_says_what_to_do() {
    let error = Format::Npy.file_of("latents", &tensor(DType::BF16, &[2])).unwrap_err().to_string();
    assert_eq!(error, "NumPy has no bf16; wanted --dtype f32 or f16, or a .safetensors file");
}

#[test]
fn a_numpy_array_is_read_from_the_bytes_that_numpy_writes() {
    // numpy.save("a.npy", numpy.array([[1, 2, 3]], dtype="<f4")) of NumPy 2: header padded to 128 bytes.
    let mut file = b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3), }".to_vec();
    file.resize(127, b' ');
    file.push(b'\n');
    file.extend([1f32, 2.0, 3.0].iter().flat_map(|v| v.to_le_bytes()));
    let array = npy::read(&file.clone().into()).unwrap();
    assert_eq!(format!("{array:?}"), "Tensor(float32 [1,3])");
    assert_eq!(array.data()[4..8], 2f32.to_le_bytes());

    let cut = npy::read(&file[..file.len() - 1].to_vec().into()).unwrap_err();
    assert_eq!(format!("{cut:#}"), "the array: float32 [1,3] needs 12 bytes, got 11");
}

#[test]
fn arrays_that_would_be_misread_are_refused_with_the_cure() {
    let header = |text: &str| {
        let mut file = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
        file.extend_from_slice(text.as_bytes());
        file.resize(127, b' ');
        file.push(b'\n');
        file.extend([0; 64]);
        format!("{:#}", npy::read(&file.into()).unwrap_err())
    };
    let double = header("{'descr': '<f8', 'fortran_order': False, 'shape': (2, 4), }");
    assert!(double.contains("<f8") && double.contains("astype(\"float32\")"), "{double}");
    let big = header("{'descr': '>f4', 'fortran_order': False, 'shape': (4, 4), }");
    assert!(big.contains(">f4"), "{big}");
    let columns = header("{'descr': '<f4', 'fortran_order': True, 'shape': (4, 4), }");
    assert!(columns.contains("ascontiguousarray"), "{columns}");
}

#[test]
fn the_tensor_is_the_only_one_or_the_usual_one_or_the_named_one() {
    use ::safetensors::{Dtype, tensor::TensorView};
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, names: &[&str]| {
        let data = [[0u8; 4], [1; 4]];
        let views = names
            .iter()
            .enumerate()
            .map(|(i, name)| (*name, TensorView::new(Dtype::F32, vec![1], &data[i % 2]).unwrap()));
        saved(folder.path(), name, &::safetensors::serialize(views, None).unwrap())
    };
    let bytes = |path: &Path, name| match read(path, name).unwrap() {
        Input::Tensor(tensor) => tensor.data()[0],
        Input::Picture(_) => panic!("a picture"),
    };
    assert_eq!(bytes(&file("one.safetensors", &["whatever"]), None), 0);
    let usual = file("usual.safetensors", &["aaa", "samples"]);
    assert_eq!(bytes(&usual, None), 1);
    assert_eq!(bytes(&usual, Some("aaa")), 0);
    let unclear = file("unclear.safetensors", &["b", "a"]);
    assert!(refusal(&unclear, None).ends_with(r#"which tensor? --tensor NAME chooses; there are "a", "b""#));
    assert!(refusal(&unclear, Some("c")).ends_with(r#"there is no tensor "c"; there are "a", "b""#));
}

#[test]
fn what_is_no_file_of_its_name_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let unknown = refusal(Path::new("latents.pt"), None);
    assert!(unknown.contains("latents.pt") && unknown.contains(".safetensors") && unknown.contains(".webp"));
    assert!(refusal(&folder.path().join("absent.npy"), None).contains("cannot be read"));
    let junk = saved(folder.path(), "junk.safetensors", b"junk");
    assert!(refusal(&junk, None).contains("not a .safetensors file"));
    let junk = saved(folder.path(), "junk.npy", b"junk");
    assert!(refusal(&junk, None).contains("not a .npy file"));
    assert!(refusal(&junk, Some("latents")).contains("leave --tensor out"));
}

#[test]
fn pictures_are_sent_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a.png", "a.JPG", "a.jpeg", "a.webp"] {
        let path = saved(folder.path(), name, b"any bytes");
        assert_eq!(read(&path, None).unwrap(), Input::Picture(Bytes::from_static(b"any bytes")), "{name}");
    }
}

#[test]
fn a_file_is_replaced_whole_and_nothing_else_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let path = saved(folder.path(), "a.png", b"old");
    write(&path, b"new").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);

    // Renaming onto a folder that is not empty fails, and the partial file goes.
    let taken = folder.path().join("taken.png");
    fs::create_dir_all(taken.join("inside")).unwrap();
    assert!(write(&taken, b"x").is_err());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    assert!(check_place(&taken).unwrap_err().to_string().contains("is a folder"));
    let nowhere = check_place(&folder.path().join("no/where.png")).unwrap_err().to_string();
    assert!(nowhere.contains("create it first"), "{nowhere}");
}
