//! What the fuzz targets share. How they are run: `README.md`.

use std::path::Path;

use fewlabel::imaging::Budget;
use tempfile::TempDir;

/// Small enough that whatever takes more memory than libFuzzer's limit has ignored it, and that an input takes little time:
/// instrumented, an image of 512 x 512 takes five seconds.
pub const BUDGET: Budget = Budget {
    max_voxels: 1 << 17,
    max_bytes: 4 << 20,
    follow_files: false,
};

/// What stands between two files of one input; `seeds.py` writes it.
const SEPARATOR: &[u8] = b"\n~~file~~\n";
/// Most files of one input.
const FILES: usize = 24;

/// The files of an input in a new folder, as `0000.dcm` and so on.
pub fn folder_of(files: &[u8]) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder for the files");
    let mut rest = Some(files);
    for number in 0..FILES {
        let Some(left) = rest else { break };
        let end = left
            .windows(SEPARATOR.len())
            .position(|window| window == SEPARATOR);
        let file = &left[..end.unwrap_or(left.len())];
        write(&folder.path().join(format!("{number:04}.dcm")), file);
        rest = end.map(|end| &left[end + SEPARATOR.len()..]);
    }
    folder
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).expect("a file for the input");
}

/// Panics of decoders are caught where they are called and refuse the file, so only those that get through are findings.
/// libFuzzer's hook ends the process at every panic; it still does at those.
pub fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let from = panic.location().map_or("", |place| place.file());
        let is_caught = ["jpeg-decoder", "pure_jpegls", "hayro-jpeg2000"]
            .iter()
            .any(|decoder| from.contains(decoder));
        if !is_caught {
            eprintln!("{panic}");
        }
    }));
}
