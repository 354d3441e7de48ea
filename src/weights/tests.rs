use super::*;
use crate::model::{Family, ModelTable};

fn spec(name: &str) -> ModelSpec {
    (**ModelTable::known().get(name).unwrap()).clone()
}

/// A safetensors file of one-element tensors.
fn safetensors(names: &[&str]) -> Vec<u8> {
    let entry = |(at, name): (usize, &&str)| {
        format!(r#""{name}":{{"dtype":"F32","shape":[1],"data_offsets":[{},{}]}}"#, at * 4, at * 4 + 4)
    };
    let header = format!("{{{}}}", names.iter().enumerate().map(entry).collect::<Vec<_>>().join(","));
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; 4 * names.len()]].concat()
}

fn at(path: &Path) -> ModelSpec {
    ModelSpec { weights: WeightsSource::Path(path.to_owned()), ..spec("sd-v1") }
}

#[test]
fn the_builtin_model_is_always_there() {
    let found = find(&spec("builtin"), None).unwrap();
    assert_eq!((found.numbers.family, found.numbers.latent_channels), (Family::AutoencoderTiny, 4));
    assert_eq!(found.tasks, [Task::Decode, Task::Encode]);
    assert!(found.read().unwrap().len() <= 2_500_000, "the binary stays small");
}

#[test]
fn a_bare_file_has_the_numbers_of_its_model() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vae.safetensors");
    fs::write(&file, safetensors(&["decoder.conv_in.weight", "post_quant_conv.weight"])).unwrap();
    let found = find(&at(&file), None).unwrap();
    assert_eq!((found.numbers.scaling_factor, found.numbers.shift_factor), (Some(0.18215), Some(0.0)));
    assert_eq!(found.tasks, [Task::Decode], "no encoder tensor, no encode");
    let config: serde_json::Value = serde_json::from_str(&found.config).unwrap();
    assert_eq!((&config["use_post_quant_conv"], &config["use_quant_conv"]), (&true.into(), &false.into()));
}

#[test]
fn another_file_is_another_fingerprint() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vae.safetensors");
    fs::write(&file, safetensors(&["decoder.a"])).unwrap();
    let one = find(&at(&file), None).unwrap().fingerprint;
    fs::write(&file, safetensors(&["decoder.b"])).unwrap();
    assert_ne!(one, find(&at(&file), None).unwrap().fingerprint);
}

#[test]
fn a_repository_is_found_in_the_hub_cache() {
    let cache = tempfile::tempdir().unwrap();
    let repo = cache.path().join("models--black-forest-labs--FLUX.1-schnell");
    let vae = repo.join("snapshots/abc123/vae");
    fs::create_dir_all(&vae).unwrap();
    fs::create_dir_all(repo.join("refs")).unwrap();
    fs::write(repo.join("refs/main"), "abc123\n").unwrap();
    fs::write(vae.join("diffusion_pytorch_model.safetensors"), safetensors(&["decoder.a", "encoder.a"])).unwrap();
    let text = r#"{"_class_name":"AutoencoderKL","latent_channels":16,"scaling_factor":0.3611,"shift_factor":0.1159,
        "block_out_channels":[128,256,512,512]}"#;
    fs::write(vae.join("config.json"), text).unwrap();
    let found = find(&spec("flux"), Some(cache.path())).unwrap();
    assert_eq!((found.numbers.latent_channels, found.numbers.scaling_factor), (16, Some(0.3611)));
    let absent = find(&spec("sd-xl"), Some(cache.path())).unwrap_err().to_string();
    assert!(absent.contains("models.sd-xl.weights") && absent.contains("madebyollin/sdxl-vae-fp16-fix"), "{absent}");
}

#[test]
fn other_scales_are_refused_and_absent_factors_stay_absent() {
    let kl = |widths: &str| {
        Numbers::parse(&format!(
            r#"{{"_class_name":"AutoencoderKL","latent_channels":4,"block_out_channels":{widths}}}"#
        ))
    };
    let published = kl("[128,256,512,512]").unwrap();
    assert_eq!((published.scaling_factor, published.shift_factor), (None, None));
    for widths in ["[128,256]", "[1,1,1,1,1]", "[]"] {
        assert!(kl(widths).unwrap_err().contains("pixels a latent"), "{widths}");
    }
}

#[test]
fn what_is_not_weights_is_told_by_path_and_reason() {
    let folder = tempfile::tempdir().unwrap();
    let empty = find(&at(folder.path()), None).unwrap_err().to_string();
    assert!(empty.contains("diffusion_pytorch_model.safetensors"), "{empty}");
    let file = folder.path().join("x.safetensors");
    for (bytes, what) in [
        (&b"abc"[..], "x.safetensors"),
        (b"\xff\xff\xff\xff\xff\xff\xff\x7f{}", "header claims"),
        (b"\x02\0\0\0\0\0\0\0{]", "not a safetensors file"),
    ] {
        fs::write(&file, bytes).unwrap();
        let error = find(&at(&file), None).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
    fs::write(&file, safetensors(&["other.a"])).unwrap();
    assert!(find(&at(&file), None).unwrap_err().to_string().contains("decoder.*"));
    fs::write(&file, safetensors(&["decoder.a"])).unwrap();
    fs::write(folder.path().join("config.json"), r#"{"_class_name":"UNet","latent_channels":4}"#).unwrap();
    assert!(find(&at(&file), None).unwrap_err().to_string().contains("UNet"));
}
