//! From files to samples, in the background and in bounded memory.
//!
//! Reading a scan takes seconds, a sample milliseconds, so a scan that was read gives several samples, and samples of
//! several scans are mixed. In numbers: visit v reads the v-th scan of an endless sequence of shuffled epochs. The
//! patches of [`Layout::visits`] visits in a row, [`Layout::samples`] of each, make a shelf; its samples leave in random
//! order. Which scan and which patch sample i has follows from (seed, i) alone, whatever thread made it when.
//!
//! Memory: each thread holds one scan while it cuts its patches; the samples of at most two shelves are held, one being
//! made while the other is used. Neither depends on the number of scans.

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::scans::{Reading, ScanFile, ScanNote};
use crate::imaging::Volume;
use crate::model::background::{Background, Work};
use crate::model::error::ModelError;
use crate::model::volume_fusion::{Fused, Generator, Piece, Scheme};
use crate::rng::Rng;

/// Shelves that threads may work on beyond the one that the consumer waits for.
const AHEAD: u64 = 1;

/// How samples of several scans are mixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Layout {
    /// Scans of a shelf.
    pub visits: usize,
    /// Samples of a scan that was read.
    pub samples: usize,
}

impl Layout {
    fn shelf(self) -> u64 {
        (self.visits * self.samples) as u64
    }
}

/// What samples are made of.
pub struct Source {
    pub scans: Vec<ScanFile>,
    pub reading: Reading,
    pub scheme: Scheme,
    pub generator: Generator,
    pub layout: Layout,
    pub seed: u64,
    /// The device makes what the network is given; threads only cut.
    pub on_device: bool,
}

impl Source {
    /// Scans in the order of an epoch.
    fn epoch(&self, number: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.scans.len()).collect();
        let mut rng = Rng::new(self.seed).named("epochs").stream(number);
        rng.shuffle(&mut order);
        order
    }

    /// The scans to try for a visit, best first: the rest of the epoch stands in for one that cannot be read.
    fn candidates(&self, visit: u64) -> Vec<usize> {
        let count = self.scans.len().max(1) as u64;
        let mut order = self.epoch(visit / count);
        order.rotate_left((visit % count) as usize);
        order
    }

    /// Order in which the samples of a shelf leave it: `order[place]` is `slot * samples + n`.
    fn order(&self, shelf: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.layout.shelf() as usize).collect();
        let mut rng = Rng::new(self.seed).named("shelves").stream(shelf);
        rng.shuffle(&mut order);
        order
    }

    /// The slot of the same shelf that the background of a slot's samples comes from: its own for blocks, the next one of
    /// another patient for boxes.
    fn partner(&self, shelf: u64, slot: usize) -> usize {
        let visits = self.layout.visits;
        if self.scheme == Scheme::Blocks || visits < 2 {
            return slot;
        }
        let patient = |slot: usize| {
            let visit = shelf * visits as u64 + slot as u64;
            let first = self.candidates(visit).first().copied();
            first.map(|scan| &self.scans[scan].patient)
        };
        let next = |step: usize| (slot + step) % visits;
        (1..visits)
            .map(next)
            .find(|other| patient(*other) != patient(slot))
            .unwrap_or(next(1))
    }

    /// The patches that a visit owes its shelf.
    fn cut(&self, visit: u64, scan: &Volume<f32>) -> Vec<Patch> {
        let visits = self.layout.visits as u64;
        let (shelf, slot) = (visit / visits, (visit % visits) as usize);
        let mut owner = vec![0; self.layout.shelf() as usize];
        for (place, item) in self.order(shelf).into_iter().enumerate() {
            owner[item] = place;
        }
        let mut patches = Vec::new();
        for other in 0..self.layout.visits {
            let (foreground, background) = (other == slot, self.partner(shelf, other) == slot);
            for n in 0..self.layout.samples {
                let place = owner[other * self.layout.samples + n];
                let index = shelf * self.layout.shelf() + place as u64;
                for (foreground, _) in [(true, foreground), (false, background)]
                    .into_iter()
                    .filter(|(_, wanted)| *wanted)
                {
                    let piece = self
                        .generator
                        .piece(scan, index, foreground, self.on_device);
                    patches.push(Patch {
                        place,
                        foreground,
                        piece,
                    });
                }
            }
        }
        patches
    }

    /// The samples of a shelf from all its patches, in the order in which they leave.
    fn fuse(&self, shelf: u64, patches: Vec<Patch>) -> Vec<Fused> {
        let mut pairs: Vec<[Option<Piece>; 2]> = Vec::new();
        pairs.resize_with(self.layout.shelf() as usize, Default::default);
        for patch in patches {
            pairs[patch.place][usize::from(!patch.foreground)] = Some(patch.piece);
        }
        let first = shelf * self.layout.shelf();
        let pairs = pairs.into_iter().enumerate();
        pairs
            .filter_map(|(place, [p1, p2])| self.generator.join(first + place as u64, p1?, p2?))
            .collect()
    }
}

/// One of the two patches of a sample.
struct Patch {
    /// Where in its shelf the sample leaves.
    place: usize,
    foreground: bool,
    piece: Piece,
}

/// How fast samples were made, and whether anybody had to wait.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub struct PipelineStats {
    /// Samples made.
    pub samples: u64,
    /// Scans read.
    pub scans_read: u64,
    /// Samples a second that the threads can make, from the time they were busy.
    pub samples_per_s: f64,
    /// Seconds that the consumer waited for samples, the first ones left out.
    pub waited_s: f64,
    /// Seconds until the first sample was there.
    pub first_sample_s: f64,
}

/// Samples in order, made by background threads.
pub struct Pipeline {
    shelves: Background<Shelves>,
    shelf: VecDeque<Fused>,
    /// Samples of the next shelf that are not wanted: a run goes on in the middle of a shelf.
    skip: usize,
}

/// A source at work: a ticket is a visit, a product is a shelf.
struct Shelves {
    source: Source,
    found: Mutex<Found>,
}

#[derive(Default)]
struct Found {
    /// Patches of unfinished shelves, and how many visits have brought theirs.
    patches: BTreeMap<u64, (usize, Vec<Patch>)>,
    /// By scan: what there is to say, and whether it cannot be read.
    notes: BTreeMap<usize, (bool, String)>,
    /// Notes not yet handed out.
    news: Vec<usize>,
    scans_read: u64,
}

impl Pipeline {
    /// Starts `threads` threads; the first sample handed out is number `first_sample`.
    pub fn start(source: Source, threads: usize, first_sample: u64) -> Self {
        let shelf = first_sample / source.layout.shelf();
        let skip = (first_sample % source.layout.shelf()) as usize;
        let shelves = Shelves {
            source,
            found: Mutex::default(),
        };
        Self {
            shelves: Background::start(shelves, threads, AHEAD, shelf),
            shelf: VecDeque::new(),
            skip,
        }
    }

    /// The next sample; `between` is asked now and then while there is none, and may break.
    ///
    /// # Errors
    /// No scan can be read.
    pub fn next(
        &mut self,
        between: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<ControlFlow<(), Fused>, ModelError> {
        loop {
            if let Some(sample) = self.shelf.pop_front() {
                return Ok(ControlFlow::Continue(sample));
            }
            match self.shelves.next(between)? {
                ControlFlow::Break(()) => return Ok(ControlFlow::Break(())),
                ControlFlow::Continue(samples) => {
                    let skip = std::mem::take(&mut self.skip);
                    self.shelf = samples.into_iter().skip(skip).collect();
                }
            }
        }
    }

    /// What became known of scans since the last call.
    pub fn news(&self) -> Vec<ScanNote> {
        let shelves = self.shelves.work();
        let mut found = shelves.lock();
        let news = std::mem::take(&mut found.news);
        let note = |scan: usize| {
            let (skipped, reason) = found.notes.get(&scan)?.clone();
            let scan = shelves.source.scans[scan].name.clone();
            Some(ScanNote {
                scan,
                skipped,
                reason,
            })
        };
        news.into_iter().filter_map(note).collect()
    }

    /// How it goes so far.
    pub fn stats(&self) -> PipelineStats {
        let stats = self.shelves.stats();
        let shelves = self.shelves.work();
        let samples = stats.made * shelves.source.layout.shelf();
        PipelineStats {
            samples,
            scans_read: shelves.lock().scans_read,
            samples_per_s: if stats.busy_s > 0.0 {
                samples as f64 / stats.busy_s
            } else {
                0.0
            },
            waited_s: stats.waited_s,
            first_sample_s: stats.first_s,
        }
    }
}

impl Work for Shelves {
    type Product = Vec<Fused>;

    fn tickets(&self) -> u64 {
        self.source.layout.visits as u64
    }

    fn make(&self, visit: u64, stopped: &dyn Fn() -> bool) -> Result<Option<Vec<Fused>>, String> {
        let Some(scan) = self.read(visit, stopped)? else {
            return Ok(None);
        };
        let patches = self.source.cut(visit, &scan);
        drop(scan);
        let shelf = visit / self.tickets();
        let mut found = self.lock();
        found.scans_read += 1;
        let (count, all) = found.patches.entry(shelf).or_default();
        *count += 1;
        all.extend(patches);
        if *count < self.source.layout.visits {
            return Ok(None);
        }
        let (_, patches) = found.patches.remove(&shelf).unwrap_or_default();
        drop(found);
        Ok(Some(self.source.fuse(shelf, patches)))
    }
}

impl Shelves {
    fn lock(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The scan of a visit; one that cannot be read is noted and replaced by the next one of its epoch.
    fn read(&self, visit: u64, stopped: &dyn Fn() -> bool) -> Result<Option<Volume<f32>>, String> {
        for scan in self.source.candidates(visit) {
            if stopped() {
                return Ok(None);
            }
            let known = self.lock().notes.get(&scan).is_some_and(|note| note.0);
            if known {
                continue;
            }
            match self.source.reading.read(&self.source.scans[scan].path) {
                Ok((volume, warnings)) => {
                    if !warnings.is_empty() {
                        self.note(scan, false, warnings.join("; "));
                    }
                    return Ok(Some(volume));
                }
                Err(error) => self.note(scan, true, error.to_string()),
            }
        }
        Err(match self.lock().notes.values().next() {
            Some((_, reason)) => {
                format!("none of the scans can be used, the first one because: {reason}")
            }
            None => "there are no scans".to_owned(),
        })
    }

    fn note(&self, scan: usize, skipped: bool, reason: String) {
        let mut found = self.lock();
        if found.notes.insert(scan, (skipped, reason)).is_none() {
            found.news.push(scan);
        }
    }
}

/// Draws `count` samples as fast as `threads` threads make them, without training. Returns samples a second, all of the
/// time counted, and what was found out about scans.
///
/// # Errors
/// No scan can be read.
pub fn measure_pipeline(
    request: &super::PretrainRequest,
    count: u64,
    threads: usize,
) -> Result<(f64, Vec<ScanNote>), ModelError> {
    let preprocessing = request.plan()?;
    let source = request.source(
        request.scans.clone(),
        preprocessing,
        request.options.seed,
        false,
    );
    let start = Instant::now();
    let mut pipeline = Pipeline::start(source, threads, 0);
    for _ in 0..count {
        if pipeline.next(&mut || ControlFlow::Continue(()))?.is_break() {
            return Err(ModelError::Stopped);
        }
    }
    let samples_per_s = count as f64 / start.elapsed().as_secs_f64();
    Ok((samples_per_s, pipeline.news()))
}

#[cfg(test)]
mod tests;
