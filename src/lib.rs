//! Fewlabel: segmentation of CT with few labels, as a server for clinicians and a library for the rest.
//!
//! A clinician works in 3D Slicer; the server proposes the next case, segments it with PCT-Net, takes
//! the corrected label, fine-tunes in rounds, and publishes a result as a new, immutable version when it is not worse.
//! It speaks the MONAI Label protocol, so existing clients work unmodified.
//!
//! # Map
//! ```text
//! rest/ cli/  ──▶  project/ rounds/ sessions  ──▶  model/  ──▶  imaging/
//!  transport            domain                     network      voxels in the patient
//!                   │        ▲
//!                   ▼        │ worker/: claims a job, computes, commits through the domain
//!                 store/: rows, blobs, jobs        clock, config, rng, telemetry: leaves
//!                 dicomweb/: a PACS
//! ```
//! | module | what it is about | must not know |
//! |---|---|---|
//! | [`imaging`] | grids, files, resampling, pictures; arrays are `[z, y, x]`, the world is LPS mm | everything else |
//! | [`model`] | PCT-Net, its weights, inference, training; the only place that names burn | projects, HTTP |
//! | [`project`] | images, and labels as append-only revisions with author and annotated classes | HTTP, the network's inside |
//! | [`rounds`] | which case is next, what a round learns from, which version serves | HTTP |
//! | [`sessions`] | short-lived uploads that are not part of the project | HTTP |
//! | [`store`] | SQLite rows, content-named blobs, the queue of jobs | what they mean |
//! | [`dicomweb`] | a DICOMweb server: its list, copies of its series, results stored there, what is passed on | projects |
//! | [`worker`] | the process that computes | HTTP of clients |
//! | [`rest`] | one file per group of routes; start with `rest/router.rs` | how things are computed |
//! | [`cli`] | one file per subcommand | |
//!
//! Beside the crate, in Python, and knowing the routes of [`rest`] only: `slicer-extension/` for 3D Slicer, `plugin/` for
//! MONAI Label.
//!
//! The arrows are checked by a test (`tests/it/layering.rs`).
//!
//! Two processes run: the server (`fewlabel serve`) answers requests and never computes; its child,
//! the worker, computes and never answers. They meet in the data directory only, in the table of
//! jobs: a job is claimed with a lease and a fencing number, so that either may be killed at any time.
//!
//! # A submit
//! `PUT /datastore/label` ([`rest`]) streams the upload to `staging/`, hashing it.
//! [`project::Project::submit_label`] decodes it, checks that it lies on the image's grid (a
//! segmentation cropped by Slicer is put back onto it), maps its values to the project's classes by
//! name, and puts both the file as it came and the normalised label into the blob store under their
//! hashes. One
//! transaction then adds the revision, makes it the current one and adds its audit row; that commit *is*
//! the submit. Only then does the client hear 200. A kill before it leaves a blob without a name; after
//! it, nothing is lost. `tests/fault` kills it at every system call, and lets the disk fail there.
//!
//! # An inference
//! `POST /infer/{model}` adds a job and waits for it. The worker claims it before any other kind of
//! work; training looks for such jobs between two steps and does them in between
//! ([`worker`]). The scan is read, turned to LPS order, brought to the model's spacing and HU window,
//! cut into overlapping windows ([`model::Segmenter`]); windows of air alone are skipped, logits are
//! blended, and the argmax returns to the exact grid of the file (on a GPU everything from the windows on happens there, and
//! only labels come back, `model/infer/on_device.rs`). The file goes back as the second
//! part of a multipart answer with `Content-Length`, which MONAI Label's client needs. A client that
//! leaves takes its job along.
//!
//! # A click, a stroke
//! Names that `/infer` knows beyond the models are in `rest/interaction.rs`. Points travel as voxels of the file to the
//! worker, which holds the scans last used (`worker/scans.rs`). [`model::OpenScan`] keeps the blended logits of such a scan: a
//! click becomes a Gaussian in an input channel of its class (`model/clicks.rs`), windows that see it are asked with the old and
//! with the new clicks, and the blend, which is in the host's memory on a GPU too, gets the difference. Strokes become a mask by
//! [`imaging::scribbles`]: likelihoods of intensities, the model's probabilities as odds before them, and a minimum cut on the
//! grid of the file.
//!
//! # A next case
//! `POST /activelearning/{strategy}` chooses among the images without an accepted label ([`rounds::strategy`], one file per
//! formula). What a strategy goes by was computed before: a job of kind score asks the live version about every image
//! ([`rounds::scoring`], [`model::Explorer`]) and keeps the answers image by image, so that it goes on where it was
//! interrupted. The network's answers to a window (draws of dropout, flips, versions) are averaged as probabilities, blended
//! and handed over slice by slice: class probabilities of a whole scan are never in memory. `fewlabel simulate`
//! ([`rounds::simulate`]) replays a labelled set with the same strategies, scores and training.
//!
//! # A round
//! `POST /train/{model}`, enough new labels or the time of the day ([`rounds::schedule`]) adds a job and a row in the table
//! of rounds. [`rounds::fine_tune`] collects the accepted labels with the
//! classes that were annotated in each (the others are unknown there, never background), keeps
//! validation and test images apart by the table that every image is in since its first sight
//! (`project/split.rs`), and starts from the version that the first round started from. That plan is kept with the row, so
//! that a second worker continues the same round from its checkpoint.
//! [`model::train()`] reports after every step; the job's row carries that to `/info/`, `/train/` and `/rounds/`.
//! The worker then lets the new and the live version segment the same validation cases, and [`rounds::gate`] decides.
//! [`rounds::registry`] moves the finished directory into place, and one transaction adds the version, live or as a
//! candidate, and ends the round, if the job is still this worker's. A stopped or failed round publishes nothing.
//!
//! # A next sample
//! `POST /activelearning/{strategy}` chooses ([`rounds::strategy`]) among the images that nobody has leased, and leases the
//! chosen one to the client ([`rounds::leases`]), one request at a time; the submit of its label ends the lease. An idle
//! worker makes the proposals for what will probably be chosen next ([`rounds::ahead`]).
//!
//! # A training
//! [`model::train()`] brings each case to the model's grid once and keeps it on disk. Threads make patches ahead of the trainer
//! (`model/background`, shared with pretraining): where a patch lies and what is done to it is a pure function of (seed,
//! number of the patch), so a run is its step, weights and moments here too. Cases that cannot be used are named and left
//! out; numbers that are not finite lead back to the last good state. On a GPU the threads only read and draw, and the GPU
//! makes the patches with the same steps (`model/kernels/patches.rs`).
//!
//! # A pretraining
//! `fewlabel pretrain` ([`model::pretrain`]) learns from scans without labels by Volume Fusion
//! ([`model::volume_fusion`]). Threads read scans and make samples ahead of the trainer, in memory that does not grow
//! with the archive. Sample i is a pure function of (files, seed, i), so a run is its step, weights and moments; they
//! are saved while it goes, and a run that was killed ends with the weights of one that was not. Its result is a model
//! directory that fine-tuning starts from, with fresh heads.
//!
//! # Trusting the disk
//! Every commit also writes a hash of each row it touched (`store::rows::seal`), blobs are named by their
//! hash, models carry theirs. [`store::Store::examine`] compares; a server whose store fails that is read only:
//! [`store::rows::Database::begin`] refuses, so that every write answers with the reason. A backup is a
//! snapshot of the rows, then the immutable files that it names.
//!
//! # Studies on a PACS
//! `serve --studies https://...` makes the series of a DICOMweb server the images. The list is a query
//! ([`dicomweb::Pacs::list`]) that `project/rescan.rs` compares with the rows as it does with a folder, so that counts are right
//! before any pixel is here. Whoever reads an image goes through [`project::Project::image_file`]: the one place where a series
//! is fetched, and held while it is read. A copy is a zip file of checked instances under a name that says which state of the
//! series it is; server and worker share the folder by locks on the files. Accepted labels that say nothing about having been
//! stored are stored ([`project::Project::store_results`]): there is no queue that could disagree with the labels, and an object
//! made again from a revision has the same identifiers.
//!
//! # Decisions worth knowing
//! - **Own multipart parser and DICOM JSON reading** ([`dicomweb`]): two hundred lines, bounded, against a client library that
//!   brings a second HTTP client and a DICOM parser of its own. HTTP is hyper, which is here anyway, with rustls and the
//!   certificates of the system.
//! - **Own codecs for NIfTI and NRRD.** The `nifti` crate accepts a wrong gzip checksum and an offset
//!   that is not a number, and knows no NIfTI-2; a reader of patients' images must refuse the former.
//! - **Own walker of DICOM files** ([`imaging::dicom`]); only the decoders of compressed pixels are crates.
//!   `dicom-object` 0.10 ends the process on deeply nested files and reserves what a header announces, so nothing
//!   unchecked may reach it; after the checks there was little left for it to do.
//! - **Own weights code, no burn-store.** Weights are safetensors under the names of the published
//!   checkpoints ([`model::weights`]), so that they can be exchanged with PyTorch tensor by tensor.
//! - **Uploaded models are safetensors only.** A `.pt` file is a program; `fewlabel convert` reads it
//!   without executing it, in a child process with limits, and the server never reads one.
//! - **An own page for the interface description**, embedded in the binary: `/` lists the routes from
//!   `/openapi.json` and loads nothing from elsewhere.
//! - **Own kernels on the CPU** ([`model::kernels`]): convolution, normalisation, attention and their
//!   gradients, because training has to be bearable without a GPU. Each is tested against the plain
//!   operations of burn.
//! - **The same kernels on GPUs** as CubeCL source for CUDA and Vulkan. A GPU that is missing something, or fails, is an
//!   error with what to do, never a panic (`model/engine`); one process uses one GPU, and `model/train/passes.rs` says
//!   where several would come in.
pub mod cli;
pub mod clock;
pub mod config;
pub mod dicomweb;
pub mod imaging;
pub mod model;
pub mod project;
pub mod rest;
pub mod rng;
pub mod rounds;
pub mod sessions;
pub mod store;
pub mod telemetry;
pub mod worker;
