//! Label maps as DICOM Segmentation objects (PS3.3, A.51 and C.8.20), BINARY or LABELMAP.
//!
//! Frames lie on the slices of the scan, also of a tilted or uneven one, and refer to them. In a BINARY object a segment
//! has frames only where it is; one that is nowhere has none, and an object without any voxel has one empty frame. In
//! a LABELMAP object every slice has its frame, and so has the first segment of an uneven scan, because a reader could
//! not tell frames that are left out from slices that are far apart. Segment numbers are the label values.

use super::dataset::{Item, bad};
use super::encode::{Encoder, uid_of};
use super::origin::SourceFrame;
use super::scan::Scans;
use crate::imaging::color;
use crate::imaging::error::ImagingError;
use crate::imaging::terminology::{self, Code};
use crate::imaging::volume::Volume;

/// What made a segmentation.
#[derive(Debug, Clone)]
pub struct Algorithm {
    /// Name of the model.
    pub name: String,
    /// Its version, and that of the program.
    pub version: String,
    /// SHA-256 of its weights.
    pub sha256: String,
    /// When it was made, milliseconds since 1970-01-01 UTC.
    pub made_ms: i64,
    /// What of it is the model's.
    pub drawn: Drawn,
}

/// How a label came about (PS3.3, C.8.20.2, Segment Algorithm Type).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drawn {
    /// By a model alone.
    Automatically,
    /// By a person, who corrected what a model proposed.
    FromProposal,
    /// By a person alone.
    ByHand,
}

impl Drawn {
    /// The type of the algorithm.
    pub(super) fn term(self) -> &'static str {
        match self {
            Self::Automatically => "AUTOMATIC",
            Self::FromProposal => "SEMIAUTOMATIC",
            Self::ByHand => "MANUAL",
        }
    }

    /// What a reader should know.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Automatically => "Made by a machine, to be reviewed",
            Self::FromProposal => "Proposed by a machine, corrected by a person",
            Self::ByHand => "Drawn by a person",
        }
    }
}

/// How a Segmentation object holds its voxels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentationKind {
    /// One bit a voxel for each segment; every reader knows it.
    Binary,
    /// The label values (DICOM 2024c); smaller, and newer readers know it.
    LabelMap,
}

const MANUFACTURER: &str = "Fewlabel";
const DERIVATION: Code = Code::new("113076", "DCM", "Segmentation");
const PURPOSE: Code = Code::new(
    "121322",
    "DCM",
    "Source image for image processing operation",
);
const FAMILY: Code = Code::new("123109", "DCM", "Artificial Intelligence");

const PIXEL_MEASURES: u32 = 0x0028_9110;

/// One frame of the object.
struct Frame {
    /// Segment number; 0 in a label map.
    segment: u16,
    /// Number of the slice, from 0.
    slice: usize,
}

/// The bytes of a Segmentation object for labels on the grid of a scan. `names` are the label values with their names.
///
/// # Errors
/// Labels on another grid, values without a name, a scan whose files lack what the object has to repeat.
pub(super) fn encode(
    scans: &Scans,
    scan: usize,
    labels: &Volume<u16>,
    names: &[(u16, String)],
    by: &Algorithm,
    kind: SegmentationKind,
) -> Result<Vec<u8>, ImagingError> {
    let slices = scans.slices_of(scan, labels)?;
    if let Some(value) = slices
        .iter()
        .flat_map(|slice| slice.labels)
        .find(|value| **value > 0 && !names.iter().any(|(named, _)| named == *value))
    {
        return Err(ImagingError::LabelValues(format!(
            "the value {value} has no name"
        )));
    }
    let source = scans.first_data_set(scan)?;
    let root = source.root();
    let class = match kind {
        SegmentationKind::Binary => "1.2.840.10008.5.1.4.1.1.66.4",
        SegmentationKind::LabelMap => "1.2.840.10008.5.1.4.1.1.66.7",
    };
    let frames = frames(&slices, names, kind, scans.is_even(scan));
    let (bits, pixels) = pixels(&slices, &frames, names, kind);
    let seed = uid_of(&[
        scans.series_uid(scan).as_bytes(),
        by.sha256.as_bytes(),
        class.as_bytes(),
        &by.made_ms.to_le_bytes(),
        &pixels,
    ]);
    let uid = |what: &str| uid_of(&[what.as_bytes(), seed.as_bytes()]);
    let instance_uid = uid("instance");
    let [_, rows, columns] = labels.geometry.shape();
    let side = |n: usize| {
        u16::try_from(n).map_err(|_| bad(format!("{n} rows or columns do not fit into DICOM")))
    };

    let mut out = Encoder::default();
    let common = Common::new(root, by, &instance_uid, class)?;
    let text = |value: &str| common.readable(value);
    common.before_series(
        &mut out,
        "SEG",
        &text(&format!("{}: segmentation", by.name)),
    );
    referenced_series(&mut out, scans, scan, &slices);
    common.patient_and_equipment(&mut out);
    common.series(&mut out, &uid("series"), 300)?;
    out.copy(root, 0x0020_0052, b"UI")
        .put(0x0020_1040, b"LO", b"");
    let organization = uid("dimensions");
    let binary = kind == SegmentationKind::Binary;
    out.item(0x0020_9221, |item| {
        item.text(0x0020_9164, b"UI", &organization);
    });
    let segment_index = (0x0062_000b, 0x0062_000a, "Segment Number");
    let place_index = (0x0020_0032, 0x0020_9113, "Image Position (Patient)");
    let indices = match binary {
        true => vec![segment_index, place_index],
        false => vec![place_index],
    };
    out.sequence(0x0020_9222, indices, |item, (pointer, group, label)| {
        item.text(0x0020_9164, b"UI", &organization)
            .tag(0x0020_9165, pointer)
            .tag(0x0020_9167, group)
            .text(0x0020_9421, b"LO", label);
    });
    out.words(0x0028_0002, &[1])
        .text(0x0028_0004, b"CS", "MONOCHROME2")
        .text(0x0028_0008, b"IS", &frames.len().to_string())
        .words(0x0028_0010, &[side(rows)?])
        .words(0x0028_0011, &[side(columns)?])
        .words(0x0028_0100, &[bits])
        .words(0x0028_0101, &[bits])
        .words(0x0028_0102, &[bits - 1])
        .words(0x0028_0103, &[0]);
    if !binary {
        out.words(0x0028_0120, &[0]);
    }
    out.text(0x0028_2110, b"CS", "00").text(
        0x0062_0001,
        b"CS",
        if binary { "BINARY" } else { "LABELMAP" },
    );
    out.sequence(0x0062_0002, names, |item, (value, name)| {
        segment(item, *value, &text(name), name, by, &uid(name));
    });
    if binary {
        out.text(0x0062_0013, b"CS", "NO");
    }
    out.text(0x0070_0080, b"CS", "SEGMENTATION")
        .text(0x0070_0081, b"LO", by.drawn.words())
        .text(0x0070_0084, b"PN", MANUFACTURER);
    out.item(0x5200_9229, |shared| {
        let [along_row, along_column] = slices[0].source.directions;
        shared.item(0x0020_9116, |item| {
            item.decimals(0x0020_0037, &[along_row, along_column].concat());
        });
        shared.item(PIXEL_MEASURES, |item| {
            let depth = scans.slice_distance_mm(scan);
            let [between_columns, between_rows] = slices[0].source.spacing;
            item.decimals(0x0018_0050, &[depth]);
            if scans.is_even(scan) {
                item.decimals(0x0018_0088, &[depth]);
            }
            item.decimals(0x0028_0030, &[between_rows, between_columns]);
        });
    });
    out.sequence(0x5200_9230, &frames, |item, frame| {
        let source = &slices[frame.slice].source;
        item.item(0x0008_9124, |derivation| {
            derivation.item(0x0008_2112, |image| {
                image.text(0x0008_1150, b"UI", &source.class_uid).text(
                    0x0008_1155,
                    b"UI",
                    &source.instance_uid,
                );
                if let Some(number) = source.frame_number {
                    image.text(0x0008_1160, b"IS", &number.to_string());
                }
                image
                    .text(0x0028_135a, b"CS", "YES")
                    .code(0x0040_a170, &PURPOSE);
            });
            derivation.code(0x0008_9215, &DERIVATION);
        });
        let place = frame.slice as u32 + 1;
        let index = match binary {
            true => vec![u32::from(frame.segment), place],
            false => vec![place],
        };
        item.item(0x0020_9111, |content| {
            content.longs(0x0020_9157, &index);
        });
        item.item(0x0020_9113, |plane| {
            plane.decimals(0x0020_0032, &source.position);
        });
        if binary {
            item.item(0x0062_000a, |segment| {
                segment.words(0x0062_000b, &[frame.segment]);
            });
        }
    });
    out.put(0x7fe0_0010, if bits > 8 { b"OW" } else { b"OB" }, &pixels);
    Ok(out.into_file(class, &instance_uid))
}

/// A slice of the scan with its labels.
pub(super) struct LabelledSlice<'l> {
    pub source: SourceFrame,
    pub labels: &'l [u16],
}

fn frames(
    slices: &[LabelledSlice<'_>],
    names: &[(u16, String)],
    kind: SegmentationKind,
    is_even: bool,
) -> Vec<Frame> {
    if kind == SegmentationKind::LabelMap {
        return (0..slices.len())
            .map(|slice| Frame { segment: 0, slice })
            .collect();
    }
    let mut frames = Vec::new();
    for (n, &(segment, _)) in names.iter().enumerate() {
        let everywhere = n == 0 && !is_even;
        for (slice, labelled) in slices.iter().enumerate() {
            if everywhere || labelled.labels.contains(&segment) {
                frames.push(Frame { segment, slice });
            }
        }
    }
    if let (true, Some((segment, _))) = (frames.is_empty(), names.first()) {
        frames.push(Frame {
            segment: *segment,
            slice: 0,
        });
    }
    frames
}

/// Bits of a pixel, and the pixel data.
fn pixels(
    slices: &[LabelledSlice<'_>],
    frames: &[Frame],
    names: &[(u16, String)],
    kind: SegmentationKind,
) -> (u16, Vec<u8>) {
    let of = |frame: &Frame| slices[frame.slice].labels;
    if kind == SegmentationKind::LabelMap {
        let values = frames.iter().flat_map(of).copied();
        return match names.iter().all(|(value, _)| *value < 256) {
            true => (8, values.map(|value| value as u8).collect()),
            false => (16, values.flat_map(u16::to_le_bytes).collect()),
        };
    }
    // Frames follow each other without gaps between them; the first pixel is the lowest bit (PS3.5, 8.1.1).
    let count: usize = frames.iter().map(|frame| of(frame).len()).sum();
    let mut bytes = vec![0u8; count.div_ceil(8)];
    let mut at = 0;
    for frame in frames {
        for &value in of(frame) {
            if value == frame.segment {
                bytes[at / 8] |= 1 << (at % 8);
            }
            at += 1;
        }
    }
    (1, bytes)
}

fn segment(item: &mut Encoder, value: u16, label: &str, name: &str, by: &Algorithm, uid: &str) {
    let property = terminology::of_any_name(name);
    item.code(0x0062_0003, &property.category)
        .words(0x0062_0004, &[value])
        .text(0x0062_0005, b"LO", label);
    if by.drawn != Drawn::ByHand {
        item.item(0x0062_0007, |algorithm| {
            algorithm
                .code(0x0066_002f, &FAMILY)
                .text(0x0066_0031, b"LO", &by.version)
                .text(0x0066_0032, b"LT", &format!("weights sha256 {}", by.sha256))
                .text(0x0066_0036, b"LO", &by.name);
        });
    }
    item.text(0x0062_0008, b"CS", by.drawn.term());
    if by.drawn != Drawn::ByHand {
        item.text(0x0062_0009, b"LO", &by.name);
    }
    item.words(0x0062_000d, &cie_lab(color::of_value(value)))
        .item(0x0062_000f, |kind| {
            kind.text(0x0008_0100, b"SH", property.r#type.value)
                .text(0x0008_0102, b"SH", property.r#type.scheme)
                .text(0x0008_0104, b"LO", property.r#type.meaning);
            if let Some(side) = &property.modifier {
                kind.code(0x0062_0011, side);
            }
        })
        .put(0x0062_0020, b"UT", label.as_bytes())
        .text(0x0062_0021, b"UI", uid);
}

fn referenced_series(out: &mut Encoder, scans: &Scans, scan: usize, slices: &[LabelledSlice<'_>]) {
    // An instance of several frames is named once.
    let mut instances: Vec<&SourceFrame> = Vec::new();
    for slice in slices {
        let source = &slice.source;
        if source.frame_number.is_none()
            || instances
                .last()
                .is_none_or(|last| last.instance_uid != source.instance_uid)
        {
            instances.push(source);
        }
    }
    out.item(0x0008_1115, |series| {
        series
            .sequence(0x0008_114a, instances, |item, source| {
                item.text(0x0008_1150, b"UI", &source.class_uid).text(
                    0x0008_1155,
                    b"UI",
                    &source.instance_uid,
                );
            })
            .text(0x0020_000e, b"UI", scans.series_uid(scan));
    });
}

/// What every object of ours has: the patient and study of its scan, and our equipment.
pub(super) struct Common<'d> {
    root: Item<'d>,
    instance_uid: String,
    class_uid: &'static str,
    version: String,
    date: String,
    time: String,
    /// Whether text may be other than ASCII.
    unicode: bool,
}

impl<'d> Common<'d> {
    pub fn new(
        root: Item<'d>,
        by: &Algorithm,
        instance_uid: &str,
        class_uid: &'static str,
    ) -> Result<Self, ImagingError> {
        let made = jiff::Timestamp::from_millisecond(by.made_ms)
            .map_err(|_| bad("the time of the segmentation is out of range"))?;
        let copied = [
            0x0008_0050,
            0x0008_0090,
            0x0010_0010,
            0x0010_0020,
            0x0020_0010,
        ];
        let character_set = root.text(0x0008_0005);
        Ok(Self {
            unicode: match character_set.as_deref() {
                Some("ISO_IR 192") => true,
                Some(_) => false,
                None => copied
                    .iter()
                    .all(|&tag| root.bytes(tag).unwrap_or_default().is_ascii()),
            },
            root,
            instance_uid: instance_uid.to_owned(),
            class_uid,
            version: by.version.clone(),
            date: made.strftime("%Y%m%d").to_string(),
            time: made.strftime("%H%M%S").to_string(),
        })
    }

    /// Date of the result.
    pub fn date(&self) -> &str {
        &self.date
    }

    /// Time of the result, UTC.
    pub fn time(&self) -> &str {
        &self.time
    }

    /// Text that the character set of the file can hold.
    pub fn readable(&self, text: &str) -> String {
        if self.unicode {
            return text.to_owned();
        }
        text.chars()
            .map(|c| if c.is_ascii() { c } else { '?' })
            .collect()
    }

    /// Groups 0008 up to the referenced series.
    pub fn before_series(&self, out: &mut Encoder, modality: &str, description: &str) {
        let root = self.root;
        if self.unicode {
            out.text(0x0008_0005, b"CS", "ISO_IR 192");
        } else {
            out.copy(root, 0x0008_0005, b"CS");
        }
        if modality == "SEG" {
            out.text(0x0008_0008, b"CS", "DERIVED\\PRIMARY");
        }
        out.put(0x0008_0016, b"UI", self.class_uid.as_bytes())
            .text(0x0008_0018, b"UI", &self.instance_uid)
            .copy(root, 0x0008_0020, b"DA")
            .text(0x0008_0021, b"DA", &self.date);
        if modality == "SEG" {
            out.text(0x0008_0023, b"DA", &self.date);
        }
        out.copy(root, 0x0008_0030, b"TM")
            .text(0x0008_0031, b"TM", &self.time);
        if modality == "SEG" {
            out.text(0x0008_0033, b"TM", &self.time);
        }
        out.copy(root, 0x0008_0050, b"SH")
            .text(0x0008_0060, b"CS", modality)
            .text(0x0008_0070, b"LO", MANUFACTURER)
            .copy(root, 0x0008_0090, b"PN")
            .text(0x0008_103e, b"LO", description);
        if modality == "RTSTRUCT" {
            out.put(0x0008_1070, b"PN", b"");
        }
        out.text(0x0008_1090, b"LO", MANUFACTURER);
    }

    /// The patient, and the equipment of group 0018.
    pub fn patient_and_equipment(&self, out: &mut Encoder) {
        out.copy(self.root, 0x0010_0010, b"PN")
            .copy(self.root, 0x0010_0020, b"LO")
            .copy(self.root, 0x0010_0030, b"DA")
            .copy(self.root, 0x0010_0040, b"CS")
            .text(0x0018_1000, b"LO", "0")
            .text(0x0018_1020, b"LO", &self.version);
    }

    /// Study and series.
    pub fn series(&self, out: &mut Encoder, uid: &str, number: u32) -> Result<(), ImagingError> {
        if self.root.text(0x0020_000d).is_none() {
            return Err(bad(
                "the scan has no Study Instance UID, which a result has to name",
            ));
        }
        out.copy(self.root, 0x0020_000d, b"UI")
            .text(0x0020_000e, b"UI", uid)
            .copy(self.root, 0x0020_0010, b"SH")
            .text(0x0020_0011, b"IS", &number.to_string())
            .text(0x0020_0013, b"IS", "1");
        Ok(())
    }
}

/// A colour as DICOM writes it: CIE L*a*b* under D50, scaled to 16 bits (PS3.3, C.10.7.1.1).
fn cie_lab(rgb: [u8; 3]) -> [u16; 3] {
    let linear = rgb.map(|c| {
        let c = f64::from(c) / 255.0;
        if c <= 0.04045 {
            c / 12.92
        } else {
            ((c + 0.055) / 1.055).powf(2.4)
        }
    });
    // sRGB to XYZ relative to the D50 white point (Bradford).
    let white = [0.96422, 1.0, 0.82521];
    let matrix = [
        [0.4360747, 0.3850649, 0.1430804],
        [0.2225045, 0.7168786, 0.0606169],
        [0.0139322, 0.0971045, 0.7141733],
    ];
    let [x, y, z] = std::array::from_fn(|row: usize| {
        let sum: f64 = (0..3).map(|n| matrix[row][n] * linear[n]).sum();
        let t = sum / white[row];
        if t > 216.0 / 24389.0 {
            t.cbrt()
        } else {
            (24389.0 / 27.0 * t + 16.0) / 116.0
        }
    });
    let scale = |value: f64, low: f64, range: f64| {
        ((value - low) / range * 65535.0)
            .round()
            .clamp(0.0, 65535.0) as u16
    };
    [
        scale(116.0 * y - 16.0, 0.0, 100.0),
        scale(500.0 * (x - y), -128.0, 255.0),
        scale(200.0 * (y - z), -128.0, 255.0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours() {
        assert_eq!(cie_lab([0, 0, 0]), [0, 32896, 32896]);
        let [l, a, b] = cie_lab([255, 255, 255]);
        assert!(l > 65500 && a.abs_diff(32896) < 40 && b.abs_diff(32896) < 40);
    }
}
