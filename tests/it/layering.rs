//! The architecture of the design page, checked on the sources: who may use whom, where the tensor library and
//! `unsafe` may stand, and how long files may be.

use std::path::{Path, PathBuf};

/// Which top-level modules each top-level module may use. Clock, config, rng and telemetry are leaves that the
/// others may use; the command line puts everything together, but the store is reached through the domain.
const MAY_USE: &[(&str, &[&str])] = &[
    ("imaging", &["rng"]),
    ("model", &["imaging", "rng", "telemetry"]),
    ("store", &["clock", "telemetry"]),
    ("dicomweb", &["imaging"]),
    (
        "project",
        &[
            "store",
            "dicomweb",
            "model",
            "imaging",
            "clock",
            "rng",
            "telemetry",
        ],
    ),
    (
        "rounds",
        &[
            "project",
            "store",
            "model",
            "imaging",
            "clock",
            "rng",
            "telemetry",
        ],
    ),
    (
        "sessions",
        &["project", "store", "imaging", "clock", "rng", "telemetry"],
    ),
    (
        "worker",
        &[
            "rounds",
            "project",
            "store",
            "model",
            "imaging",
            "clock",
            "rng",
            "telemetry",
        ],
    ),
    (
        "rest",
        &[
            "rounds",
            "project",
            "sessions",
            "dicomweb",
            "config",
            "telemetry",
        ],
    ),
    (
        "cli",
        &[
            "rest",
            "worker",
            "rounds",
            "project",
            "sessions",
            "dicomweb",
            "model",
            "imaging",
            "clock",
            "config",
            "rng",
            "telemetry",
        ],
    ),
    ("main", &["cli"]),
    ("lib", &[]),
    ("clock", &[]),
    ("config", &[]),
    ("rng", &[]),
    ("telemetry", &[]),
];

/// Longest source file, and longest `mod.rs`: a module's root is its table of contents.
const MAX_LINES: usize = 600;
const MAX_ROOT_LINES: usize = 150;

struct Source {
    /// Path below `src`, with `/`.
    path: String,
    text: String,
}

impl Source {
    /// The top-level module it belongs to.
    fn module(&self) -> &str {
        let first = self.path.split('/').next().unwrap();
        first.strip_suffix(".rs").unwrap_or(first)
    }

    /// Its lines of code with their numbers; comments are left out.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().enumerate();
        lines.map(|(n, line)| (n + 1, line.split("//").next().unwrap_or(line)))
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut folders, mut found) = (vec![root.clone()], Vec::<PathBuf>::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    assert!(found.len() > 100, "the sources are in {}", root.display());
    let source = |path: PathBuf| Source {
        text: std::fs::read_to_string(&path).unwrap(),
        path: path
            .strip_prefix(&root)
            .unwrap()
            .to_str()
            .unwrap()
            .replace('\\', "/"),
    };
    found.into_iter().map(source).collect()
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The top-level modules that code names as `crate::x`, `crate::{x, y::z}` or, in the binary, `fewlabel::x`.
fn used(code: &str) -> Vec<String> {
    let mut names = Vec::new();
    for start in ["crate::", "fewlabel::"] {
        for (at, _) in code.match_indices(start) {
            if code[..at]
                .chars()
                .next_back()
                .is_some_and(|c| is_name(c) || c == ':' || c == '$')
            {
                continue;
            }
            names.append(&mut first_names(&code[at + start.len()..]));
        }
    }
    names
}

/// The first name of a path, or of each path of a group in braces.
fn first_names(rest: &str) -> Vec<String> {
    let name = |text: &str| {
        text.trim_start()
            .chars()
            .take_while(|c| is_name(*c))
            .collect::<String>()
    };
    let Some(group) = rest.strip_prefix('{') else {
        return vec![name(rest)];
    };
    let (mut names, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            ',' | '}' if depth == 0 => {
                names.push(name(&group[start..at]));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

/// Fails with all faults at once.
fn none(faults: &[String], rule: &str) {
    assert!(faults.is_empty(), "{rule}\n  {}\n", faults.join("\n  "));
}

#[test]
fn paths_are_recognised() {
    assert_eq!(
        used("use crate::imaging::Volume; crate::rng::Rng::new(1)"),
        ["imaging", "rng"]
    );
    assert_eq!(
        used("use crate::{model::{a, b}, store, }; x"),
        ["model", "store"]
    );
    assert_eq!(used("use fewlabel::cli;"), ["cli"]);
    assert!(used("$crate::x burn_crate::y").is_empty());
}

#[test]
fn modules_use_only_what_is_below_them() {
    let mut faults = Vec::new();
    for source in sources() {
        let module = source.module();
        let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| *name == module) else {
            faults.push(format!(
                "src/{}: {module} is not a top-level module of the design",
                source.path
            ));
            continue;
        };
        let code: Vec<_> = source.code().map(|(_, line)| line).collect();
        for target in used(&code.join("\n")) {
            let known = MAY_USE.iter().any(|(name, _)| *name == target);
            if known && target != module && !allowed.contains(&target.as_str()) {
                faults.push(format!(
                    "src/{}: {module} uses crate::{target}; it may use: {}",
                    source.path,
                    allowed.join(", ")
                ));
            }
        }
    }
    none(
        &faults,
        "edges that the architecture does not have (move the code, or pass the value in):",
    );
}

#[test]
fn only_the_model_names_the_tensor_library() {
    let mut faults = Vec::new();
    for source in sources().iter().filter(|source| source.module() != "model") {
        for (line, code) in source.code() {
            let libraries = ["burn", "burn_flex", "cubecl", "cudarc"];
            let mut words = code.split(|c: char| !is_name(c));
            if words.any(|word| libraries.contains(&word)) {
                faults.push(format!("src/{}:{line}: {}", source.path, code.trim()));
            }
        }
    }
    none(
        &faults,
        "burn is named outside src/model (give the domain a type of the model module):",
    );
}

#[test]
fn unsafe_code_is_in_the_kernels_alone() {
    let mut faults = Vec::new();
    for source in sources() {
        if source.path.starts_with("model/kernels/") {
            continue;
        }
        for (line, code) in source.code() {
            if code
                .split(|c: char| !is_name(c))
                .any(|word| word == "unsafe")
            {
                faults.push(format!("src/{}:{line}: {}", source.path, code.trim()));
            }
        }
    }
    none(&faults, "unsafe outside src/model/kernels:");
}

#[test]
fn files_are_short() {
    let mut faults = Vec::new();
    for source in sources() {
        let lines = source.text.lines().count();
        let root = source.path.ends_with("/mod.rs");
        let most = if root { MAX_ROOT_LINES } else { MAX_LINES };
        if lines > most {
            faults.push(format!(
                "src/{}: {lines} lines, at most {most}",
                source.path
            ));
        }
    }
    none(
        &faults,
        "files that are too long (split them by concept; tests may be in a file of their own):",
    );
}
