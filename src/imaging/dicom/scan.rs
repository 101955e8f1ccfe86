//! A source of DICOM files as scans.

use rayon::prelude::*;

use super::dataset::{DataSet, bad};
use super::instance::{Instance, Kind};
use super::pixels::{Frames, PixelFormat};
use super::series::{FrameRef, Stack, stacks};
use super::source::{Content, Source};
use crate::imaging::budget::Budget;
use crate::imaging::error::ImagingError;
use crate::imaging::geometry::Geometry;
use crate::imaging::raster::{AIR_HU, Layers, Raster, SHEARED};
use crate::imaging::sample::Sample;
use crate::imaging::volume::{Scan, Volume};

const FORMAT: &str = "dicom";

/// The scans in a folder, zip file or single file.
pub struct Scans {
    pub(super) source: Source,
    pub(super) budget: Budget,
    pub(super) instances: Vec<Instance>,
    pub(super) stacks: Vec<Stack>,
    refused: Vec<ImagingError>,
    aside: Aside,
}

/// Files that are no slices.
#[derive(Default)]
struct Aside {
    segmentations: Vec<usize>,
    structures: Vec<usize>,
    others: usize,
}

impl Scans {
    /// Looks at every file; pixels are read later.
    ///
    /// # Errors
    /// A damaged file: the scan it belongs to would lack it.
    pub(super) fn open(source: Source, budget: &Budget) -> Result<Self, ImagingError> {
        let looks: Vec<_> = (0..source.len())
            .into_par_iter()
            .map(|file| look(&source, file, budget))
            .collect();
        let (mut instances, mut aside) = (Vec::new(), Aside::default());
        let (mut damaged, mut first) = (0, None);
        for (file, look) in looks.into_iter().enumerate() {
            match look {
                Ok(Kind::Image(instance)) => instances.push(*instance),
                Ok(Kind::Segmentation) => aside.segmentations.push(file),
                Ok(Kind::Structures) => aside.structures.push(file),
                Ok(Kind::Other) => aside.others += 1,
                Err(error) => {
                    damaged += 1;
                    first.get_or_insert((file, error));
                }
            }
        }
        if let Some((file, error)) = first {
            return Err(in_file(source.name(file), damaged - 1, error));
        }
        let same = |a: FrameRef, b: FrameRef| {
            let pixels = |at: FrameRef| {
                let instance = &instances[at.instance];
                frames_of(&source, instance, budget, |frames| frames.read(at.frame))
            };
            let alike = |at: FrameRef| {
                let instance = &instances[at.instance];
                (instance.format, instance.slices[at.frame].rescale)
            };
            Ok(alike(a) == alike(b) && pixels(a)? == pixels(b)?)
        };
        let (mut found, mut refused) = (Vec::new(), Vec::new());
        for stack in stacks(&instances, &same) {
            match stack {
                Ok(stack) => found.push(stack),
                Err(error) => refused.push(error),
            }
        }
        Ok(Self {
            source,
            budget: *budget,
            instances,
            stacks: found,
            refused,
            aside,
        })
    }

    /// Number of scans.
    pub fn len(&self) -> usize {
        self.stacks.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.stacks.is_empty()
    }

    /// Groups of slices that are no scan, and why.
    pub fn refused(&self) -> &[ImagingError] {
        &self.refused
    }

    /// The grid of a scan.
    pub fn geometry(&self, scan: usize) -> &Geometry {
        &self.stacks[scan].geometry
    }

    /// Series Instance UID of a scan.
    pub fn series_uid(&self, scan: usize) -> &str {
        &self.instances[self.stacks[scan].frames[0].instance].series_uid
    }

    /// The number of the one scan.
    ///
    /// # Errors
    /// None, or several: which they are.
    pub fn only(&mut self) -> Result<usize, ImagingError> {
        if self.stacks.len() + self.refused.len() > 1 {
            let choices: Vec<String> = (0..self.len())
                .map(|scan| {
                    let [slices, rows, columns] = self.geometry(scan).shape();
                    format!(
                        "{slices} slices of {columns} x {rows} of series {}",
                        self.series_uid(scan)
                    )
                })
                .chain(self.refused.iter().map(|error| format!("refused: {error}")))
                .collect();
            return Err(ImagingError::Unsupported(format!(
                "there are {} scans here, and which one is meant is not known ({}); give each a folder of its own",
                choices.len(),
                choices.join("; ")
            )));
        }
        if let Some(error) = self.refused.pop() {
            return Err(error);
        }
        if self.is_empty() {
            let what = match &self.aside {
                aside if !aside.segmentations.is_empty() => {
                    "this is a DICOM segmentation, which holds no scan"
                }
                aside if !aside.structures.is_empty() => {
                    "these are DICOM contours, which hold no scan"
                }
                _ => "there is no DICOM image with slices here",
            };
            return Err(ImagingError::UnknownFormat(what.to_owned()));
        }
        Ok(0)
    }

    /// Reads the voxels of a scan as they are stored where all slices store them alike, else as float32 HU.
    ///
    /// # Errors
    /// Damaged pixels, or a scan over the budget.
    pub fn read(&self, scan: usize) -> Result<Raster, ImagingError> {
        let (stack, stored) = (&self.stacks[scan], self.stored(scan)?);
        let count = self.admit(stack, stored.sample)?;
        let bytes = if stored.uniform {
            let size = stored.sample.size_bytes();
            let mut bytes = vec![0; count * size];
            self.fill(stack, &mut bytes, |values, _, part| {
                put(values, stored.sample, part);
            })?;
            bytes
        } else {
            let voxels = self.floats(scan)?;
            voxels.into_iter().flat_map(f32::to_le_bytes).collect()
        };
        let mut raster = Raster {
            format: FORMAT,
            geometry: stack.geometry,
            sample: stored.sample,
            rescale: (stored.uniform && stored.rescale != (1.0, 0.0)).then_some(stored.rescale),
            layers: Layers::ONE,
            padding: stored
                .padding
                .filter(|_| stored.uniform)
                .map(|range| range.map(f64::from)),
            segments: Vec::new(),
            warnings: self.warnings(stack),
            bytes,
        };
        raster.note_shear();
        Ok(raster)
    }

    /// Reads the voxels of a scan as HU, without holding them as they are stored too.
    ///
    /// # Errors
    /// As [`Scans::read`].
    pub fn read_scan(&self, scan: usize) -> Result<Scan, ImagingError> {
        let (stack, stored) = (&self.stacks[scan], self.stored(scan)?);
        self.admit(stack, stored.sample)?;
        let volume = Volume::new(stack.geometry, self.floats(scan)?)?;
        let mut warnings = self.warnings(stack);
        warnings.extend(stack.geometry.is_sheared().then(|| SHEARED.to_owned()));
        Scan::of_values(volume, FORMAT, stored.sample, warnings)
    }

    /// How the slices of a scan are stored.
    fn stored(&self, scan: usize) -> Result<Stored, ImagingError> {
        let stack = &self.stacks[scan];
        let slice_of = |at: &FrameRef| &self.instances[at.instance].slices[at.frame];
        let first = stack.frames[0];
        let Instance {
            format, padding, ..
        } = &self.instances[first.instance];
        let rescale = slice_of(&first).rescale;
        let uniform = stack.uneven.is_none()
            && stack.frames.iter().all(|at| {
                let instance = &self.instances[at.instance];
                slice_of(at).rescale == rescale
                    && instance.padding == *padding
                    && stored_alike(&instance.format, format)
            });
        Ok(Stored {
            uniform,
            sample: match uniform {
                true => stored_sample(format)?,
                false => Sample::F32,
            },
            rescale,
            padding: *padding,
        })
    }

    /// Number of values in the slices, when they and the grid are within the budget.
    fn admit(&self, stack: &Stack, sample: Sample) -> Result<usize, ImagingError> {
        let [slices, rows, columns] = stack.geometry.shape().map(|n| n as u64);
        let bytes = sample.size_bytes() as u64;
        self.budget.admit(&[slices, rows, columns], bytes)?;
        let frames = stack.frames.len() as u64;
        let stored_bytes = self.budget.admit(&[frames, rows, columns], bytes)?;
        Ok((stored_bytes / bytes) as usize)
    }

    /// HU on the grid of a scan.
    fn floats(&self, scan: usize) -> Result<Vec<f32>, ImagingError> {
        let stack = &self.stacks[scan];
        let [_, rows, columns] = stack.geometry.shape();
        let mut voxels = vec![0.0; stack.frames.len() * rows * columns];
        self.fill(stack, &mut voxels, |values, at, part| {
            let instance = &self.instances[at.instance];
            let rescale = instance.slices[at.frame].rescale;
            put_rescaled(values, rescale, instance.padding, part);
        })?;
        Ok(match &stack.uneven {
            Some(places) => interpolated(&voxels, places, rows * columns),
            None => voxels,
        })
    }

    fn warnings(&self, stack: &Stack) -> Vec<String> {
        let mut warnings = stack.warnings.clone();
        let aside = &self.aside;
        let others = aside.others + aside.segmentations.len() + aside.structures.len();
        if others > 0 {
            warnings.push(format!("{others} other files of the folder are no slices"));
        }
        warnings
    }

    /// Decodes the frames of a stack, several files at a time; `put` gets the stored values of one frame and its part of
    /// `out`.
    fn fill<T: Send>(
        &self,
        stack: &Stack,
        out: &mut [T],
        put: impl Fn(&[i32], FrameRef, &mut [T]) + Sync,
    ) -> Result<(), ImagingError> {
        let slice_len = out.len() / stack.frames.len();
        let mut by_instance: Vec<Vec<(FrameRef, &mut [T])>> = Vec::new();
        by_instance.resize_with(self.instances.len(), Vec::new);
        for (&at, part) in stack.frames.iter().zip(out.chunks_exact_mut(slice_len)) {
            by_instance[at.instance].push((at, part));
        }
        let decode = |(instance, parts): (&Instance, Vec<(FrameRef, &mut [T])>)| {
            if parts.is_empty() {
                return Ok(());
            }
            frames_of(&self.source, instance, &self.budget, |frames| {
                parts.into_par_iter().try_for_each(|(at, part)| {
                    put(&frames.read(at.frame)?, at, part);
                    Ok(())
                })
            })
        };
        self.instances
            .par_iter()
            .zip(by_instance)
            .try_for_each(decode)
    }
}

/// How the slices of a scan are stored.
struct Stored {
    /// Whether all of them in the same way, and each on a slice of the grid.
    uniform: bool,
    /// Type of a value that is read.
    sample: Sample,
    /// Slope and intercept of the first slice.
    rescale: (f64, f64),
    /// Stored values of the first slice that stand for no measurement.
    padding: Option<[i32; 2]>,
}

/// A message with the name of the file inside of a folder or archive; folders on the way are often called after patients.
fn in_file(path: &str, others: usize, error: ImagingError) -> ImagingError {
    let name = path.rsplit('/').next().unwrap_or_default();
    if name.is_empty() {
        return error;
    }
    let file = match others {
        0 => name.to_owned(),
        others => format!("{name} (and {others} more files)"),
    };
    ImagingError::InFile {
        file,
        error: Box::new(error),
    }
}

fn look(source: &Source, file: usize, budget: &Budget) -> Result<Kind, ImagingError> {
    match source.read(file, budget)? {
        Content::Other => Ok(Kind::Other),
        Content::Dicom(bytes) => Kind::of(&DataSet::parse(bytes, budget)?, file, budget),
    }
}

/// Loads an instance again, for its pixels.
fn frames_of<T>(
    source: &Source,
    instance: &Instance,
    budget: &Budget,
    work: impl FnOnce(&Frames<'_>) -> Result<T, ImagingError>,
) -> Result<T, ImagingError> {
    let load = || {
        let Content::Dicom(bytes) = source.read(instance.file, budget)? else {
            return Err(bad("the file was changed while it was read"));
        };
        let set = DataSet::parse(bytes, budget)?;
        if PixelFormat::of(&set)? != instance.format {
            return Err(bad("the file was changed while it was read"));
        }
        let frames = Frames::new(&set, instance.format, instance.slices.len())?;
        work(&frames)
    };
    load().map_err(|error| in_file(source.name(instance.file), 0, error))
}

fn stored_alike(a: &PixelFormat, b: &PixelFormat) -> bool {
    (a.bits_allocated, a.signed) == (b.bits_allocated, b.signed)
}

fn stored_sample(format: &PixelFormat) -> Result<Sample, ImagingError> {
    Ok(match (format.bits_allocated, format.signed) {
        (8, false) => Sample::U8,
        (8, true) => Sample::I8,
        (16, false) => Sample::U16,
        (16, true) => Sample::I16,
        (32, _) => Sample::I32,
        (bits, _) => {
            return Err(ImagingError::Unsupported(format!(
                "a DICOM scan of {bits} bit pixels"
            )));
        }
    })
}

fn put(values: &[i32], sample: Sample, part: &mut [u8]) {
    // A value of n bits fits into the type of n bits.
    match sample.size_bytes() {
        1 => {
            for (&value, byte) in values.iter().zip(part) {
                *byte = value as u8;
            }
        }
        2 => {
            for (&value, word) in values.iter().zip(part.as_chunks_mut::<2>().0) {
                *word = (value as u16).to_le_bytes();
            }
        }
        _ => {
            for (&value, word) in values.iter().zip(part.as_chunks_mut::<4>().0) {
                *word = value.to_le_bytes();
            }
        }
    }
}

fn put_rescaled(
    values: &[i32],
    (slope, intercept): (f64, f64),
    padding: Option<[i32; 2]>,
    part: &mut [f32],
) {
    for (&value, hu) in values.iter().zip(part) {
        let is_padding = padding.is_some_and(|[first, last]| (first..=last).contains(&value));
        *hu = match is_padding {
            true => AIR_HU,
            false => (f64::from(value) * slope + intercept) as f32,
        };
    }
}

/// Slices at continuous indices among the given ones.
fn interpolated(voxels: &[f32], places: &[f64], pixels: usize) -> Vec<f32> {
    let slice = |n: usize| &voxels[n * pixels..(n + 1) * pixels];
    let last = voxels.len() / pixels - 1;
    places
        .par_iter()
        .flat_map_iter(|&place| {
            let low = (place.floor() as usize).min(last);
            let share = (place - low as f64) as f32;
            let pairs = slice(low).iter().zip(slice((low + 1).min(last)));
            pairs.map(move |(&a, &b)| a + (b - a) * share)
        })
        .collect()
}
