//! `fewlabel convert`: original checkpoints to the published numbers, hostile ones to a message and nothing else.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::support::shared;

const FIXTURES: [&str; 4] = [
    "mode0_32x32x32",
    "mode1_32x64x64",
    "mode1_64x128x128",
    "mode2_16x64x64",
];
/// Outputs of one scale each, and the finest once more as inference computes it.
const OUTPUTS: usize = 5;
const TOLERANCE: f64 = 1e-4;

/// A folder to work in: `in/` for what a test writes, `tmp/` as the program's temporary folder, and the output.
struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["in", "tmp", "out"] {
            std::fs::create_dir(dir.path().join(folder)).unwrap();
        }
        Self(dir)
    }

    fn input(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join("in").join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn out(&self) -> PathBuf {
        self.0.path().join("out/model")
    }

    fn convert(&self, checkpoint: &Path, config: &Path, options: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_fewlabel"))
            .arg("convert")
            .arg(checkpoint)
            .arg("--config")
            .arg(config)
            .arg("-o")
            .arg(self.out())
            .args(options)
            .env("TMPDIR", self.0.path().join("tmp"))
            .output()
            .unwrap()
    }

    /// The program said why and left nothing.
    fn assert_refused(&self, what: &str, output: &Output, code: i32) -> String {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{what}: {text}");
        assert!(
            text.starts_with("fewlabel: ") && text.len() > 30,
            "{what}: {text}"
        );
        assert!(!text.contains("panicked"), "{what}: {text}");
        for folder in ["out", "tmp"] {
            let left: Vec<_> = std::fs::read_dir(self.0.path().join(folder))
                .unwrap()
                .collect();
            assert!(left.is_empty(), "{what} left {left:?}");
        }
        text
    }

    fn manifest(&self) -> Value {
        let text = std::fs::read(self.out().join("manifest.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    }
}

/// A small configuration for files that no configuration fits.
fn any_config(bench: &Bench) -> PathBuf {
    let config = json!({
        "input_size": [32, 64, 64], "resolution_mode": 1, "feature_chns": [4, 8, 16, 24, 32],
        "num_heads": [2, 4, 4], "window_sizes": [6, 6, 6], "depths": [2, 2, 2], "class_num": 5, "in_chns": 1,
        "dropout": [0, 0, 0.2, 0.2, 0.2],
    });
    bench.input("config.json", config.to_string().as_bytes())
}

#[test]
fn the_original_checkpoints_give_the_original_numbers() {
    let Some(fixtures) = shared("fixtures/pctnet") else {
        return;
    };
    for name in FIXTURES {
        let bench = Bench::new();
        let file = |suffix: &str| fixtures.join(format!("{name}.{suffix}"));
        let reference = file("safetensors");
        let output = bench.convert(
            &file("pt"),
            &file("json"),
            &["--verify", reference.to_str().unwrap()],
        );
        let (said, printed) = (
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&output.stdout),
        );
        assert_eq!(output.status.code(), Some(0), "{name}: {said}");
        let largest: Vec<f64> = printed
            .lines()
            .filter_map(|line| line.strip_prefix("logits")?.split("difference ").nth(1))
            .map(|number| number.trim().parse().unwrap())
            .collect();
        assert_eq!(largest.len(), OUTPUTS, "{name}: {printed}");
        assert!(
            largest.iter().all(|difference| *difference <= TOLERANCE),
            "{name}: {printed}"
        );
        assert!(
            said.contains("missing 0, of another shape 0") && said.contains("100.0 %"),
            "{name}: {said}"
        );
        assert_eq!(bench.manifest()["trained"], true);

        let again = bench.convert(&file("pt"), &file("json"), &[]);
        assert_eq!(
            again.status.code(),
            Some(1),
            "an existing output is refused"
        );
        assert!(String::from_utf8_lossy(&again.stderr).contains("never overwritten"));
    }
}

#[test]
fn another_class_count_keeps_the_encoder() {
    let Some(fixtures) = shared("fixtures/pctnet") else {
        return;
    };
    let bench = Bench::new();
    let (checkpoint, config) = (
        fixtures.join("mode1_32x64x64.pt"),
        fixtures.join("mode1_32x64x64.json"),
    );
    let output = bench.convert(
        &checkpoint,
        &config,
        &["--labels", "liver,spleen", "--name", "two"],
    );
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(
        said.contains("other shape, starts afresh") && said.contains("100.0 %"),
        "{said}"
    );
    let manifest = bench.manifest();
    assert_eq!(manifest["name"], "two");
    assert_eq!(manifest["labels"], json!(["liver", "spleen"]));
    assert_eq!(manifest["network"]["class_num"], 3);
    assert_eq!(
        manifest["trained"], false,
        "heads that start afresh have learned nothing"
    );
}

#[test]
fn an_encoder_that_is_hardly_covered_is_refused() {
    let Some(fixtures) = shared("fixtures/pctnet") else {
        return;
    };
    let bench = Bench::new();
    let checkpoint = fixtures.join("mode1_32x64x64.pt");
    let text = std::fs::read(fixtures.join("mode1_32x64x64.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&text).unwrap();
    config["feature_chns"] = json!([4, 8, 16, 32, 64]);
    let config = bench.input("wider.json", config.to_string().as_bytes());
    let refused = bench.convert(&checkpoint, &config, &[]);
    let text = bench.assert_refused("another architecture", &refused, 1);
    assert!(
        text.contains("% of the encoder") && text.contains("--partial"),
        "{text}"
    );
    let partial = bench.convert(&checkpoint, &config, &["--partial"]);
    assert_eq!(
        partial.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&partial.stderr)
    );
    assert_eq!(bench.manifest()["trained"], false);
}

#[test]
fn what_is_no_checkpoint_is_refused() {
    let bench = Bench::new();
    let config = any_config(&bench);
    let witness = bench.0.path().join("out/executed");
    let command = format!("touch {}", witness.display());
    let nested = pickle(&[b"]".repeat(2_000_000), b"a".repeat(1_999_999)].concat());
    let tuples = pickle(&[b")".as_slice(), &b"\x85".repeat(2_000_000)].concat());
    let dictionaries = pickle(
        &[
            b"}".as_slice(),
            &b"K\x00}".repeat(500_000),
            &b"s".repeat(500_000),
        ]
        .concat(),
    );
    let executes = pickle(&call("posix", "system", &command));
    let evaluates = pickle(&call(
        "builtins",
        "eval",
        &format!("__import__('os').system('{command}')"),
    ));
    let huge_string = pickle(b"X\xff\xff\xff\x7f");
    let hostile = [
        ("empty", vec![]),
        ("text", b"this is no checkpoint\n".to_vec()),
        ("zeros", vec![0; 4096]),
        ("bare pickle of lists", nested.clone()),
        ("bare pickle that runs a command", executes.clone()),
        ("nested lists", zip(&[("archive/data.pkl", &nested)])),
        ("nested tuples", zip(&[("archive/data.pkl", &tuples)])),
        (
            "nested dictionaries",
            zip(&[("archive/data.pkl", &dictionaries)]),
        ),
        ("a command", zip(&[("archive/data.pkl", &executes)])),
        ("an expression", zip(&[("archive/data.pkl", &evaluates)])),
        (
            "a string longer than the file",
            zip(&[("archive/data.pkl", &huge_string)]),
        ),
        ("a zip without a pickle", zip(&[("readme.txt", b"hello")])),
        (
            "a zip with a bad pickle",
            zip(&[("archive/data.pkl", b"\x80\x02garbage")]),
        ),
        ("an empty zip", zip(&[])),
    ];
    for (what, bytes) in &hostile {
        let path = bench.input("hostile.pt", bytes);
        let output = bench.convert(&path, &config, &[]);
        bench.assert_refused(what, &output, 1);
    }
    bench.assert_refused(
        "no file",
        &bench.convert(Path::new("no-such-file.pt"), &config, &[]),
        1,
    );
    bench.assert_refused("a folder", &bench.convert(bench.0.path(), &config, &[]), 1);
}

#[test]
fn truncated_and_damaged_checkpoints_are_refused() {
    let Some(fixtures) = shared("fixtures/pctnet") else {
        return;
    };
    let bench = Bench::new();
    let config = fixtures.join("mode0_32x32x32.json");
    let whole = std::fs::read(fixtures.join("mode0_32x32x32.pt")).unwrap();
    for share in [0.01, 0.3, 0.7, 0.999] {
        let cut = &whole[..(whole.len() as f64 * share) as usize];
        let output = bench.convert(&bench.input("cut.pt", cut), &config, &[]);
        bench.assert_refused(&format!("the first {share}"), &output, 1);
    }
    // One bit of one tensor, which the zip's checksum tells.
    let name = b"mode0_32x32x32/data/100";
    let at = whole
        .windows(name.len())
        .position(|part| part == name)
        .unwrap();
    let extra = usize::from(u16::from_le_bytes([whole[at - 2], whole[at - 1]]));
    let mut damaged = whole;
    damaged[at + name.len() + extra + 2] ^= 0x40;
    let output = bench.convert(&bench.input("damaged.pt", &damaged), &config, &[]);
    let text = bench.assert_refused("a damaged tensor", &output, 1);
    assert!(text.contains("checksum"), "{text}");
}

#[test]
fn wrong_options_say_what_is_wrong() {
    let bench = Bench::new();
    let config = any_config(&bench);
    let checkpoint = bench.input("text.pt", b"text");
    for (options, code, word) in [
        (&["--labels", "a,a"][..], 2, "--labels"),
        (&["--spacing-mm", "1,2"], 2, "--spacing-mm"),
        (&["--hu-window", "low,high"], 2, "--hu-window"),
    ] {
        let text = bench.assert_refused(word, &bench.convert(&checkpoint, &config, options), code);
        assert!(text.contains(word), "{text}");
    }
    for (name, text) in [("no.json", "{"), ("other.json", "{\"a\": 1}")] {
        let config = bench.input(name, text.as_bytes());
        let said = bench.assert_refused(name, &bench.convert(&checkpoint, &config, &[]), 1);
        assert!(said.contains(name), "{said}");
    }
    let mut config: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    config["feature_chns"] = json!([4, 8, 16, 24, 4_000_000_000_u64]);
    let config = bench.input("huge.json", config.to_string().as_bytes());
    bench.assert_refused(
        "a huge network",
        &bench.convert(&checkpoint, &config, &[]),
        1,
    );
}

/// A pickle of protocol 2 around opcodes.
fn pickle(opcodes: &[u8]) -> Vec<u8> {
    [b"\x80\x02".as_slice(), opcodes, b"."].concat()
}

/// Opcodes that call `module.function(argument)` when a pickle is executed.
fn call(module: &str, function: &str, argument: &str) -> Vec<u8> {
    let mut opcodes = format!("c{module}\n{function}\n(X").into_bytes();
    opcodes.extend((argument.len() as u32).to_le_bytes());
    opcodes.extend(argument.as_bytes());
    opcodes.extend(b"tR");
    opcodes
}

/// A zip archive with stored entries.
fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut archive, mut directory) = (Vec::new(), Vec::new());
    for (name, content) in entries {
        let mut crc = flate2::Crc::new();
        crc.update(content);
        let size = content.len() as u32;
        // Version, flags, method, time, date; then checksum, sizes, lengths of name and extra field.
        let mut common = vec![20, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        for number in [crc.sum(), size, size] {
            common.extend(number.to_le_bytes());
        }
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0, 0]);
        let offset = archive.len() as u32;
        archive.extend(b"PK\x03\x04");
        archive.extend(&common);
        archive.extend(name.as_bytes());
        archive.extend(*content);
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&common);
        directory.extend([0; 10]); // comment, disk, attributes
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let (count, offset) = (entries.len() as u16, archive.len() as u32);
    archive.extend(&directory);
    archive.extend(b"PK\x05\x06\x00\x00\x00\x00");
    for number in [count, count] {
        archive.extend(number.to_le_bytes());
    }
    archive.extend((directory.len() as u32).to_le_bytes());
    archive.extend(offset.to_le_bytes());
    archive.extend([0, 0]);
    archive
}
