//! The MONAI Label REST protocol over HTTP, one file per group of routes; start with [`router`].
//!
//! Handlers read the request, call the domain (`project`, `rounds`, `sessions`) and shape the answer;
//! they hold no state but [`App`]. Work that takes long is a job that the worker process does:
//! `/infer` waits for its job, the others answer with a task object.
//!
//! # Deliberate differences from MONAI Label 0.8.5
//! `tests/python/test_conformance.py` compares the answers with a recording of the real server's, and has
//! each difference that shows there with its reason.
//!
//! | topic | MONAI Label | here |
//! |---|---|---|
//! | errors | `{"detail"}`, or `Internal Server Error` as text | always `{"detail", "code", "request_id"}` |
//! | unknown model, image, label, strategy, method | 500, or a task that fails later | 404 |
//! | `params` that is not a JSON object | 500 | 400 |
//! | keys of `params` in `/infer` | merged over the server's, so `image` can name any file | a fixed list is read, others are ignored |
//! | ids and tags with path parts | write outside the store | 422 |
//! | id of an upload without `image` | name up to its first dot | name without the format's suffix |
//! | the same image uploaded again | its labels are dropped | its labels are kept |
//! | the same label submitted again | the old file is overwritten | a new revision |
//! | `device` in `params` | chooses the device | ignored; the server has one device policy |
//! | `label` file of `/infer` (scribbles) | used by scribble models | ignored; there are none |
//! | many requests at once | all wait for one another | bounded queue, then 429 with `Retry-After` |
//! | client leaves `/infer` | the work goes on | the job is cancelled |
//! | result of `/infer` | | also tells model, version, hash and windows |
//! | next sample | no checksum; `strategy` with this serving | `checksum`; `strategy` before this serving; never a test image |
//! | a label that is submitted again | overwritten | a new revision; see `/datastore/label/revisions`, `compare`, `current` |
//! | `?output=train` | every pair | without test images, and without what a second reader sent back, see `/reviews/` |
//! | an image file that changes under its id | its labels stay as they are | they are kept and marked `stale`; see `/datastore/label/confirm` |
//! | a damaged store | is overwritten | read only: 503 with the reason for whatever writes |
//! | `HEAD` of an image or label | headers of an empty JSON answer | headers of the file |
//! | `/ohif` | the viewer | 404 |
//! | `HEAD /datastore/image?check_sum=` | never matches | matches `SHA256:hex` and plain hex |
//! | `PUT /model/{model}` | any file, unpickled later | safetensors only (else 415), a new version |
//! | `DELETE /model/{model}` | renames the file | 409: versions are immutable |
//! | `output=dicom_seg` | 500, after the inference | 400, before it |
//! | `POST /reload` | anybody drops the application | 403 |
//! | archives (`/session/?uncompress=true`) | unpacked to disk | refused with 422 |
//! | `Content-Encoding` of a request | accepted | 415 |
//! | CORS | any origin, with credentials | off; origins can be named, never with credentials |
//! | pages (`/`, `/docs`, `/logs/`) | load scripts from other hosts | own files only |
//! | `/logs/` | the log file | the last lines, from memory |

mod absent;
mod activelearning;
mod app;
mod archive;
mod batch;
pub mod damaged;
mod datastore;
mod docs;
mod edge;
mod error;
mod form;
mod health;
mod infer;
mod info;
mod interaction;
mod logs;
mod model;
mod query;
mod reply;
mod reviews;
mod revisions;
pub mod router;
mod scoring;
pub mod serve;
mod session;
mod structures;
mod studies;
mod task;
mod train;

pub use app::{App, AppParts};
