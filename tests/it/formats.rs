//! `fewlabel inspect` on the recorded format corpus: every file is read as recorded or refused.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::{inspect, numbers, shared};

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn close(a: &Value, b: &Value, tolerance: f64) -> bool {
    let (a, b) = (numbers(a), numbers(b));
    a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= tolerance)
}

/// Sizes without trailing ones, and at least three.
fn three(shape: &Value) -> Vec<u64> {
    let mut sizes: Vec<u64> = shape
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n.as_u64().unwrap())
        .collect();
    while sizes.len() > 3 && sizes.last() == Some(&1) {
        sizes.pop();
    }
    sizes.resize(sizes.len().max(3), 1);
    sizes
}

/// Files of the corpus that are refused by decision, with the code: the corpus leaves a choice.
const REFUSED: &[(&str, &str)] = &[
    ("derived_nifti/four_d_two_volumes.nii.gz", "unsupported"),
    ("derived_nifti/rgb24.nii.gz", "unsupported"),
    ("derived_nifti/complex64.nii.gz", "unsupported"),
    ("derived_nrrd/vector_first_3component.nrrd", "unsupported"),
    ("derived_nrrd/detached_traversal.nhdr", "data_file"),
    ("derived_nrrd/detached_absolute.nhdr", "data_file"),
    ("derived_nrrd/detached_missing.nhdr", "data_file"),
];

/// Files that load only with a warning.
const WARNED: &[&str] = &[
    "derived_nifti/scl_slope_nan.nii.gz",
    "derived_nifti/sform_qform_differ.nii.gz",
    "derived_nifti/sform_shear.nii.gz",
    "derived_nifti/no_form_codes.nii.gz",
    "derived_nifti/float_with_nan_inf.nii.gz",
    "derived_nrrd/scanner_xyz.nrrd",
    "derived_nrrd/space_dimension_only.nrrd",
    "derived_nrrd/spacings_only.nrrd",
    "derived_nrrd/missing_endian.nrrd",
    "derived_nrrd/duplicate_field.nrrd",
    "derived_malformed/nii_bitpix_mismatch.nii",
];

/// Malformed files that may load, with a warning.
const MALFORMED_BUT_READ: &[&str] = &["derived_malformed/nii_bitpix_mismatch.nii"];

#[test]
fn derived_files_are_read_as_recorded() {
    let Some(folder) = shared("data/formats") else {
        return;
    };
    let expected = json_of(&folder.join("expected_derived.json"));
    let mut wrong = Vec::new();
    for case in expected.as_array().unwrap() {
        let file = case["file"].as_str().unwrap();
        if let Err(reason) = check(&folder, file, case) {
            wrong.push(format!("{file} ({}): {reason}", case["must"]));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        expected.as_array().unwrap().len(),
        wrong.join("\n")
    );
}

fn check(folder: &Path, file: &str, case: &Value) -> Result<(), String> {
    let probes: Vec<(String, f64)> = case["probes"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|probe| {
            let mut ijk = numbers(&probe[0]);
            ijk.resize(3, 0.0);
            (
                ijk.iter()
                    .map(|n| n.to_string())
                    .collect::<Vec<_>>()
                    .join(","),
                probe[1].as_f64().unwrap(),
            )
        })
        .collect();
    let (report, code) = inspect(
        &folder.join(file),
        &probes
            .iter()
            .map(|(ijk, _)| ijk.clone())
            .collect::<Vec<_>>(),
    );
    let decided = REFUSED
        .iter()
        .find(|(name, _)| *name == file)
        .map(|(_, code)| *code);
    let malformed = file.starts_with("derived_malformed/") && !MALFORMED_BUT_READ.contains(&file);
    if decided.is_some() || malformed {
        if code != 1 || report["images"] != Value::Array(Vec::new()) {
            return Err("not refused".to_owned());
        }
        let refusal = &report["refused"][0];
        if refusal["message"]
            .as_str()
            .is_none_or(|text| text.len() < 15)
        {
            return Err(format!("no clear message: {refusal}"));
        }
        return match decided {
            Some(code) if refusal["code"] != code => Err(format!("refused as {refusal}")),
            _ => Ok(()),
        };
    }
    let image = &report["images"][0];
    if code != 0 || image.is_null() {
        return Err(format!("refused: {}", report["refused"]));
    }
    if WARNED.contains(&file) && image["warnings"] == Value::Array(Vec::new()) {
        return Err("no warning".to_owned());
    }
    if !case["shape"].is_null() && three(&case["shape"]) != three(&image["size_ijk"]) {
        return Err(format!("size {}", image["size_ijk"]));
    }
    if !case["affine_ras"].is_null() && !close(&case["affine_ras"], &image["affine_ras"], 1e-4) {
        return Err(format!("affine {}", image["affine_ras"]));
    }
    let hash = &case["sha256_float64_i_fastest"];
    if !hash.is_null() && *hash != image["sha256_float64_ijk"] {
        return Err(format!("hash {}", image["sha256_float64_ijk"]));
    }
    for (n, (ijk, value)) in probes.iter().enumerate() {
        if image["probes"][n][3].as_f64() != Some(*value) {
            return Err(format!(
                "probe {ijk}: {} instead of {value}",
                image["probes"][n]
            ));
        }
    }
    Ok(())
}

/// Files of public test suites that are no scalar 3-D image of known type.
const REAL_REFUSED: &[&str] = &[
    "real/nibabel/analyze.hdr",
    "real/nibabel/nifti1.hdr",
    "real/nibabel/nifti2.hdr",
    "real/nibabel/example4d.nii.gz",
    "real/nibabel/example_nifti2.nii.gz",
    "real/nibabel/functional.nii",
    "real/nibabel/row_major.dconn.nii",
    "real/nifti_rs/minimal.img",
    "real/nifti_rs/minimal.img.gz",
    "real/nifti_rs/minimal2.img.gz",
    "real/pynrrd/BallBinary30x30x30.raw",
    "real/pynrrd/BallBinary30x30x30_byteskip_minus_five.nhdr",
    "real/pynrrd/test1d_ascii.nrrd",
    "real/pynrrd/test_customFields.nrrd",
];

#[test]
fn files_of_public_suites_are_read_as_other_readers_do() {
    let Some(folder) = shared("data/formats") else {
        return;
    };
    let mut wrong = Vec::new();
    for set in json_of(&folder.join("manifest_real.json"))
        .as_array()
        .unwrap()
    {
        for case in set["files"].as_array().unwrap() {
            let file = case["file"].as_str().unwrap();
            let (report, _) = inspect(&folder.join(file), &[]);
            let image = &report["images"][0];
            if image.is_null() != REAL_REFUSED.contains(&file) {
                wrong.push(format!("{file}: {} {}", image["format"], report["refused"]));
            } else if !image.is_null() {
                for (expected, found) in [
                    ("shape", "size_ijk"),
                    ("sha256_float64_i_fastest", "sha256_float64_ijk"),
                    ("affine_ras", "affine_ras"),
                ] {
                    let same = match (&case[expected], expected) {
                        (Value::Null, _) => true,
                        (value, "shape") => three(value) == three(&image[found]),
                        (value, "affine_ras") => close(value, &image[found], 1e-4),
                        (value, _) => *value == image[found],
                    };
                    if !same {
                        wrong.push(format!(
                            "{file}: {expected} {} but {}",
                            case[expected], image[found]
                        ));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_folder_gives_one_entry_per_file() {
    let Some(folder) = shared("data/formats") else {
        return;
    };
    let (report, code) = inspect(&folder.join("real/niivue_orient_a"), &[]);
    assert_eq!(code, 0);
    assert_eq!(report["images"].as_array().unwrap().len(), 24);
}

/// A valid uint8 NIfTI-1 file of 2 x 1 x 1 voxels, 1.5 mm, made by hand.
fn tiny_nifti() -> Vec<u8> {
    let mut bytes = vec![0u8; 354];
    bytes[..4].copy_from_slice(&348i32.to_le_bytes());
    for (n, size) in [3i16, 2, 1, 1, 1, 1, 1, 1].iter().enumerate() {
        bytes[40 + 2 * n..42 + 2 * n].copy_from_slice(&size.to_le_bytes());
    }
    bytes[70..72].copy_from_slice(&2i16.to_le_bytes());
    bytes[72..74].copy_from_slice(&8i16.to_le_bytes());
    bytes[108..112].copy_from_slice(&352f32.to_le_bytes());
    bytes[254..256].copy_from_slice(&1i16.to_le_bytes());
    for (row, column, value) in [
        (0, 0, -1.5f32),
        (1, 1, -1.5),
        (2, 2, 1.5),
        (0, 3, 10.0),
        (2, 3, -20.0),
    ] {
        let at = 280 + 16 * row + 4 * column;
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    bytes[344..348].copy_from_slice(b"n+1\0");
    bytes[352..].copy_from_slice(&[7, 9]);
    bytes
}

#[test]
fn the_report_has_every_field() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.nii"), tiny_nifti()).unwrap();
    std::fs::write(folder.path().join("b.txt"), "no image").unwrap();
    std::fs::write(folder.path().join(".hidden"), "not looked at").unwrap();
    let (report, code) = inspect(folder.path(), &["1,0,0".to_owned(), "5,0,0".to_owned()]);
    assert_eq!(code, 0);
    assert_eq!(report["images"].as_array().unwrap().len(), 1);
    assert_eq!(report["refused"].as_array().unwrap().len(), 1);
    assert_eq!(report["refused"][0]["code"], "unknown_format");
    let image = &report["images"][0];
    let expected = serde_json::json!({
        "format": "nifti1", "dtype": "uint8", "size_ijk": [2, 1, 1], "spacing_mm": [1.5, 1.5, 1.5],
        "origin_lps": [-10.0, 0.0, -20.0], "directions_lps": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        "affine_ras": [[-1.5, 0.0, 0.0, 10.0], [0.0, -1.5, 0.0, 0.0], [0.0, 0.0, 1.5, -20.0], [0.0, 0.0, 0.0, 1.0]],
        "range": [7.0, 9.0], "probes": [[1, 0, 0, 9.0], [5, 0, 0, null]],
        // sha256 of the bytes 07 00 09 00.
        "sha256_int16_ijk": "f8dda9e029e79a2094d0be7eff3f54eac893b71b15f872d36af69cc1c0652ab8",
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&image[key], value, "{key}");
    }
    assert_eq!(
        image["warnings"].as_array().unwrap().len(),
        1,
        "{}",
        image["warnings"]
    );
}

#[test]
fn text_output_and_exit_codes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.nii");
    std::fs::write(&path, tiny_nifti()).unwrap();
    let run = |args: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_fewlabel"))
            .arg("inspect")
            .args(args)
            .output()
            .unwrap()
    };
    let shown = run(&[path.to_str().unwrap(), "--probe", "0,0,0"]);
    let text = String::from_utf8(shown.stdout).unwrap();
    assert!(
        shown.status.success()
            && text.contains("size i j k  2 1 1")
            && text.contains("at 0,0,0    7"),
        "{text}"
    );
    assert_eq!(run(&["none.nii"]).status.code(), Some(1));
    assert_eq!(run(&[]).status.code(), Some(2));
    assert_eq!(
        run(&[path.to_str().unwrap(), "--probe", "1,2"])
            .status
            .code(),
        Some(2)
    );
}
