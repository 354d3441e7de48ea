//! `latentgate bench engine`, as a person or a script runs it.

use std::process::Output;

use serde_json::Value;

use crate::support::program::latentgate;

fn run(arguments: &[&str]) -> Output {
    latentgate().args(["bench", "engine"]).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn fixture(name: &str) -> String {
    format!("{}/tests/fixtures/models/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// The one object of a size, whose numbers are such as they can be.
fn measured(line: &str) -> Value {
    let found: Value = serde_json::from_str(line).unwrap();
    let number = |key: &str| found[key].as_f64().unwrap_or_else(|| panic!("{key} is not in {line}"));
    for key in ["wall_first_seconds", "wall_median_seconds", "wall_min_seconds", "load_seconds"] {
        assert!(number(key) > 0.0 && number(key) < 60.0, "{key} in {line}");
    }
    for key in ["cpu_first_seconds", "cpu_median_seconds", "cpu_min_seconds"] {
        assert!(number(key) > 0.0 && number(key) < 60.0, "{key} in {line}");
    }
    assert!(number("wall_min_seconds") <= number("wall_median_seconds"), "{line}");
    assert!(number("cpu_min_seconds") <= number("cpu_median_seconds"), "{line}");
    let pixels = number("batch") * number("width") * number("height");
    let speed = pixels / 1e6 / number("wall_median_seconds");
    assert!((number("megapixels_per_second") / speed - 1.0).abs() < 1e-6, "{line}");
    if cfg!(target_os = "linux") {
        assert!(number("memory_before_bytes") > 1e6, "{line}");
        assert!(number("memory_peak_bytes") >= number("memory_before_bytes"), "{line}");
        assert!(number("memory_foretold_bytes") > pixels * 12.0 && number("vector_lanes") >= 1.0, "{line}");
        // Its answer alone is three floats a pixel.
        let encodes = found["task"] == "encode";
        assert!(
            number("memory_peak_bytes") < 2e9 && (encodes || number("memory_peak_bytes") > pixels * 12.0),
            "{line}"
        );
    }
    found
}

#[test]
fn the_builtin_model_is_measured() {
    let output = run(&["builtin", "--size", "64", "--runs", "1", "--threads", "1", "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let (said, beside) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(said.lines().count(), 1, "{said}");
    let found = measured(&said);
    for (key, wanted) in
        [("model", "builtin"), ("class_name", "AutoencoderTiny"), ("task", "decode"), ("device", "cpu")]
    {
        assert_eq!(found[key], wanted);
    }
    for (key, wanted) in [("width", 64), ("height", 64), ("runs", 1), ("threads", 1)] {
        assert_eq!(found[key], wanted);
    }
    assert!(found["processor"].is_string() && found["cpu_features"].is_array(), "{said}");
    // One of its runs is the median and the shortest.
    assert_eq!(found["wall_min_seconds"], found["wall_median_seconds"]);
    assert!(beside.contains("first run") && beside.contains("run 1 of 1"), "{beside}");
}

#[test]
fn directories_files_and_several_sizes_are_measured() {
    let folder = fixture("sd1");
    let output =
        run(&[&folder, "--task", "encode", "--size", "64,32x48", "--runs", "2", "--precision", "bf16", "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let sizes: Vec<Value> = text(&output.stdout).lines().map(measured).collect();
    let sides = |it: &Value| (it["width"].as_u64().unwrap(), it["height"].as_u64().unwrap());
    assert_eq!(sizes.iter().map(sides).collect::<Vec<_>>(), [(64, 64), (32, 48)]);
    assert!(sizes.iter().all(|it| it["class_name"] == "AutoencoderKL" && it["precision"] == "bf16"), "{sizes:?}");

    let file = format!("{}/diffusion_pytorch_model.safetensors", fixture("taesd"));
    let output = run(&[&file, "--size", "64", "--runs", "1"]);
    let said = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(said.lines().any(|line| line.starts_with("SIZE ")), "{said}");
    assert!(said.lines().last().unwrap().starts_with("64x64 "), "{said}");
}

#[test]
fn batches_are_measured_and_the_answer_is_kept_where_it_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kept.safetensors");
    let kept = file.to_str().unwrap();
    let output =
        run(&[&fixture("taesd"), "--size", "64x32", "--runs", "1", "--batch", "3", "--answer", "f16", "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let found: Value = serde_json::from_str(&text(&output.stdout)).unwrap();
    let pixels = 3.0 * 64.0 * 32.0 / 1e6;
    let speed = found["megapixels_per_second"].as_f64().unwrap() * found["wall_median_seconds"].as_f64().unwrap();
    assert!(found["batch"] == 3 && (speed / pixels - 1.0).abs() < 1e-6, "{found}");

    let output = run(&[&fixture("taesd"), "--size", "64x32", "--runs", "1", "--batch", "2", "--save", kept]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let bytes = std::fs::read(&file).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.tensor("input").unwrap().shape(), [2, 4, 4, 8]);
    let answer = tensors.tensor("answer").unwrap();
    assert_eq!((answer.dtype(), answer.shape()), (safetensors::Dtype::F32, &[2, 3, 32, 64][..]));
}

#[test]
fn bands_are_held_to_a_whole_run() {
    let foretold = |memory: &str| {
        let flags = ["--size", "512", "--runs", "1", "--threads", "2", "--json", "--whole", "--memory", memory];
        let output = run(&[&["builtin"], &flags[..]].concat());
        // The builtin network has no norm, and so no moments to round.
        let told = text(&output.stderr);
        assert!(output.status.success() && told.contains("the same bits as a whole run's"), "{told}");
        let found: Value = serde_json::from_str(&text(&output.stdout)).unwrap();
        found["memory_foretold_bytes"].as_u64().unwrap()
    };
    let (whole, bands) = (foretold("1GiB"), foretold("90MiB"));
    assert!(bands < 90 << 20 && whole > 100 << 20, "{bands} of {whole}");
}

#[test]
fn what_cannot_be_measured_is_told_with_a_remedy() {
    let bare = tempfile::tempdir().unwrap();
    let alone = bare.path().join("alone.safetensors");
    std::fs::copy(format!("{}/diffusion_pytorch_model.safetensors", fixture("taesd")), &alone).unwrap();
    let alone = alone.to_str().unwrap();
    for (arguments, code, wanted) in [
        (vec!["nowhere"], 1, "`latentgate config print`"),
        (vec!["builtin", "--size", "60"], 1, "multiples of 8"),
        (vec!["builtin", "--size", "64,big"], 2, "WIDTHxHEIGHT"),
        (vec!["builtin", "--runs", "0"], 2, "1..=1000"),
        (vec!["builtin", "--size", "64,128", "--save", "nowhere"], 1, "--save takes one"),
        (vec!["builtin", "--size", "64", "--answer", "uint8"], 1, "the engine failed"),
        (vec!["builtin", "--size", "64", "--answer", "f16", "--whole"], 2, "cannot be used with"),
        (vec!["builtin", "--like", "flux"], 1, "--like is for files"),
        (vec![alone, "--size", "64"], 1, "--like names another"),
        (vec![alone, "--like", "nobody"], 1, "no model is known"),
    ] {
        let output = run(&arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        let told = text(&output.stderr);
        assert!(told.contains(wanted), "{arguments:?}: {told}");
    }
}
