//! Work that threads do ahead of its consumer, in order and in bounded memory.
//!
//! A product is made of one or more tickets. Tickets are handed out in order and products are taken in order, whatever
//! thread finishes first, so what the consumer gets depends on the numbers alone.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::error::ModelError;

/// Pause after which a waiting consumer looks around.
const LOOK_AROUND: Duration = Duration::from_millis(100);

/// What threads make.
pub(in crate::model) trait Work: Send + Sync + 'static {
    /// What the consumer takes.
    type Product: Send + 'static;

    /// Tickets of a product: product p needs the tickets from `p * tickets` on.
    fn tickets(&self) -> u64 {
        1
    }

    /// Does ticket number `ticket`; gives the product when this was the last of its tickets. May give none once `stopped`
    /// says so.
    ///
    /// # Errors
    /// A reason why nothing more can be made.
    fn make(
        &self,
        ticket: u64,
        stopped: &dyn Fn() -> bool,
    ) -> Result<Option<Self::Product>, String>;
}

/// How the work goes.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::model) struct BackgroundStats {
    /// Products made.
    pub made: u64,
    /// Seconds that the threads were busy, divided by their number.
    pub busy_s: f64,
    /// Seconds that the consumer waited, the first product left out.
    pub waited_s: f64,
    /// Seconds until the first product was there.
    pub first_s: f64,
}

/// Threads at work, and what they have ready.
pub(in crate::model) struct Background<W: Work> {
    shared: Arc<Shared<W>>,
    threads: Vec<JoinHandle<()>>,
    started: Instant,
    first: Option<Duration>,
    waited: Duration,
}

struct Shared<W: Work> {
    work: W,
    /// Products that may be made beyond the one that the consumer waits for.
    ahead: u64,
    state: Mutex<State<W::Product>>,
    changed: Condvar,
}

struct State<P> {
    next_ticket: u64,
    /// The product that the consumer takes next.
    wanted: u64,
    ready: BTreeMap<u64, P>,
    failed: Option<String>,
    stop: bool,
    busy: Duration,
    made: u64,
}

impl<W: Work> Background<W> {
    /// Starts `threads` threads that hold at most `ahead` products beyond the one that is wanted; the first one handed out
    /// is number `first`.
    pub fn start(work: W, threads: usize, ahead: u64, first: u64) -> Self {
        let state = State {
            next_ticket: first * work.tickets(),
            wanted: first,
            ready: BTreeMap::new(),
            failed: None,
            stop: false,
            busy: Duration::ZERO,
            made: 0,
        };
        let shared = Arc::new(Shared {
            work,
            ahead,
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let threads = (0..threads.max(1))
            .map(|_| {
                let shared = shared.clone();
                std::thread::spawn(move || shared.run())
            })
            .collect();
        Self {
            shared,
            threads,
            started: Instant::now(),
            first: None,
            waited: Duration::ZERO,
        }
    }

    /// What is being done.
    pub fn work(&self) -> &W {
        &self.shared.work
    }

    /// The next product; `between` is asked now and then while there is none, and may break.
    ///
    /// # Errors
    /// Nothing more can be made.
    pub fn next(
        &mut self,
        between: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<ControlFlow<(), W::Product>, ModelError> {
        let start = Instant::now();
        let product = self.take(between);
        match self.first {
            Some(_) => self.waited += start.elapsed(),
            None => self.first = Some(self.started.elapsed()),
        }
        product
    }

    fn take(
        &mut self,
        between: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<ControlFlow<(), W::Product>, ModelError> {
        let mut state = self.shared.lock();
        loop {
            let wanted = state.wanted;
            if let Some(product) = state.ready.remove(&wanted) {
                state.wanted += 1;
                drop(state);
                self.shared.changed.notify_all();
                return Ok(ControlFlow::Continue(product));
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

    /// How it goes so far.
    pub fn stats(&self) -> BackgroundStats {
        let state = self.shared.lock();
        BackgroundStats {
            made: state.made,
            busy_s: state.busy.as_secs_f64() / self.threads.len() as f64,
            waited_s: self.waited.as_secs_f64(),
            first_s: self.first.unwrap_or_default().as_secs_f64(),
        }
    }
}

impl<W: Work> Drop for Background<W> {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join(); // a thread that panicked has nothing left to say
        }
    }
}

impl<W: Work> Shared<W> {
    fn lock(&self) -> MutexGuard<'_, State<W::Product>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        while let Some(ticket) = self.claim() {
            let start = Instant::now();
            let product = self.work.make(ticket, &|| self.lock().stop);
            let mut state = self.lock();
            state.busy += start.elapsed();
            match product {
                Ok(Some(product)) => {
                    state.made += 1;
                    state.ready.insert(ticket / self.work.tickets(), product);
                }
                Ok(None) => {}
                Err(reason) => state.failed = Some(reason),
            }
            drop(state);
            self.changed.notify_all();
        }
    }

    /// The next ticket, as soon as there is room for its product; none when the work is over.
    fn claim(&self) -> Option<u64> {
        let mut state = self.lock();
        loop {
            if state.stop || state.failed.is_some() {
                return None;
            }
            if state.next_ticket / self.work.tickets() <= state.wanted + self.ahead {
                state.next_ticket += 1;
                return Some(state.next_ticket - 1);
            }
            let woken = self.changed.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }
}
