//! Host names that stand for a model and a task.
//!
//! The protocol's endpoints are one host each, and some clients have the names wired in: a hosts file and a certificate
//! bring them here, and the name says what they want (docs/HOSTS.md). The public names are built in; more by config.

use std::{collections::BTreeMap, fmt, str::FromStr};

use axum::body::Body;
use http::{Request, Uri, header};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::{ModelId, ModelTable, Task};

/// What a host name stands for: in the configuration `decode/sd-v1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// What is asked.
    pub task: Task,
    /// Of which model.
    pub model: ModelId,
}

/// The names, in lower case and without a port.
#[derive(Clone, Debug, Default)]
pub struct Hosts(BTreeMap<String, Target>);

// === impl Target ===

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = || format!("wanted decode/MODEL or encode/MODEL, got {text:?}");
        let (task, model) = text.split_once('/').ok_or_else(wanted)?;
        let task = Task::ALL.into_iter().find(|known| known.label() == task).ok_or_else(wanted)?;
        Ok(Self { task, model: ModelId::try_new(model).ok_or_else(wanted)? })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.task.label(), self.model)
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

// === impl Hosts ===

impl Hosts {
    /// The public endpoints' names, and `more` over them.
    pub fn new(more: &BTreeMap<String, Target>) -> Self {
        let mut names = BTreeMap::new();
        for model in ModelTable::known().iter() {
            for task in Task::ALL {
                let hosts = model.endpoints(task).iter().filter_map(|url| url.parse::<Uri>().ok()?.host().map(normal));
                names.extend(hosts.map(|host| (host, Target { task, model: model.id.clone() })));
            }
        }
        names.extend(more.iter().map(|(host, target)| (normal(host), target.clone())));
        Self(names)
    }

    /// What a request's host name stands for, if anything. HTTP/2 says it in the URI, HTTP/1.1 in a header.
    pub(super) fn target(&self, request: &Request<Body>) -> Option<&Target> {
        let mut names = request.headers().get_all(header::HOST).into_iter();
        // Two names are none.
        let only = names.next().filter(|_| names.next().is_none());
        let header = || only?.to_str().ok()?.parse::<Uri>().ok()?.host().map(normal);
        let host = request.uri().host().map(normal).or_else(header)?;
        self.0.get(&host)
    }
}

/// A name as it is compared: lower case, without the root's dot.
fn normal(host: &str) -> String {
    host.trim_end_matches('.').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(host: &str) -> Option<String> {
        let more = BTreeMap::from([("VAE.example".to_owned(), "encode/builtin".parse().unwrap())]);
        let request = Request::post("/").header(header::HOST, host).body(Body::empty()).unwrap();
        Hosts::new(&more).target(&request).map(ToString::to_string)
    }

    #[test]
    fn a_name_stands_for_a_model_and_a_task() {
        let public = "q1bj3bpq6kzilnsu.us-east-1.aws.endpoints.huggingface.cloud";
        for (host, target) in [
            (public, Some("decode/sd-v1")),
            ("PTCCX55JZ97F9ZGO.us-east-1.aws.endpoints.huggingface.cloud.:443", Some("encode/flux")),
            ("vae.example:8790", Some("encode/builtin")),
            ("example", None),
            ("127.0.0.1:8790", None),
            ("[::1]:8790", None),
            ("not a host", None),
            ("", None),
        ] {
            assert_eq!(asked(host).as_deref(), target, "{host}");
        }
    }

    #[test]
    fn http_2_says_the_name_in_the_uri() {
        let uri = "https://o7ywnmrahorts457.us-east-1.aws.endpoints.huggingface.cloud/predict";
        let request = Request::post(uri).body(Body::empty()).unwrap();
        let hosts = Hosts::new(&BTreeMap::new());
        assert_eq!(hosts.target(&request).map(ToString::to_string).as_deref(), Some("decode/hunyuan-video"));
    }

    #[test]
    fn a_target_is_a_path() {
        for text in ["", "decode", "paint/flux", "decode/", "decode/a b", "/flux"] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }
}
