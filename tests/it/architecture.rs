//! Floors: a module imports lower floors and its own room only; on floor 0, only modules listed above it in `lib.rs`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Floor 0 in its order, then the floors above it; what one line names may not import each other, but on floor 5.
const GROUND: [&str; 21] = [
    "error", "metrics", "deadline", "trace", "logs", "hops", "progress", "task", "tensor", "float", "latents",
    "picture", "render", "preview", "model", "job", "key", "meta", "body", "artifact", "hf",
];
const FLOORS: [&[&str]; 5] = [
    &["backend", "cache", "weights"],
    &["admission", "clients", "flight", "route"],
    &["inventory", "pipeline"],
    &["front"],
    &["app", "cli", "config", "main", "telemetry"],
];
/// Generated from the proto; its users are named below.
const GENERATED: &str = "proto";

/// Files longer than this are refused, tests not counted (STYLE: above 400 is a reason to split).
const MAX_LINES: usize = 400;

fn height(room: &str) -> usize {
    if let Some(at) = GROUND.iter().position(|&name| name == room) {
        return at;
    }
    let floor = FLOORS.iter().position(|floor| floor.contains(&room));
    GROUND.len() + floor.unwrap_or_else(|| panic!("{room} stands on no floor: add it to the layout and to this list"))
}

fn sources() -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push((path.clone(), fs::read_to_string(path).unwrap()));
            }
        }
    }
    let mut found = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    found
}

/// The room of a file: its first path component under `src`.
fn room(path: &Path) -> String {
    let under = path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap();
    under.iter().next().unwrap().to_string_lossy().trim_end_matches(".rs").to_owned()
}

/// Source without its unit tests, which stand last and may look around.
fn shipped(path: &Path, text: &str) -> String {
    if path.file_name().is_some_and(|name| name == "tests.rs") {
        return String::new();
    }
    text.split("#[cfg(test)]\nmod tests").next().unwrap().to_owned()
}

/// Rooms that a text names behind `crate::`, nested imports included.
fn imports(text: &str) -> Vec<String> {
    let mut rooms = Vec::new();
    let code: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if let Some(list) = rest.strip_prefix('{') {
            rooms.extend(top_level_names(list));
        } else {
            rooms.push(rest.chars().take_while(|&c| c.is_alphanumeric() || c == '_').collect());
        }
    }
    rooms
}

/// First names of the comma-separated paths of a `{...}` list.
fn top_level_names(list: &str) -> Vec<String> {
    let (mut names, mut depth, mut current) = (Vec::new(), 0, String::new());
    for c in list.chars() {
        match c {
            '}' if depth == 0 => break,
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => names.push(std::mem::take(&mut current)),
            _ if depth == 0 => current.push(c),
            _ => {}
        }
    }
    names.push(current);
    let first = |path: String| {
        path.trim().split("::").next().unwrap_or_default().split(' ').next().unwrap_or_default().to_owned()
    };
    names.into_iter().map(first).filter(|name| !name.is_empty()).collect()
}

#[test]
fn imports_go_down() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let from = room(&path);
        if from == "lib" {
            continue;
        }
        for to in imports(&shipped(&path, &text)) {
            let types_at_the_top = to.starts_with(char::is_uppercase);
            if to == GENERATED || to == from || types_at_the_top {
                continue;
            }
            let top = GROUND.len() + FLOORS.len() - 1;
            let goes_down = height(&to) < height(&from) || (height(&from) == top && height(&to) == top);
            if !goes_down {
                wrong.push(format!("{} imports {to}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "upward or sideways:\n{}", wrong.join("\n"));
}

#[test]
fn foreign_types_stop_at_their_door() {
    let doors = BTreeMap::from([
        ("candle_core", &["src/backend/local/"][..]),
        ("crate::proto", &["src/front/grpc", "src/app.rs", "src/cli/"]),
        // OTLP's messages too.
        ("proto::", &["src/front/grpc", "src/app.rs", "src/cli/", "src/lib.rs", "src/telemetry/collector.rs"]),
        ("axum::", &["src/front/", "src/app.rs"]),
        ("moka::", &["src/cache/"]),
        ("opentelemetry", &["src/trace.rs", "src/telemetry"]),
        ("anyhow", &["src/cli"]),
        ("tonic::Status", &["src/front/", "src/cli/"]),
    ]);
    for (path, text) in sources() {
        let code: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        for (foreign, allowed) in &doors {
            let inside = allowed.iter().any(|door| path.to_string_lossy().contains(door));
            assert!(inside || !code.contains(foreign), "{} knows {foreign}", path.display());
        }
    }
}

#[test]
fn files_are_small_and_say_what_they_are_for() {
    for (path, text) in sources() {
        assert!(text.starts_with("//!") || path.ends_with("tests.rs"), "{} has no module doc", path.display());
        let lines = shipped(&path, &text).lines().count();
        assert!(lines <= MAX_LINES, "{} has {lines} lines, {MAX_LINES} are the most", path.display());
        assert!(!path.ends_with("mod.rs"), "{}: foo.rs + foo/, never mod.rs", path.display());
    }
}

#[test]
fn the_ground_is_listed_in_the_order_of_its_imports() {
    let lib = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let listed: Vec<_> = lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    assert_eq!(listed[..GROUND.len()], GROUND);
}
