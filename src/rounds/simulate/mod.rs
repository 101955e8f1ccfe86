//! A labelling project replayed on a set whose labels are all known: how fast do strategies get to a good model?
//!
//! Strategies, scores and training are those of the server. The test set is the same for all and never chosen from; the
//! initial cases of a seed are the same for all strategies, drawn so that every structure is in one of them as far as that
//! is possible; every round learns from the same parent with the same number of steps. After nnActive (Lueth and others,
//! TMLR 2025, arXiv 2511.19183), but whole images are chosen here.
//!
//! | file | what it is about |
//! |---|---|
//! | `settings` | what is simulated, and the cases it is simulated on |
//! | `run` | the rounds; each is on the disk when it is done |
//! | `record` | what is kept of a round |
//! | `analysis` | curves, areas, efficiency, pairwise comparison |
//! | `student` | Student's t distribution |

mod analysis;
mod record;
mod run;
mod settings;
mod student;

pub use analysis::{Estimate, Point, StrategySummary, Summary, summarise};
pub use record::{RoundRecord, TestCase};
pub use run::{Event, run};
pub use settings::{Case, Settings, Study};
