//! `fewlabel inspect` on DICOM: every derived case is read as recorded or refused.

use std::path::Path;

use serde_json::Value;

use crate::support::{inspect, numbers, shared};

fn close(a: &Value, b: &[f64], tolerance: f64) -> bool {
    let a = numbers(a);
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= tolerance)
}

/// Cases that are refused, with the code and a word of the message.
const REFUSED: &[(&str, &str, &str)] = &[
    (
        "derived_geometry/missing_slice",
        "unsupported",
        "between slice 3 and 4",
    ),
    (
        "derived_geometry/missing_ipp",
        "bad_header",
        "Image Position",
    ),
    (
        "derived_malformed/truncated_pixeldata",
        "bad_header",
        ".dcm",
    ),
    ("derived_malformed/truncated_header", "bad_header", ".dcm"),
    ("derived_malformed/zero_bytes", "bad_header", "empty"),
    ("derived_malformed/random_bytes", "bad_header", "no DICOM"),
    ("derived_malformed/huge_length_field", "bad_header", ".dcm"),
    (
        "derived_malformed/wrong_rows",
        "bad_header",
        "Rows x Columns",
    ),
    ("derived_malformed/huge_rows_cols", "too_large", ".dcm"),
    (
        "derived_malformed/degenerate_geometry",
        "bad_header",
        "Pixel Spacing",
    ),
    ("derived_malformed/bad_rescale", "bad_header", ".dcm"),
];

/// Cases that load with a warning, with a word of it.
const WARNED: &[(&str, &str)] = &[
    ("derived_geometry/duplicate_slice", "there twice"),
    ("derived_geometry/irregular_spacing", "mm apart"),
    ("derived_geometry/localizer_in_series", "localizer"),
    ("derived_geometry/gantry_tilt", "tilted"),
    ("derived_geometry/single_slice", "single slice"),
    ("derived_geometry/two_phases_one_series", "same place"),
    ("derived_geometry/no_preamble", "transfer syntax"),
];

/// How many scans a case holds, where it is not one.
const SEVERAL: &[(&str, usize)] = &[
    ("derived_geometry/two_series_mixed", 2),
    ("derived_geometry/two_phases_same_positions", 2),
    ("derived_geometry/two_phases_one_series", 2),
];

fn find<T: Copy>(list: &[(&str, T)], variant: &str) -> Option<T> {
    list.iter()
        .find(|(name, _)| *name == variant)
        .map(|(_, value)| *value)
}

#[test]
fn derived_series_are_read_as_recorded() {
    let Some(folder) = shared("data/dicom") else {
        return;
    };
    let expected = std::fs::read(folder.join("derived_expected.json")).unwrap();
    let expected: Value = serde_json::from_slice(&expected).unwrap();
    let (mut wrong, mut checked) = (Vec::new(), 0);
    for case in expected.as_array().unwrap() {
        let variant = case["variant"].as_str().unwrap();
        // Segmentations have no truth in this list.
        if variant.starts_with("derived_seg/seg_") {
            continue;
        }
        checked += 1;
        if let Err(reason) = check(&folder, variant, &case["expected"]) {
            wrong.push(format!("{variant} ({}): {reason}", case["must"]));
        }
    }
    assert!(checked > 40, "{checked} cases");
    assert!(
        wrong.is_empty(),
        "{} of {checked}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

fn check(folder: &Path, variant: &str, expected: &Value) -> Result<(), String> {
    let probes: Vec<Vec<f64>> = expected["probes_ijk_hu"]
        .as_array()
        .into_iter()
        .flatten()
        .map(numbers)
        .collect();
    let places: Vec<String> = probes
        .iter()
        .map(|probe| format!("{},{},{}", probe[0], probe[1], probe[2]))
        .collect();
    let (report, code) = inspect(&folder.join(variant), &places);
    let (images, refused) = (
        report["images"].as_array().unwrap(),
        report["refused"].as_array().unwrap(),
    );
    let refusal = REFUSED.iter().find(|(name, ..)| *name == variant);
    if let Some((_, expected_code, word)) = refusal {
        let message = refused
            .first()
            .map_or("", |refusal| refusal["message"].as_str().unwrap());
        let as_asked = images.is_empty()
            && code == 1
            && refused.len() == 1
            && refused[0]["code"] == *expected_code
            && message.contains(word);
        return as_asked.then_some(()).ok_or(report.to_string());
    }
    let count = find(SEVERAL, variant).unwrap_or(1);
    if images.len() != count || !refused.is_empty() || code != 0 {
        return Err(report.to_string());
    }
    let image = &images[0];
    let warnings = image["warnings"].to_string();
    let warned = match find(WARNED, variant) {
        Some(word) => warnings.contains(word),
        None => warnings == "[]",
    };
    if !warned {
        return Err(format!("warnings {warnings}"));
    }
    if variant.ends_with("irregular_spacing") {
        let z = numbers(&expected["positions_z"]);
        let size = numbers(&image["size_ijk"])[2];
        let spacing = numbers(&image["spacing_mm"])[2];
        let end = z[0] + (size - 1.0) * spacing;
        let ends = (end - z[z.len() - 1]).abs() < 1e-3;
        return (ends && size > z.len() as f64)
            .then_some(())
            .ok_or(format!("{size} slices to {end} mm"));
    }
    if !close(&image["size_ijk"], &numbers(&expected["size_ijk"]), 0.0) {
        return Err(format!("size {}", image["size_ijk"]));
    }
    for (ours, theirs, tolerance) in [
        ("spacing_mm", "spacing", 1e-4),
        ("origin_lps", "origin_lps", 1e-4),
    ] {
        if !close(&image[ours], &numbers(&expected[theirs]), tolerance) {
            return Err(format!("{ours} {}", image[ours]));
        }
    }
    let directions: Vec<f64> = ["row_dir", "col_dir", "slice_dir"]
        .iter()
        .flat_map(|axis| numbers(&expected[axis]))
        .collect();
    if !close(&image["directions_lps"], &directions, 1e-5) {
        return Err(format!("directions {}", image["directions_lps"]));
    }
    if let Some(hash) = expected["sha256_int16_hu_ijk_fastest_i"].as_str() {
        // Of several scans one is the recorded one.
        let same = images.iter().any(|image| image["sha256_int16_ijk"] == hash);
        if !same {
            return Err(format!("sha256 {}", image["sha256_int16_ijk"]));
        }
    }
    for (probe, ours) in probes.iter().zip(image["probes"].as_array().unwrap()) {
        if count == 1 && numbers(ours)[3] != probe[3] {
            return Err(format!("probe {ours}, not {probe:?}"));
        }
    }
    Ok(())
}

/// Largest difference from the recorded Hounsfield units of the lossy syntaxes.
#[test]
fn lossy_syntaxes_stay_within_their_error() {
    let Some(folder) = shared("data/dicom/derived_ts") else {
        return;
    };
    let read = |name: &str| {
        fewlabel::imaging::read_scan(&folder.join(name), &Default::default())
            .unwrap()
            .volume
            .voxels
    };
    let truth = read("reference_hu.nii.gz");
    for (name, largest) in [
        ("implicit_le", 0.0),
        ("explicit_be", 0.0),
        ("jpegls_near", 3.0),
        ("j2k_lossy", 23.0),
    ] {
        let worst = read(name)
            .iter()
            .zip(&truth)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(worst <= largest, "{name}: {worst} HU");
    }
}
