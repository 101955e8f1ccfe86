//! A network so small that a step of its training takes milliseconds, and synthetic studies of its size.

use std::path::Path;

use fewlabel::imaging::phantom::{ORGANS, PhantomCase, PhantomOptions, torso};
use fewlabel::imaging::{LabelFormat, write_scan};
use fewlabel::model::{LabelSchema, PctNetConfig, create_untrained};

/// Voxels `[z, y, x]` that it takes at once.
const PATCH: [usize; 3] = [16, 32, 32];

/// Makes an untrained model `tiny` for some structures, as a model directory.
pub fn tiny_model(dir: &Path, labels: &LabelSchema) {
    let network = PctNetConfig {
        feature_chns: [4, 8, 16, 16, 16],
        num_heads: [2, 2, 2],
        ..PctNetConfig::pct_net_s(labels.class_count(), PATCH, 1)
    };
    create_untrained(dir, "tiny", &network, labels, 1).unwrap();
}

/// The structures of the synthetic torsos, in order of their values.
pub fn organs() -> LabelSchema {
    LabelSchema::new(ORGANS.iter().map(|organ| (*organ).to_owned()).collect()).unwrap()
}

/// Makes `studies/NAME.nii.gz` of torsos and `model` in a folder; the torsos, one for each name. Without a shape they fit the
/// model.
pub fn tiny_site(dir: &Path, names: &[String], shape: Option<[usize; 3]>) -> Vec<PhantomCase> {
    let studies = dir.join("studies");
    std::fs::create_dir_all(&studies).unwrap();
    let options = PhantomOptions {
        shape: Some(shape.unwrap_or(PATCH)),
        ..PhantomOptions::small()
    };
    let cases = (0..).zip(names).map(|(seed, name)| {
        let case = torso(seed, &options);
        let path = studies.join(format!("{name}.nii.gz"));
        write_scan(&path, &case.scan, LabelFormat::NiftiGz).unwrap();
        case
    });
    let cases = cases.collect();
    tiny_model(&dir.join("model"), &organs());
    cases
}

/// The options of `fewlabel serve` for such a folder, with the server's own data in `data` there.
pub fn site_arguments(dir: &Path) -> [String; 6] {
    let path = |name| dir.join(name).to_str().unwrap().to_owned();
    [
        "--studies".into(),
        path("studies"),
        "--data".into(),
        path("data"),
        "--model".into(),
        path("model"),
    ]
}
