//! Clicks and strokes on a scan that is held in memory.

use std::path::Path;
use std::time::Instant;

use super::infer::Proposal;
use super::models::{Window, shrinking};
use super::scans::{HeldScan, MOST_BYTES};
use super::{Failure, Reporter, Worker};
use crate::imaging::scribbles::{Mark, Region, refine};
use crate::imaging::{Budget, Geometry, LabelFile, Volume, read_label};
use crate::model::{Click, ModelError, Segmentation};
use crate::project::on_grid;
use crate::project::requests::{Interaction, Scribbles};
use crate::rounds::registry::ModelVersion;

/// Where a stroke file says what its values are.
struct Segments<'a> {
    file: &'a LabelFile,
    said: &'a [(String, u16)],
}

impl Segments<'_> {
    /// Layer and value of a segment.
    fn find(&self, name: &str) -> Option<(usize, u16)> {
        if self.file.segments.is_empty() {
            let said = self.said.iter().find(|(said, _)| said == name);
            return said.map(|(_, value)| (0, *value));
        }
        let own = self
            .file
            .segments
            .iter()
            .find(|segment| segment.name == name);
        own.map(|segment| (segment.layer, segment.value))
    }
}

impl Worker {
    /// A proposal that takes clicks into account. The first one on a scan asks the network about all of it, further ones
    /// about the windows that see other clicks than before.
    pub(super) fn propose_with_clicks(
        &mut self,
        asked: (&ModelVersion, Window),
        image: &Path,
        budget: &Budget,
        clicks: &[Click],
        reporter: &Reporter,
    ) -> Result<Proposal, Failure> {
        let read = Instant::now();
        let mut held = self.scans.take(image, budget)?;
        let read_s = read.elapsed().as_secs_f64();
        let (version, window) = asked;
        let made = shrinking(window, |window| {
            self.with_clicks(&mut held, (version, window), clicks, reporter)
        });
        self.scans.put(held);
        let (made, window) = made?;
        Ok(Proposal::new(made, Some(window), read_s))
    }

    /// Points of a structure that the client does not name, as clicks: it is the one nearest to the first of them in what
    /// the model says without points, so that the answer follows from the scan and the points alone.
    pub(super) fn named(
        &mut self,
        (version, window): (&ModelVersion, Window),
        image: &Path,
        budget: &Budget,
        [foreground, background]: [&[[usize; 3]]; 2],
        reporter: &Reporter,
    ) -> Result<Interaction, Failure> {
        let mut held = self.scans.take(image, budget)?;
        let alone = shrinking(window, |window| {
            let key = (version.weights_sha256.clone(), window);
            if held.alone.as_ref().is_none_or(|(known, _)| *known != key) {
                let (made, _) = self.with_clicks(&mut held, (version, window), &[], reporter)?;
                held.alone = Some((key, made.labels));
            }
            Ok(())
        });
        let labels = held.alone.as_ref().map(|(_, labels)| labels);
        let value = labels
            .zip(foreground.first())
            .and_then(|(labels, point)| nearest(labels, *point));
        self.scans.put(held);
        alone?;
        let schema = self.project.schema();
        let found = value.and_then(|value| {
            let mut values = schema.values().into_iter();
            values.find(|(of, _)| *of == value)
        });
        let (value, name) = found.ok_or_else(|| {
            Failure::Refused(format!(
                "the request names no label, and the model finds no structure near the points; name one of: {}; or use the \
                 model's -deepedit form, which takes points of every label",
                schema.names().join(", ")
            ))
        })?;
        let of = |class: u16| {
            move |voxel: &[usize; 3]| Click {
                class,
                voxel: *voxel,
            }
        };
        let clicks = foreground.iter().map(of(value));
        Ok(Interaction::Clicks {
            clicks: clicks.chain(background.iter().map(of(0))).collect(),
            only: Some(name),
        })
    }

    fn with_clicks(
        &mut self,
        held: &mut HeldScan,
        (version, window): (&ModelVersion, Window),
        clicks: &[Click],
        reporter: &Reporter,
    ) -> Result<(Segmentation, [usize; 3]), Failure> {
        let segmenter = self
            .models
            .get(version, window, self.device, self.precision)?;
        let patch = segmenter.manifest().patch;
        let on_window = &mut |_: usize, _: usize| reporter.flow();
        if segmenter.open_bytes(&held.scan.geometry) > MOST_BYTES {
            held.open = None;
            let made = segmenter.segment(&held.scan, clicks, on_window);
            return Ok((made.map_err(told)?, patch));
        }
        let network = Instant::now();
        let asked = self.open(held, (version, window), clicks, reporter)?;
        let network_s = network.elapsed().as_secs_f64();
        let finish = Instant::now();
        let Some((_, open)) = &held.open else {
            return Err(Failure::Error("the scan is not open".to_owned()));
        };
        let made = Segmentation {
            labels: open.labels(),
            timings: vec![
                ("network", network_s),
                ("finish", finish.elapsed().as_secs_f64()),
            ],
            windows: asked,
            windows_skipped: open.windows()[1],
        };
        Ok((made, patch))
    }

    /// Makes a scan open for a model version with these clicks; returns how many times the network was asked.
    fn open(
        &mut self,
        held: &mut HeldScan,
        (version, window): (&ModelVersion, Window),
        clicks: &[Click],
        reporter: &Reporter,
    ) -> Result<usize, Failure> {
        let segmenter = self
            .models
            .get(version, window, self.device, self.precision)?;
        let on_window = &mut |_: usize, _: usize| reporter.flow();
        let key = (version.weights_sha256.clone(), window);
        // Taken out: after an error it would hold half of the change.
        let (open, asked) = match held.open.take().filter(|(known, _)| *known == key) {
            Some((_, mut open)) => {
                let asked = segmenter
                    .update(&mut open, clicks, on_window)
                    .map_err(told)?;
                (open, asked)
            }
            None => {
                let open = segmenter
                    .open(&held.scan, clicks, on_window)
                    .map_err(told)?;
                let asked = open.windows()[0];
                (open, asked)
            }
        };
        held.open = Some((key, open));
        Ok(asked)
    }

    /// One structure, as value 1, after strokes. `prior` is the version whose probabilities are refined.
    pub(super) fn refine(
        &mut self,
        scribbles: &Scribbles,
        prior: Option<(&ModelVersion, Window)>,
        image: &Path,
        budget: &Budget,
        reporter: &Reporter,
    ) -> Result<Proposal, Failure> {
        let read = Instant::now();
        let mut held = self.scans.take(image, budget)?;
        let read_s = read.elapsed().as_secs_f64();
        let made = self.refined(&mut held, scribbles, prior, reporter);
        self.scans.put(held);
        let (made, window) = made?;
        Ok(Proposal::new(made, window, read_s))
    }

    /// The window is that of the model, when it was asked.
    fn refined(
        &mut self,
        held: &mut HeldScan,
        scribbles: &Scribbles,
        prior: Option<(&ModelVersion, Window)>,
        reporter: &Reporter,
    ) -> Result<(Segmentation, Option<[usize; 3]>), Failure> {
        let prepare = Instant::now();
        let geometry = held.scan.geometry;
        let region = region(scribbles.roi, &geometry)?;
        let marks = marks(scribbles, &geometry)?;
        let prepare_s = prepare.elapsed().as_secs_f64();

        let network = Instant::now();
        let class = self.project.schema().value_of(&scribbles.label);
        let (mut probability, mut asked, mut patch) = (None, 0, None);
        if let (Some((version, window)), Some(class)) = (prior, class) {
            shrinking(window, |window| {
                let segmenter = self
                    .models
                    .get(version, window, self.device, self.precision)?;
                // Without room for the model's logits the strokes alone decide.
                if segmenter.open_bytes(&geometry) <= MOST_BYTES {
                    patch = Some(segmenter.manifest().patch);
                    asked = self.open(held, (version, window), &[], reporter)?;
                    let open = held.open.as_ref();
                    probability = open.map(|(_, open)| region.cut(&open.probability(class)));
                }
                Ok(())
            })?;
        }
        let network_s = network.elapsed().as_secs_f64();

        let finish = Instant::now();
        let mask = refine(
            &held.scan,
            &marks,
            region,
            probability.as_deref(),
            &scribbles.options,
        )
        .map_err(|error| Failure::Refused(error.to_string()))?;
        let mut labels: Vec<u16> = marks
            .iter()
            .map(|mark| u16::from(matches!(mark, Mark::Current | Mark::Foreground)))
            .collect();
        region.paste(&mask, &mut labels, geometry.shape());
        let made = Segmentation {
            labels: Volume {
                geometry,
                voxels: labels,
            },
            timings: vec![
                ("prepare", prepare_s),
                ("network", network_s),
                ("finish", finish.elapsed().as_secs_f64()),
            ],
            windows: asked,
            windows_skipped: 0,
        };
        Ok((made, patch))
    }
}

/// What the client has to hear of an error of the model.
fn told(error: ModelError) -> Failure {
    match error {
        ModelError::Stopped => Failure::Stopped,
        ModelError::Clicks(reason) => Failure::Refused(reason),
        other => Failure::from(other),
    }
}

/// The structure nearest to a voxel `[z, y, x]`, in mm; none on an empty label map.
fn nearest(labels: &Volume<u16>, from: [usize; 3]) -> Option<u16> {
    let ([_, h, w], mm) = (labels.geometry.shape(), labels.geometry.spacing_mm());
    let distance = |at: usize| -> f64 {
        let voxel = [at / (h * w), at / w % h, at % w];
        (0..3)
            .map(|axis| (voxel[axis].abs_diff(from[axis]) as f64 * mm[axis]).powi(2))
            .sum()
    };
    let structures = labels
        .voxels
        .iter()
        .enumerate()
        .filter(|(_, value)| **value > 0);
    structures
        .map(|(at, value)| (distance(at), *value))
        .min_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, value)| value)
}

/// The box in array order, clipped to the image; the whole image without one.
fn region(roi: Option<[i64; 6]>, image: &Geometry) -> Result<Region, Failure> {
    let shape = image.shape();
    let Some(roi) = roi else {
        return Ok(Region::whole(shape));
    };
    let (mut low, mut high) = ([0; 3], [0; 3]);
    for axis in 0..3 {
        // i is the last array axis.
        let (a, b) = (roi[4 - 2 * axis], roi[5 - 2 * axis]);
        let (first, last) = (a.min(b).max(0), a.max(b).min(shape[axis] as i64 - 1));
        if first > last {
            let [z, y, x] = shape;
            return Err(Failure::Refused(format!(
                "the box (ROI) {roi:?} lies outside of the image, which has {x} x {y} x {z} voxels; move it or remove it, then \
                 update again; nothing was changed"
            )));
        }
        (low[axis], high[axis]) = (first as usize, last as usize + 1);
    }
    Ok(Region { low, high })
}

/// What the stroke file says of each voxel of the image.
fn marks(scribbles: &Scribbles, image: &Geometry) -> Result<Vec<Mark>, Failure> {
    let budget = Budget {
        follow_files: false,
        ..Budget::default()
    };
    let refused = |reason: String| Failure::Refused(format!("the strokes are refused: {reason}"));
    let file = read_label(&scribbles.file, &budget).map_err(|error| refused(error.to_string()))?;
    let file = on_grid(file, image).map_err(|error| refused(error.to_string()))?;
    let segments = Segments {
        file: &file,
        said: &scribbles.segments,
    };
    let mut marks = vec![Mark::None; image.voxel_count()];
    // Strokes lie above the segment; of two that lie one over the other, the foreground is what was meant last.
    for (name, mark) in [
        (scribbles.label.as_str(), Mark::Current),
        (Scribbles::BACKGROUND, Mark::Background),
        (Scribbles::FOREGROUND, Mark::Foreground),
    ] {
        let Some((layer, value)) = segments.find(name).filter(|(_, value)| *value > 0) else {
            continue;
        };
        let Some(layer) = file.layers.get(layer) else {
            continue;
        };
        for (to, found) in marks.iter_mut().zip(layer) {
            if *found == value {
                *to = mark;
            }
        }
    }
    Ok(marks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_structure_is_nearest_in_mm() {
        let steps = [[0.0, 0.0, 5.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]];
        let grid = Geometry::new([4, 9, 9], [0.0; 3], steps).unwrap();
        let mut labels = Volume::new(grid, vec![0; 4 * 81]).unwrap();
        assert_eq!(nearest(&labels, [1, 4, 4]), None);
        labels.voxels[2 * 81 + 4 * 9 + 4] = 1;
        labels.voxels[81 + 4 * 9 + 8] = 2;
        assert_eq!(
            nearest(&labels, [1, 4, 4]),
            Some(2),
            "4 mm, and not one slice of 5 mm"
        );
        assert_eq!(nearest(&labels, [3, 4, 5]), Some(1));
    }

    #[test]
    fn boxes_are_sorted_turned_and_clipped() {
        let steps = [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]];
        let image = Geometry::new([10, 20, 30], [0.0; 3], steps).unwrap();
        let of = |roi| region(roi, &image).map_err(|_| ());
        assert_eq!(of(None), Ok(Region::whole([10, 20, 30])));
        // Slicer's pairs come in any order and may reach over the edge.
        let expected = Region {
            low: [0, 4, 25],
            high: [3, 8, 30],
        };
        assert_eq!(of(Some([40, 25, 4, 7, 2, -5])), Ok(expected));
        for outside in [
            [30, 40, 0, 9, 0, 9],
            [0, 9, -7, -1, 0, 9],
            [0, 9, 0, 9, 10, 12],
        ] {
            assert_eq!(of(Some(outside)), Err(()));
        }
    }
}
