//! Licences and sources of everything that is built, as `deny.toml` allows them; cargo-deny, where it is installed, judges
//! these and advisories too.

use std::{collections::BTreeSet, process::Command};

use serde_json::Value;

/// Every package of this platform's build; none, and plainly said, where cargo cannot tell without a network.
fn packages() -> Option<Vec<Value>> {
    let arguments = ["metadata", "--locked", "--offline", "--format-version", "1", "--filter-platform", HOST];
    let output = Command::new(env!("CARGO")).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    if !output.status.success() {
        println!("dependencies: NOT RUN, cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
        return None;
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    Some(metadata["packages"].as_array().unwrap().clone())
}

const HOST: &str = if cfg!(target_arch = "aarch64") { "aarch64-unknown-linux-gnu" } else { "x86_64-unknown-linux-gnu" };

fn rules() -> toml::Table {
    include_str!("../../deny.toml").parse().unwrap()
}

fn texts(table: &toml::Value) -> BTreeSet<String> {
    table.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

/// Whether an SPDX expression can be met with the allowed licences. `/` is how OR was written once. Of what stands in
/// parentheses there is no deeper one.
fn is_met(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let (mut words, mut depth) = (vec![String::new()], 0);
    for c in expression.replace('/', " OR ").chars() {
        depth += i32::from(c == '(') - i32::from(c == ')');
        match c {
            '(' | ')' => {}
            ' ' if depth == 0 => words.push(String::new()),
            _ => words.last_mut().unwrap().push(c),
        }
    }
    let words: Vec<_> = words.into_iter().filter(|word| !word.is_empty()).collect();
    let is_all_met = |words: &[String]| {
        words.split(|word| word == "AND").all(|licence| {
            let licence = licence.join(" ");
            allowed.contains(&licence) || (licence.contains(" OR ") && is_met(&licence, allowed))
        })
    };
    words.split(|word| word == "OR").any(is_all_met)
}

#[test]
fn expressions_are_read_as_spdx_means_them() {
    let allowed = BTreeSet::from(["MIT", "Zlib", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned));
    for met in [
        "MIT",
        "GPL-3.0 OR MIT",
        "GPL-3.0/MIT",
        "MIT AND Zlib",
        "(MIT OR GPL-3.0) AND Zlib",
        "Apache-2.0 WITH LLVM-exception",
    ] {
        assert!(is_met(met, &allowed), "{met}");
    }
    for other in ["GPL-3.0", "MIT AND GPL-3.0", "(GPL-2.0 OR GPL-3.0) AND MIT", "Apache-2.0", ""] {
        assert!(!is_met(other, &allowed), "{other}");
    }
}

#[test]
fn all_that_is_built_has_an_allowed_licence_and_source() {
    let Some(packages) = packages() else { return };
    let rules = rules();
    let licences = texts(&rules["licenses"]["allow"]);
    let sources = texts(&rules["sources"]["allow-registry"]);
    let banned = rules["bans"]["deny"].as_array().unwrap().iter().map(|ban| ban["crate"].as_str().unwrap());
    let banned: BTreeSet<_> = banned.collect();
    let mut wrong = Vec::new();
    for package in &packages {
        let (name, licence) = (package["name"].as_str().unwrap(), package["license"].as_str().unwrap_or_default());
        if !is_met(licence, &licences) {
            wrong.push(format!("{name}: licence {licence:?}"));
        }
        if banned.contains(name) {
            wrong.push(format!("{name}: banned"));
        }
        // This package itself has no source.
        let Some(source) = package["source"].as_str() else { continue };
        if !source.strip_prefix("registry+").is_some_and(|registry| sources.contains(registry)) {
            wrong.push(format!("{name}: from {source}"));
        }
    }
    assert!(packages.len() > 100 && wrong.is_empty(), "{} packages:\n{}", packages.len(), wrong.join("\n"));
}
