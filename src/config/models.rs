//! Models in the configuration: changes to known ones, and new ones.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize};

use super::{Config, Fault};
use crate::model::{Family, ModelId, ModelSpec, ModelTable, Task, WeightsSource};

/// One `[models.NAME]` section. Everything left out stays as it is known, or comes from the checkpoint's `config.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// A diffusers directory or a single `.safetensors` file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<PathBuf>,
    /// Part of the content key. Default: `main` for known weights, a fingerprint for weights named here.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "text")]
    pub revision: Option<String>,
    /// Overrides the checkpoint's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scaling_factor: Option<f32>,
    /// Overrides the checkpoint's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shift_factor: Option<f32>,
    /// Load it before the first request; readiness waits for it.
    pub preload: bool,
}

impl Config {
    /// The known models with the configured ones on top. Checkpoints have not been looked at yet.
    pub(super) fn check_models(&self, faults: &mut Vec<Fault>) {
        let known = ModelTable::known();
        for (name, model) in &self.models {
            let mut fault = |key: &str, value: String, remedy: &str| {
                let key = [&format!("models.{name}"), key].join(".").trim_end_matches('.').to_owned();
                faults.push(Fault { key, value, remedy: remedy.to_owned() });
            };
            if ModelId::try_new(name).is_none() {
                fault("", name.clone(), "a model name has 1 to 64 letters, digits, '-', '_', '.'");
            }
            if model.weights.is_none() && known.get(name).is_none() {
                fault("weights", "absent".to_owned(), "a model that is not known by name needs weights");
            }
            if let Some(path) = model.weights.as_ref().filter(|path| !path.exists()) {
                fault("weights", path.display().to_string(), "no such file or directory");
            }
            if let Some(factor) = model.scaling_factor.filter(|factor| !factor.is_normal()) {
                fault("scaling_factor", factor.to_string(), "wanted a finite number, not 0");
            }
            if let Some(shift) = model.shift_factor.filter(|shift| !shift.is_finite()) {
                fault("shift_factor", shift.to_string(), "wanted a finite number");
            }
        }
    }

    /// The known models with the configured ones on top. Numbers of checkpoints are not in yet: `app.rs` reads those.
    pub fn model_table(&self) -> ModelTable {
        let mut table = ModelTable::known();
        for (name, config) in &self.models {
            let Some(id) = ModelId::try_new(name) else { continue };
            let base = table.get(name).map_or_else(|| blank(id), |known| (**known).clone());
            table.insert(config.applied_to(base));
        }
        table
    }
}

impl ModelConfig {
    fn applied_to(&self, mut spec: ModelSpec) -> ModelSpec {
        if let Some(path) = &self.weights {
            spec.weights = WeightsSource::Path(path.clone());
        }
        if let Some(revision) = &self.revision {
            spec.revision.clone_from(revision);
        }
        spec.scaling.factor = self.scaling_factor.unwrap_or(spec.scaling.factor);
        spec.scaling.shift = self.shift_factor.unwrap_or(spec.scaling.shift);
        spec
    }
}

/// Text, also where the source made a number of it: an environment variable of digits alone.
fn text<'de, D: Deserializer<'de>>(source: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Text {
        Text(String),
        Number(u64),
    }
    Ok(Option::<Text>::deserialize(source)?.map(|text| match text {
        Text::Text(text) => text,
        Text::Number(number) => number.to_string(),
    }))
}

/// A model that nothing is known of: its checkpoint tells.
fn blank(id: ModelId) -> ModelSpec {
    ModelSpec {
        id,
        family: Family::AutoencoderKl,
        latent_channels: 4,
        spatial_scale: 8,
        scaling: Family::AutoencoderKl.default_scaling(),
        tasks: vec![Task::Decode, Task::Encode],
        revision: String::new(),
        preview: None,
        weights: WeightsSource::Unset,
    }
}
