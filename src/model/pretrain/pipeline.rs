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
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::scans::{Reading, ScanFile, ScanNote};
use crate::imaging::Volume;
use crate::model::error::ModelError;
use crate::model::volume_fusion::{Generator, Sample, Scheme};
use crate::rng::Rng;

/// Shelves that threads may work on beyond the one that the consumer waits for.
const AHEAD: u64 = 1;
/// Pause after which a waiting consumer looks around.
const LOOK_AROUND: Duration = Duration::from_millis(100);

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
                let mut give = |foreground, voxels| {
                    patches.push(Patch {
                        place,
                        foreground,
                        voxels,
                    });
                };
                if foreground {
                    give(true, self.generator.foreground(scan, index));
                }
                if background {
                    give(false, self.generator.background(scan, index));
                }
            }
        }
        patches
    }

    /// The samples of a shelf from all its patches, in the order in which they leave.
    fn fuse(&self, shelf: u64, patches: Vec<Patch>) -> Vec<Sample> {
        let mut pairs = vec![(Vec::new(), Vec::new()); self.layout.shelf() as usize];
        for patch in patches {
            let pair = &mut pairs[patch.place];
            *(if patch.foreground {
                &mut pair.0
            } else {
                &mut pair.1
            }) = patch.voxels;
        }
        let first = shelf * self.layout.shelf();
        let pairs = pairs.into_iter().enumerate();
        pairs
            .map(|(place, (p1, p2))| self.generator.fuse(first + place as u64, p1, p2))
            .collect()
    }
}

/// One of the two patches of a sample.
struct Patch {
    /// Where in its shelf the sample leaves.
    place: usize,
    foreground: bool,
    voxels: Vec<f32>,
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
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    shelf: VecDeque<Sample>,
    /// Samples of the next shelf that are not wanted: a run goes on in the middle of a shelf.
    skip: usize,
    started: Instant,
    first: Option<Duration>,
    waited: Duration,
}

struct Shared {
    source: Source,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    next_visit: u64,
    /// The shelf that the consumer takes next.
    wanted: u64,
    /// Patches of unfinished shelves, and how many visits have brought theirs.
    patches: BTreeMap<u64, (usize, Vec<Patch>)>,
    shelves: BTreeMap<u64, Vec<Sample>>,
    /// By scan: what there is to say, and whether it cannot be read.
    notes: BTreeMap<usize, (bool, String)>,
    /// Notes not yet handed out.
    news: Vec<usize>,
    failed: Option<String>,
    stop: bool,
    busy: Duration,
    samples: u64,
    scans_read: u64,
}

impl Pipeline {
    /// Starts `threads` threads; the first sample handed out is number `first_sample`.
    pub fn start(source: Source, threads: usize, first_sample: u64) -> Self {
        let shelf = first_sample / source.layout.shelf();
        let skip = (first_sample % source.layout.shelf()) as usize;
        let state = State {
            next_visit: shelf * source.layout.visits as u64,
            wanted: shelf,
            ..State::default()
        };
        let shared = Arc::new(Shared {
            source,
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let threads = (0..threads.max(1))
            .map(|_| {
                let shared = shared.clone();
                std::thread::spawn(move || shared.work())
            })
            .collect();
        Self {
            shared,
            threads,
            shelf: VecDeque::new(),
            skip,
            started: Instant::now(),
            first: None,
            waited: Duration::ZERO,
        }
    }

    /// The next sample; `between` is asked now and then while there is none, and may break.
    ///
    /// # Errors
    /// No scan can be read.
    pub fn next(
        &mut self,
        between: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<ControlFlow<(), Sample>, ModelError> {
        loop {
            if let Some(sample) = self.shelf.pop_front() {
                return Ok(ControlFlow::Continue(sample));
            }
            let start = Instant::now();
            let flow = self.take_shelf(between)?;
            match self.first {
                Some(_) => self.waited += start.elapsed(),
                None => self.first = Some(self.started.elapsed()),
            }
            if flow.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
    }

    fn take_shelf(
        &mut self,
        between: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, ModelError> {
        let mut state = self.shared.lock();
        loop {
            let wanted = state.wanted;
            if let Some(samples) = state.shelves.remove(&wanted) {
                state.wanted += 1;
                drop(state);
                self.shared.changed.notify_all();
                self.shelf = samples
                    .into_iter()
                    .skip(std::mem::take(&mut self.skip))
                    .collect();
                return Ok(ControlFlow::Continue(()));
            }
            if let Some(reason) = &state.failed {
                return Err(ModelError::Data(reason.clone()));
            }
            if self.threads.iter().all(JoinHandle::is_finished) {
                return Err(ModelError::Data(
                    "the threads that read scans have ended unexpectedly; continue with --resume"
                        .to_owned(),
                ));
            }
            let waiting = self.shared.changed.wait_timeout(state, LOOK_AROUND);
            drop(waiting.unwrap_or_else(PoisonError::into_inner).0);
            if between().is_break() {
                return Ok(ControlFlow::Break(()));
            }
            state = self.shared.lock();
        }
    }

    /// What became known of scans since the last call.
    pub fn news(&self) -> Vec<ScanNote> {
        let mut state = self.shared.lock();
        let news = std::mem::take(&mut state.news);
        let note = |scan: usize| {
            let (skipped, reason) = state.notes.get(&scan)?.clone();
            let scan = self.shared.source.scans[scan].name.clone();
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
        let state = self.shared.lock();
        let busy_s = state.busy.as_secs_f64() / self.threads.len() as f64;
        PipelineStats {
            samples: state.samples,
            scans_read: state.scans_read,
            samples_per_s: if busy_s > 0.0 {
                state.samples as f64 / busy_s
            } else {
                0.0
            },
            waited_s: self.waited.as_secs_f64(),
            first_sample_s: self.first.unwrap_or_default().as_secs_f64(),
        }
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join(); // a thread that panicked has nothing left to say
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let visits = self.source.layout.visits as u64;
        while let Some(visit) = self.claim() {
            let start = Instant::now();
            let Some(scan) = self.read(visit) else { return };
            let patches = self.source.cut(visit, &scan);
            drop(scan);
            let shelf = visit / visits;
            let mut state = self.lock();
            let (count, all) = state.patches.entry(shelf).or_default();
            *count += 1;
            all.extend(patches);
            if *count == self.source.layout.visits {
                let (_, patches) = state.patches.remove(&shelf).unwrap_or_default();
                drop(state);
                let samples = self.source.fuse(shelf, patches);
                state = self.lock();
                state.samples += samples.len() as u64;
                state.shelves.insert(shelf, samples);
            }
            state.scans_read += 1;
            state.busy += start.elapsed();
            drop(state);
            self.changed.notify_all();
        }
    }

    /// The next visit to make, as soon as there is room for it; none when the work is over.
    fn claim(&self) -> Option<u64> {
        let visits = self.source.layout.visits as u64;
        let mut state = self.lock();
        loop {
            if state.stop || state.failed.is_some() {
                return None;
            }
            if state.next_visit / visits <= state.wanted + AHEAD {
                state.next_visit += 1;
                return Some(state.next_visit - 1);
            }
            let woken = self.changed.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The scan of a visit; one that cannot be read is noted and replaced by the next one of its epoch.
    fn read(&self, visit: u64) -> Option<Volume<f32>> {
        for scan in self.source.candidates(visit) {
            let state = self.lock();
            if state.stop {
                return None;
            }
            if state.notes.get(&scan).is_some_and(|(skipped, _)| *skipped) {
                continue;
            }
            drop(state);
            match self.source.reading.read(&self.source.scans[scan].path) {
                Ok((volume, warnings)) => {
                    if !warnings.is_empty() {
                        self.note(scan, false, warnings.join("; "));
                    }
                    return Some(volume);
                }
                Err(error) => self.note(scan, true, error.to_string()),
            }
        }
        let reason = match self.lock().notes.values().next() {
            Some((_, reason)) => {
                format!("none of the scans can be used, the first one because: {reason}")
            }
            None => "there are no scans".to_owned(),
        };
        self.lock().failed = Some(reason);
        self.changed.notify_all();
        None
    }

    fn note(&self, scan: usize, skipped: bool, reason: String) {
        let mut state = self.lock();
        if state.notes.insert(scan, (skipped, reason)).is_none() {
            state.news.push(scan);
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
    let source = request.source(request.scans.clone(), preprocessing, request.options.seed);
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
