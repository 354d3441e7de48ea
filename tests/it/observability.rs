//! What is declared, documented, drawn and alerted on is one set of metrics: the catalogue. That each of them is recorded
//! too is shown by a running app, in `operations.rs`.
//!
//! Prometheus itself judges the syntax of queries (`deploy/check.sh`); it cannot know which metrics and labels there are.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use latentgate::{
    error::ErrorKind,
    metrics::{CATALOGUE, Declared, Kind, Metrics, Outcome},
};

/// What a scrape adds to every series, in the tests of the rules too.
const OF_THE_TARGET: [&str; 3] = ["job", "instance", "pod"];

const OUTCOMES: [Outcome; 6] =
    [Outcome::HitMemory, Outcome::HitDisk, Outcome::Derived, Outcome::Coalesced, Outcome::Computed, Outcome::Error];

/// Every file under a folder of `deploy/`.
fn deployed(folder: &str) -> Vec<(PathBuf, String)> {
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(folder)];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push((path.clone(), fs::read_to_string(path).unwrap()));
            }
        }
    }
    assert!(!files.is_empty());
    files
}

fn is_of_a_name(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || letter == '_' || letter == ':'
}

/// Words that are metrics of ours, or made of them by a rule, each with what follows it.
fn metrics(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let begins = text.match_indices("latentgate_").map(|(at, _)| at);
    begins.filter_map(move |at| {
        let start = text[..at].rfind(|letter| !is_of_a_name(letter)).map_or(0, |before| before + 1);
        let end = text[at..].find(|letter| !is_of_a_name(letter)).map_or(text.len(), |length| at + length);
        let word = &text[start..end];
        (start == at || word[..at - start].ends_with(':')).then_some((word, &text[end..]))
    })
}

/// The declared metric of a name, or of the series of a histogram.
fn declared(name: &str) -> Option<&'static Declared> {
    CATALOGUE.iter().find(|declared| {
        let series = name.strip_prefix(declared.name);
        let is_histogram = declared.kind == Kind::Histogram;
        matches!(series, Some("")) && !is_histogram
            || matches!(series, Some("" | "_bucket" | "_sum" | "_count")) && is_histogram
    })
}

/// Label and value of every matcher in `{...}`, if that is how the text begins.
fn matchers(text: &str) -> Vec<(&str, &str)> {
    let Some((inner, _)) = text.strip_prefix('{').and_then(|rest| rest.split_once('}')) else { return Vec::new() };
    let pairs = inner.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    let split = |pair: &'_ str| pair.find(['=', '!']).expect("a matcher");
    pairs
        .map(|pair| pair.split_at(split(pair)))
        .map(|(label, value)| (label.trim(), value.trim_matches(['=', '!', '~', '"'])))
        .collect()
}

/// Labels that are summed over or matched on.
fn grouped(text: &str) -> BTreeSet<&str> {
    let lists = ["by (", "without (", "ignoring (", "on ("]
        .into_iter()
        .flat_map(|word| text.match_indices(word).map(move |(at, _)| &text[at + word.len()..]));
    let lists = lists.filter_map(|rest| rest.split_once(')'));
    lists.flat_map(|(list, _)| list.split(',').map(str::trim)).filter(|label| !label.is_empty()).collect()
}

/// What is wrong with a query, or with a text that names metrics. `recorded` are the names that rules make.
fn faults(text: &str, recorded: &BTreeSet<&str>) -> Vec<String> {
    let mut faults = Vec::new();
    let mut known: BTreeSet<&str> = OF_THE_TARGET.into();
    for (name, rest) in metrics(text) {
        let mut own: BTreeSet<&str> = OF_THE_TARGET.into();
        if recorded.contains(name) {
            own.extend(CATALOGUE.iter().flat_map(|declared| declared.labels));
        } else if let Some(declared) = declared(name) {
            if declared.kind == Kind::Histogram && declared.name == name {
                faults.push(format!("{name} is a histogram: it has no series of that name"));
            }
            own.extend(declared.labels);
            own.extend((declared.kind == Kind::Histogram).then_some("le"));
        } else {
            faults.push(format!("{name} is not declared"));
        }
        for (label, value) in matchers(rest) {
            if !own.contains(label) {
                faults.push(format!("{name} has no label {label}"));
            }
            let is_known = |value: &str| match label {
                "outcome" => OUTCOMES.iter().any(|outcome| outcome.label() == value),
                "reason" if name.contains("errors") => ErrorKind::ALL.iter().any(|kind| kind.label() == value),
                _ => true,
            };
            faults.extend(value.split('|').filter(|value| !is_known(value)).map(|value| format!("no {label} {value}")));
        }
        known.extend(own);
    }
    faults.extend(grouped(text).difference(&known).map(|label| format!("nothing here has a label {label}")));
    faults
}

/// Every query of the dashboard, wherever it stands.
fn queries(value: &serde_json::Value, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            found.extend(fields.get("expr").and_then(|expr| expr.as_str()).map(str::to_owned));
            fields.values().for_each(|value| queries(value, found));
        }
        serde_json::Value::Array(values) => values.iter().for_each(|value| queries(value, found)),
        _ => {}
    }
}

#[test]
fn the_table_of_the_readme_is_the_catalogue() {
    let readme = include_str!("../../README.md");
    let found: Vec<_> = readme.lines().filter(|line| line.starts_with("| `latentgate_")).collect();
    let wanted = CATALOGUE.iter().map(|declared| {
        let kind = format!("{:?}", declared.kind).to_lowercase();
        format!("| `{}` | {kind} | {} | {} |", declared.name, declared.labels.join(", "), declared.help)
    });
    assert_eq!(found, wanted.collect::<Vec<_>>());
}

#[test]
fn the_dashboard_shows_every_metric_and_asks_for_nothing_else() {
    let text = include_str!("../../deploy/grafana/latentgate.json");
    let mut found = Vec::new();
    queries(&serde_json::from_str(text).unwrap(), &mut found);
    for query in &found {
        assert_eq!(faults(query, &BTreeSet::new()), [""; 0], "{query}");
    }
    let shown: BTreeSet<_> = found
        .iter()
        .flat_map(|query| metrics(query))
        .filter_map(|(name, _)| declared(name))
        .map(|declared| declared.name)
        .collect();
    let missing: Vec<_> = CATALOGUE.iter().map(|declared| declared.name).filter(|name| !shown.contains(name)).collect();
    assert_eq!(missing, [""; 0], "declared, and not on the dashboard");
    // Those of the process come from a crate, which may rename them.
    let rendered = Metrics::new().render();
    let words = found.iter().flat_map(|query| query.split(|letter| !is_of_a_name(letter)));
    for name in words.filter(|word| word.starts_with("process_")) {
        assert!(rendered.contains(&format!("# TYPE {name} ")), "{name} is not recorded");
    }
}

#[test]
fn rules_and_documents_name_metrics_and_labels_that_there_are_and_every_alert_is_explained() {
    let rules = deployed("prometheus/rules");
    let recorded: BTreeSet<_> = rules
        .iter()
        .flat_map(|(_, text)| text.lines())
        .filter_map(|line| line.trim().strip_prefix("- record: "))
        .collect();
    assert!(recorded.len() >= 6, "{recorded:?}");
    let tests = deployed("prometheus/tests");
    for (path, text) in rules.iter().chain(&tests) {
        // A rule, or a series, a piece: labels are looked for among those of the metrics beside them.
        for piece in text.split("\n      - ") {
            let piece: String =
                piece.lines().filter(|line| !line.trim().starts_with('#')).collect::<Vec<_>>().join("\n");
            assert_eq!(faults(&piece, &recorded), [""; 0], "{}: {piece}", path.display());
        }
    }
    let operations = include_str!("../../docs/OPERATIONS.md");
    let alerts =
        rules.iter().flat_map(|(_, text)| text.lines()).filter_map(|line| line.trim().strip_prefix("- alert: "));
    for alert in alerts {
        assert!(operations.contains(&format!("`{alert}`")), "{alert} is not explained in OPERATIONS");
    }
    let documents = [include_str!("../../README.md"), operations];
    for (name, _) in documents.iter().flat_map(|text| metrics(text)) {
        assert!(declared(name).is_some() || recorded.contains(name), "{name} is not declared");
    }
}

#[cfg(feature = "local")]
mod configuration {
    //! Configurations that stand in YAML, and variables of the environment, are read by the program's own parser.

    use std::{collections::BTreeMap, fs};

    use latentgate::{
        Config,
        config::{ConfigError, Overrides},
    };

    use super::deployed;

    /// The lines below `KEY: |`, as YAML reads them.
    fn blocks<'a>(text: &'a str, key: &str) -> Vec<String> {
        let indent = |line: &str| line.len() - line.trim_start().len();
        let lines: Vec<&'a str> = text.lines().collect();
        let heads = lines.iter().enumerate().filter(|(_, line)| line.trim() == format!("{key}: |"));
        let block = |(at, head): (usize, &&str)| {
            let inside = |line: &&&str| line.trim().is_empty() || indent(line) > indent(head);
            let body: Vec<_> = lines[at + 1..].iter().take_while(inside).collect();
            let margin = body.iter().filter(|line| !line.trim().is_empty()).map(|line| indent(line)).min().unwrap_or(0);
            body.iter().map(|line| line.get(margin..).unwrap_or("")).collect::<Vec<_>>().join("\n")
        };
        heads.map(block).collect()
    }

    /// `NAME: value`, `NAME=value`, or a name and, in the next line, its value.
    fn variables(text: &str) -> BTreeMap<String, String> {
        let lines: Vec<_> = text.lines().map(str::trim).collect();
        let named = lines.iter().enumerate().filter_map(|(at, line)| {
            let line = line.strip_prefix("- name: ").or_else(|| line.strip_prefix("ENV ")).unwrap_or(line);
            if !line.starts_with("LATENTGATE__") {
                return None;
            }
            let (name, value) = line
                .split_once(": ")
                .or_else(|| line.split_once('='))
                .or_else(|| Some((line, lines.get(at + 1)?.strip_prefix("value: ")?)))
                .unwrap_or_else(|| panic!("{line} has no value"));
            let value = value.trim_end_matches('\\').trim().trim_matches('\'').trim_matches('"');
            Some((name.to_owned(), value.to_owned()))
        });
        named.collect()
    }

    fn check(what: &str, text: &str) {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        match Config::load(Some(file.path()), &Overrides::default()) {
            Ok(_) => {}
            // Which devices there are is the build's to say.
            Err(ConfigError::Invalid(faults)) if faults.iter().all(|fault| fault.key == "engine.device") => {}
            Err(error) => panic!("{what}: {error}\n{text}"),
        }
    }

    #[test]
    fn what_is_deployed_is_configured_as_the_program_reads_it() {
        let (mut files, mut told) = (0, 0);
        for (path, text) in deployed("") {
            let what = path.display().to_string();
            let texts = match path.extension().and_then(|extension| extension.to_str()) {
                Some("toml") => vec![text.clone()],
                // Templates have no configuration of their own, but a place for the values'.
                Some("yaml") if !what.contains("templates") => {
                    ["latentgate.toml", "config"].into_iter().flat_map(|key| blocks(&text, key)).collect()
                }
                _ => Vec::new(),
            };
            texts.iter().for_each(|text| check(&what, text));
            files += texts.len();
            for (name, value) in variables(&text) {
                let key = name.trim_start_matches("LATENTGATE__").to_lowercase().replace("__", ".");
                let is_toml =
                    value.parse::<f64>().is_ok() || value == "true" || value == "false" || value.starts_with('[');
                let value = if is_toml { value } else { format!("{value:?}") };
                check(&format!("{what}: {name}"), &format!("{key} = {value}\n"));
                told += 1;
            }
        }
        // Of the example and the unit; two ConfigMaps; the chart's values.
        assert!(files >= 5 && told >= 8, "{files} configurations and {told} variables");
    }
}
