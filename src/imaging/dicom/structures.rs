//! Label maps as RT Structure Sets (PS3.3, A.19 and C.8.8), and back.
//!
//! Contours are closed and planar, on the slices of the scan, and refer to them; see `contour` for holes. Regions are
//! marked as made automatically and not approved. The file is Implicit VR Little Endian, because long contours do not
//! fit into a value of 16 bit length.

use std::collections::{BTreeMap, BTreeSet};

use super::contour::{Polygon, outlines, toggle_inside};
use super::dataset::{DataSet, Item, bad};
use super::encode::{Encoder, uid_of};
use super::layers::{Layers, Mask};
use super::origin::SourceFrame;
use super::scan::Scans;
use super::segmentation::{Algorithm, Common, Drawn, LabelledSlice};
use crate::imaging::budget::Budget;
use crate::imaging::color;
use crate::imaging::error::ImagingError;
use crate::imaging::geometry::Geometry;
use crate::imaging::label::{LabelFile, Segment};
use crate::imaging::volume::Volume;

const CLASS: &str = "1.2.840.10008.5.1.4.1.1.481.3";
const STUDY_CLASS: &str = "1.2.840.10008.3.1.2.3.1";
/// Contours further from every slice than this, in slices, belong to another grid.
const OFF_SLICE: f64 = 0.5;

/// The bytes of a structure set for labels on the grid of a scan.
///
/// # Errors
/// Labels on another grid, a scan whose files lack what the object has to repeat.
pub(super) fn encode(
    scans: &Scans,
    scan: usize,
    labels: &Volume<u16>,
    names: &[(u16, String)],
    by: &Algorithm,
) -> Result<Vec<u8>, ImagingError> {
    let slices = scans.slices_of(scan, labels)?;
    let [_, rows, columns] = labels.geometry.shape();
    let source = scans.first_data_set(scan)?;
    let root = source.root();
    let frame_of_reference = root.text(0x0020_0052).ok_or_else(|| {
        bad("the scan has no Frame of Reference UID, which contours have to name")
    })?;
    let voxels: Vec<u8> = labels.voxels.iter().flat_map(|v| v.to_le_bytes()).collect();
    let seed = uid_of(&[
        scans.series_uid(scan).as_bytes(),
        by.sha256.as_bytes(),
        &by.made_ms.to_le_bytes(),
        &voxels,
    ]);
    let uid = |what: &str| uid_of(&[what.as_bytes(), seed.as_bytes()]);
    let instance_uid = uid("structures");
    let common = Common::new(root, by, &instance_uid, CLASS)?;
    let mut out = Encoder::implicit();
    common.before_series(
        &mut out,
        "RTSTRUCT",
        &common.readable(&format!("{}: contours", by.name)),
    );
    common.patient_and_equipment(&mut out);
    common.series(&mut out, &uid("structure series"), 301)?;
    out.text(0x0020_0052, b"UI", &frame_of_reference)
        .put(0x0020_1040, b"LO", b"");
    out.text(
        0x3006_0002,
        b"SH",
        match by.drawn {
            Drawn::Automatically => "AI contours",
            Drawn::FromProposal | Drawn::ByHand => "Contours",
        },
    )
    .text(0x3006_0004, b"LO", &common.readable(&by.name))
    .text(0x3006_0006, b"ST", by.drawn.words())
    .text(0x3006_0008, b"DA", common.date())
    .text(0x3006_0009, b"TM", common.time());
    out.item(0x3006_0010, |frame| {
        frame
            .text(0x0020_0052, b"UI", &frame_of_reference)
            .item(0x3006_0012, |study| {
                study
                    .text(0x0008_1150, b"UI", STUDY_CLASS)
                    .text(
                        0x0008_1155,
                        b"UI",
                        &root.text(0x0020_000d).unwrap_or_default(),
                    )
                    .item(0x3006_0014, |series| {
                        series
                            .text(0x0020_000e, b"UI", scans.series_uid(scan))
                            .sequence(0x3006_0016, &slices, |item, slice| {
                                image(item, &slice.source);
                            });
                    });
            });
    });
    out.sequence(0x3006_0020, names, |roi, (value, name)| {
        roi.text(0x3006_0022, b"IS", &value.to_string())
            .text(0x3006_0024, b"UI", &frame_of_reference)
            .text(0x3006_0026, b"LO", &common.readable(name))
            .text(0x3006_0036, b"CS", by.drawn.term())
            .text(
                0x3006_0038,
                b"LO",
                &common.readable(&match by.drawn {
                    Drawn::ByHand => by.drawn.words().to_owned(),
                    _ => format!("AI: {} {}", by.name, by.version),
                }),
            );
    });
    out.sequence(0x3006_0039, names, |roi, (value, _)| {
        let rgb = color::of_value(*value).map(|c| c.to_string()).join("\\");
        roi.text(0x3006_002a, b"IS", &rgb);
        let contours: Vec<(&LabelledSlice<'_>, Polygon)> = slices
            .iter()
            .filter(|slice| slice.labels.contains(value))
            .flat_map(|slice| {
                let mask: Vec<bool> = slice.labels.iter().map(|label| label == value).collect();
                let polygons = outlines(&mask, columns, rows);
                polygons.into_iter().map(move |polygon| (slice, polygon))
            })
            .collect();
        // A region that is nowhere has no contours.
        if !contours.is_empty() {
            roi.sequence(0x3006_0040, contours, |item, (slice, polygon)| {
                contour(item, &slice.source, &polygon);
            });
        }
        roi.text(0x3006_0084, b"IS", &value.to_string());
    });
    out.sequence(0x3006_0080, names, |observation, (value, name)| {
        observation
            .text(0x3006_0082, b"IS", &value.to_string())
            .text(0x3006_0084, b"IS", &value.to_string())
            .text(0x3006_0085, b"SH", &common.readable(name))
            .text(0x3006_0088, b"ST", by.drawn.words())
            .text(0x3006_00a4, b"CS", "")
            .put(0x3006_00a6, b"PN", b"");
    });
    out.text(0x300e_0002, b"CS", "UNAPPROVED");
    Ok(out.into_file(CLASS, &instance_uid))
}

fn image(item: &mut Encoder, source: &SourceFrame) {
    item.text(0x0008_1150, b"UI", &source.class_uid)
        .text(0x0008_1155, b"UI", &source.instance_uid);
    if let Some(number) = source.frame_number {
        item.text(0x0008_1160, b"IS", &number.to_string());
    }
}

fn contour(item: &mut Encoder, source: &SourceFrame, polygon: &[[f64; 2]]) {
    let [along_row, along_column] = source.directions;
    // A micrometre is enough, and keeps the text short.
    let rounded = |mm: f64| (mm * 1000.0).round() / 1000.0;
    let points: Vec<f64> = polygon
        .iter()
        .flat_map(|&[x, y]| {
            let (x, y) = (x * source.spacing[0], y * source.spacing[1]);
            (0..3)
                .map(move |w| rounded(source.position[w] + along_row[w] * x + along_column[w] * y))
        })
        .collect();
    item.item(0x3006_0016, |item| image(item, source))
        .text(0x3006_0042, b"CS", "CLOSED_PLANAR")
        .text(0x3006_0046, b"IS", &polygon.len().to_string())
        .decimals(0x3006_0050, &points);
}

/// The regions of a structure set as labels on a grid; those that overlap come in layers. Several contours of one region
/// in one slice cut out of each other.
///
/// # Errors
/// Damaged data, or contours that lie on no slice of the grid.
pub(super) fn decode(
    set: &DataSet,
    grid: &Geometry,
    budget: &Budget,
) -> Result<LabelFile, ImagingError> {
    let root = set.root();
    let mut contours_of: BTreeMap<u16, Vec<Item<'_>>> = BTreeMap::new();
    for roi in root.items(0x3006_0039) {
        let number = number(roi, 0x3006_0084)?;
        contours_of
            .entry(number)
            .or_default()
            .extend(roi.items(0x3006_0040));
    }
    let regions = root.items(0x3006_0020);
    if regions.len() > usize::from(u16::MAX) {
        return Err(bad(format!("{} regions", regions.len())));
    }
    let [count, rows, columns] = grid.shape();
    let mut layers = Layers::new(grid.shape(), budget)?;
    let (mut segments, mut numbers) = (Vec::new(), BTreeSet::new());
    let mut warnings = set.warnings.clone();
    for (value, region) in (1..=u16::MAX).zip(regions) {
        let number_of_roi = number(region, 0x3006_0022)?;
        if !numbers.insert(number_of_roi) {
            return Err(bad(format!("two regions have the number {number_of_roi}")));
        }
        let name = region
            .text(0x3006_0026)
            .unwrap_or_else(|| format!("ROI_{number_of_roi}"));
        let mut mask = Mask::new();
        let mut skipped = 0;
        for &item in contours_of.get(&number_of_roi).into_iter().flatten() {
            let kind = item.text(0x3006_0042).unwrap_or_default();
            if !kind.starts_with("CLOSED_PLANAR") && !kind.starts_with("CLOSEDPLANAR") {
                skipped += 1;
                continue;
            }
            let points = item
                .decimals(0x3006_0050)?
                .ok_or_else(|| bad("a contour has no points"))?;
            let (points, rest) = points.as_chunks::<3>();
            if !rest.is_empty() || points.is_empty() {
                return Err(bad("a contour has incomplete points"));
            }
            let indices: Vec<[f64; 3]> = points.iter().map(|&mm| grid.to_index(mm)).collect();
            let middle = indices.iter().map(|i| i[0]).sum::<f64>() / indices.len() as f64;
            let slice = middle.round();
            let is_flat = indices.iter().all(|i| (i[0] - slice).abs() <= OFF_SLICE);
            if !is_flat || !(0.0..count as f64).contains(&slice) {
                return Err(ImagingError::Unsupported(format!(
                    "a contour of {name:?} lies on no slice of the image"
                )));
            }
            let polygon: Vec<[f64; 2]> = indices.iter().map(|i| [i[2], i[1]]).collect();
            let part = mask
                .entry(slice as usize)
                .or_insert_with(|| vec![false; rows * columns]);
            toggle_inside(&polygon, columns, rows, part);
        }
        if skipped > 0 {
            warnings.push(format!("{skipped} open contours or points were left out"));
        }
        let layer = layers.put(value, &mask)?;
        segments.push(Segment {
            id: format!("ROI_{number_of_roi}"),
            name,
            value,
            layer,
            color: None,
        });
    }
    Ok(LabelFile {
        geometry: *grid,
        layers: layers.into_inner(),
        segments,
        warnings,
    })
}

fn number(item: Item<'_>, tag: u32) -> Result<u16, ImagingError> {
    match item.decimal::<1>(tag)? {
        Some([number]) if number.fract() == 0.0 && (0.0..65536.0).contains(&number) => {
            Ok(number as u16)
        }
        _ => Err(bad("a region has no number")),
    }
}
