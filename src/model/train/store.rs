//! Cases on the model's grid, on disk for as long as training runs: memory does not grow with their number.
//!
//! One file a case: HU (16 bit), labels (8 bit), and for each class up to [`PLACES`] of its voxels (32 bit), all little
//! endian and in `[z, y, x]` order. Patches read the slabs that they touch.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::data::{CaseNote, LoadedCase, TrainCase, load};
use crate::imaging::{ImagingError, orientation, resample};
use crate::model::error::ModelError;
use crate::model::manifest::Preprocessing;
use crate::rng::Rng;

/// Voxels remembered per class as centres of patches.
const PLACES: usize = 4096;
/// Places are 32-bit numbers.
const MAX_VOXELS: usize = u32::MAX as usize;
/// End of the files' names.
const SUFFIX: &str = "case";

/// What stays in memory of a case.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredCase {
    /// Name for messages.
    pub name: String,
    path: PathBuf,
    /// Voxels `[z, y, x]` of the model's grid.
    pub shape: [usize; 3],
    /// Their size.
    pub spacing_mm: [f64; 3],
    /// Per class (background first) whether it was annotated.
    pub annotated: Vec<bool>,
    /// Places kept per class.
    places: Vec<usize>,
}

/// A box of a case, clipped to it.
pub struct Region {
    /// First voxel `[z, y, x]`.
    pub low: [isize; 3],
    /// Voxels `[z, y, x]`.
    pub shape: [usize; 3],
    /// HU, clipped to the model's window.
    pub hu: Vec<i16>,
    /// Classes.
    pub labels: Vec<u8>,
}

/// Prepared cases in a folder that goes with them.
pub struct CaseStore {
    /// Of this process: one that was told to end, but still works, removes its own files only.
    folder: PathBuf,
    cases: Vec<StoredCase>,
    /// Per class the cases in which it is annotated and there; background stays empty.
    by_class: Vec<Vec<u32>>,
}

impl CaseStore {
    /// Prepares cases one after the other into a folder in `parent`, which is made, or emptied of earlier runs' files. Cases
    /// that cannot be used are left out; `note` hears of each case, and what there is to say about it.
    ///
    /// # Errors
    /// A disk that does not take the files; no case left.
    pub fn prepare(
        parent: &Path,
        cases: &[TrainCase],
        classes: usize,
        preprocessing: &Preprocessing,
        seed: u64,
        note: &mut dyn FnMut(Option<CaseNote>) -> Result<(), ModelError>,
    ) -> Result<Self, ModelError> {
        for earlier in std::fs::read_dir(parent).into_iter().flatten().flatten() {
            remove(&earlier.path());
        }
        let folder = parent.join(std::process::id().to_string());
        std::fs::create_dir_all(&folder).map_err(ModelError::io(&folder))?;
        let mut store = Self {
            folder,
            cases: Vec::new(),
            by_class: vec![Vec::new(); classes],
        };
        let mut first = None;
        for (number, case) in cases.iter().enumerate() {
            let remark = match load(case, classes) {
                Err(reason) => {
                    first.get_or_insert_with(|| reason.clone());
                    Some(reason)
                }
                Ok((loaded, remark)) => {
                    let path = store.folder.join(format!("{number}.{SUFFIX}"));
                    store.add(write(path, loaded, preprocessing, seed)?);
                    remark
                }
            };
            note(remark)?;
        }
        if store.cases.is_empty() {
            return Err(ModelError::Data(match first {
                Some(note) => format!("none of the cases can be used; {note}"),
                None => "there is no labelled case to learn from; submit at least one".to_owned(),
            }));
        }
        Ok(store)
    }

    fn add(&mut self, case: StoredCase) {
        let number = self.cases.len() as u32;
        for class in 1..self.by_class.len() {
            if case.annotated[class] && case.places[class] > 0 {
                self.by_class[class].push(number);
            }
        }
        self.cases.push(case);
    }

    /// The cases that can be used.
    pub fn cases(&self) -> &[StoredCase] {
        &self.cases
    }

    /// Draws a case and the voxel of it around which a patch of `size` lies. With probability `focus` first a class, each
    /// equally likely, then a case in which it is annotated, then one of its voxels, which comes to lie anywhere in the
    /// middle half of the patch; otherwise any place of any case. Where a case is large enough, patches stay inside.
    /// The centre of a patch of even size lies between voxels.
    pub fn draw(
        &self,
        size: [usize; 3],
        focus: f64,
        rng: &mut Rng,
    ) -> io::Result<(usize, [f64; 3])> {
        let classes: Vec<usize> = (1..self.by_class.len())
            .filter(|&class| !self.by_class[class].is_empty())
            .collect();
        let focused = rng.chance(focus) && !classes.is_empty();
        let (number, voxel) = if focused {
            let class = classes[rng.below(classes.len())];
            let cases = &self.by_class[class];
            let number = cases[rng.below(cases.len())] as usize;
            let case = &self.cases[number];
            let place = rng.below(case.places[class]);
            (number, Some(case.place(class, place)?))
        } else {
            (rng.below(self.cases.len()), None)
        };
        let shape = self.cases[number].shape;
        let centre = [0, 1, 2].map(|axis| {
            let (side, window) = (shape[axis] as isize, size[axis] as isize);
            let start = if side <= window {
                -((window - side) / 2)
            } else {
                match voxel {
                    None => rng.below((side - window + 1) as usize) as isize,
                    Some(voxel) => {
                        let offset = window / 4 + rng.below((window / 2) as usize + 1) as isize;
                        (voxel[axis] as isize - offset).clamp(0, side - window)
                    }
                }
            };
            start as f64 + (window as f64 - 1.0) * 0.5
        });
        Ok((number, centre))
    }
}

impl Drop for CaseStore {
    fn drop(&mut self) {
        remove(&self.folder);
        if let Some(parent) = self.folder.parent() {
            let _ = std::fs::remove_dir(parent); // stays while another run has its folder there
        }
    }
}

/// Removes a store's folder. Only what a store has made: a folder that holds anything else stays.
fn remove(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|end| end == SUFFIX) {
            let _ = std::fs::remove_file(path); // a file that is left over harms nobody
        }
    }
    let _ = std::fs::remove_dir(folder);
}

impl StoredCase {
    /// A case of which every class was annotated, without voxels.
    #[cfg(test)]
    pub fn named(name: &str, classes: usize) -> Self {
        Self {
            name: name.to_owned(),
            path: PathBuf::new(),
            shape: [0; 3],
            spacing_mm: [1.0; 3],
            annotated: vec![true; classes],
            places: vec![0; classes],
        }
    }

    fn voxels(&self) -> usize {
        self.shape.iter().product()
    }

    /// Position `[z, y, x]` of a place of a class.
    fn place(&self, class: usize, number: usize) -> io::Result<[usize; 3]> {
        let before: usize = self.places[..class].iter().sum();
        let mut bytes = [0; 4];
        let offset = self.voxels() * 3 + (before + number) * 4;
        File::open(&self.path)?.read_exact_at(&mut bytes, offset as u64)?;
        let voxel = u32::from_le_bytes(bytes) as usize;
        let [_, h, w] = self.shape;
        Ok([voxel / (h * w), voxel / w % h, voxel % w])
    }

    /// Reads the part of the case within `bounds` (per axis the first voxel and the one after the last).
    pub fn region(&self, bounds: [[isize; 2]; 3]) -> io::Result<Region> {
        let range = [0, 1, 2].map(|axis| {
            let side = self.shape[axis] as isize;
            let [low, high] = bounds[axis].map(|v| v.clamp(0, side) as usize);
            low..high.max(low)
        });
        let shape = [0, 1, 2].map(|axis| range[axis].len());
        let count = shape.iter().product();
        let (mut hu, mut labels) = (Vec::with_capacity(count), Vec::with_capacity(count));
        let [_, h, w] = self.shape;
        let [rz, ry, rx] = range.clone();
        if count > 0 {
            let file = File::open(&self.path)?;
            let mut slab = vec![0; ry.len() * w * 2];
            for z in rz {
                let first = (z * h + ry.start) * w;
                file.read_exact_at(&mut slab, first as u64 * 2)?;
                for row in slab.chunks_exact(w * 2) {
                    let values = row[rx.start * 2..rx.end * 2].chunks_exact(2);
                    hu.extend(values.map(|v| i16::from_le_bytes([v[0], v[1]])));
                }
                let bytes = &mut slab[..ry.len() * w];
                file.read_exact_at(bytes, (self.voxels() * 2 + first) as u64)?;
                for row in bytes.chunks_exact(w) {
                    labels.extend_from_slice(&row[rx.clone()]);
                }
            }
        }
        Ok(Region {
            low: range.map(|r| r.start as isize),
            shape,
            hu,
            labels,
        })
    }
}

/// Brings a case to LPS order and the model's spacing, and writes it.
fn write(
    path: PathBuf,
    case: LoadedCase,
    preprocessing: &Preprocessing,
    seed: u64,
) -> Result<StoredCase, ModelError> {
    let [low, high] = preprocessing.hu_window;
    let (mut scan, mut labels) = (case.scan, case.labels);
    if let Some(grid) = resample::upright(&scan.geometry).map_err(ImagingError::from)? {
        scan = resample::linear(&scan, &grid, low);
        labels = resample::nearest(&labels, &grid, 0);
    }
    let turn = orientation::to_lps(&scan.geometry);
    scan = turn.apply(&scan);
    labels = turn.apply(&labels);
    if let Some(spacing_mm) = preprocessing.spacing_mm {
        let grid =
            resample::grid_with_spacing(&scan.geometry, spacing_mm).map_err(ImagingError::from)?;
        scan = resample::linear(&scan, &grid, low);
        labels = resample::nearest(&labels, &grid, 0);
    }
    if scan.voxels.len() > MAX_VOXELS {
        return Err(ModelError::Data(format!(
            "case {} has more than 2^32 voxels; use a coarser spacing",
            case.name
        )));
    }
    let places = reservoirs(&labels.voxels, case.annotated.len(), seed);
    let save = |path: &Path| -> io::Result<()> {
        let mut out = BufWriter::new(File::create(path)?);
        for v in &scan.voxels {
            out.write_all(&(v.clamp(low, high).round() as i16).to_le_bytes())?;
        }
        for v in &labels.voxels {
            out.write_all(&[*v as u8])?;
        }
        for place in places.iter().flatten() {
            out.write_all(&place.to_le_bytes())?;
        }
        out.flush()
    };
    save(&path).map_err(ModelError::io(&path))?;
    Ok(StoredCase {
        name: case.name,
        path,
        shape: scan.geometry.shape(),
        spacing_mm: scan.geometry.spacing_mm(),
        annotated: case.annotated,
        places: places.iter().map(Vec::len).collect(),
    })
}

/// Up to [`PLACES`] voxels of each class but the background, each voxel of a class with the same probability.
fn reservoirs(labels: &[u16], classes: usize, seed: u64) -> Vec<Vec<u32>> {
    let mut places = vec![Vec::new(); classes];
    let mut seen = vec![0usize; classes];
    let mut rng = Rng::new(seed).named("places");
    for (i, &label) in labels.iter().enumerate().filter(|(_, label)| **label > 0) {
        let class = usize::from(label);
        seen[class] += 1;
        if places[class].len() < PLACES {
            places[class].push(i as u32);
        } else {
            let slot = rng.below(seen[class]);
            if slot < PLACES {
                places[class][slot] = i as u32;
            }
        }
    }
    places
}
