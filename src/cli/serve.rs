//! `fewlabel serve`: the server for a folder of studies.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderValue;
use clap::Args;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::Usage;
use super::dicomweb_options::DicomWebOptions;
use super::environment::Settings;
use super::round_options::RoundOptions;
use crate::clock::SystemClock;
use crate::config::{RawServeConfig, ServeConfig, StudiesAt};
use crate::model::{self, DeviceChoice, LabelSchema, Manifest, PctNetConfig, PrecisionChoice};
use crate::project::{Limits, OpenProject, Project, ProjectError, SETTLE, Studies};
use crate::rest::serve::{self, Limits as HttpLimits, stop_signal};
use crate::rest::{App, AppParts, damaged, router};
use crate::rounds::ahead;
use crate::rounds::registry::{ModelVersion, Registry};
use crate::rounds::schedule;
use crate::sessions::Sessions;
use crate::telemetry::{self, LogFormat};
use crate::worker::supervisor::{self, Supervisor};

/// Name of the model that is made when none is given.
const DEFAULT_MODEL: &str = "pct-net-s";

/// A folder with this file is a model.
const MANIFEST: &str = "manifest.json";
/// Pause between two looks for damage.
const SCRUB: Duration = Duration::from_secs(24 * 3600);
/// Pause between two rounds of housekeeping.
const HOUSEKEEPING: Duration = Duration::from_secs(300);

/// Arguments of `fewlabel serve`.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// Folder with the images at its top level: *.nii.gz, *.nii, *.nrrd, and DICOM series as folders or *.zip. Or the address
    /// of a DICOMweb server: its series are the images, and accepted labels are stored there; its login comes from the
    /// environment (FEWLABEL_DICOMWEB_TOKEN, FEWLABEL_DICOMWEB_TOKEN_FILE, or MONAI_LABEL_DICOMWEB_USERNAME with
    /// MONAI_LABEL_DICOMWEB_PASSWORD or FEWLABEL_DICOMWEB_PASSWORD_FILE). Images are never changed
    #[arg(
        long,
        value_name = "DIR|DICOMWEB_URL",
        env = "MONAI_LABEL_STUDIES",
        hide_env_values = true
    )]
    pub studies: String,
    /// Folder for labels, models and everything else this server writes [default: .fewlabel in the
    /// studies folder; with a DICOMweb server, in the current folder]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Name or address to listen on. Any but this machine needs --insecure
    #[arg(long, default_value = "127.0.0.1")]
    pub host: String,
    /// Port to listen on; 0 takes a free one, which the ready line tells
    #[arg(
        long,
        default_value_t = 8000,
        env = "MONAI_LABEL_SERVER_PORT",
        hide_env_values = true
    )]
    pub port: u16,
    /// Where to compute: auto, cpu, cuda, cuda:N, vulkan or vulkan:N
    #[arg(long, default_value = "auto")]
    pub device: DeviceChoice,
    /// Numbers of inference: f32, bf16 (rounded factors, sums in f32; on a CPU faster where the processor has such products),
    /// f16 (on a GPU) or auto, which is f32
    #[arg(long, default_value = "auto")]
    pub precision: PrecisionChoice,
    /// Model to serve: a folder with manifest.json, or the name of a model in the data folder
    /// [default: the live model; in a new data folder an untrained one]
    #[arg(long, value_name = "NAME|DIR")]
    pub model: Option<String>,
    /// Names of the labels in order of their voxel values from 1, for a new project
    #[arg(long, value_name = "A,B,C", value_delimiter = ',')]
    pub labels: Option<Vec<String>>,
    /// Let other machines in although this server has no login
    #[arg(long)]
    pub insecure: bool,
    /// Let web pages of this origin (for example an OHIF viewer) use the server; repeatable
    #[arg(long, value_name = "ORIGIN")]
    pub cors_origin: Vec<HeaderValue>,
    /// Answer to this host name too, by which a proxy passes requests on; repeatable. Without it a server that
    /// listens on this machine only answers to the names of this machine only
    #[arg(long, value_name = "NAME")]
    pub allow_host: Vec<String>,
    /// Inference requests that may wait at the same time; more are answered with 429
    #[arg(long, default_value_t = 32, value_name = "N")]
    pub infer_queue: usize,
    /// Largest file that may be uploaded, in MiB; larger ones are answered with 413
    #[arg(long, default_value_t = 4096, value_name = "MIB")]
    pub upload_limit_mib: u64,
    /// Uploads are answered with 507 while the disk has less free space than this, in MiB
    #[arg(long, default_value_t = 256, value_name = "MIB")]
    pub min_free_mb: u64,
    /// Seed of everything random in this project
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Rounds, their gate and leases
    #[command(flatten)]
    pub rounds: RoundOptions,
    /// What a DICOMweb server gives and gets
    #[command(flatten)]
    pub dicomweb: DicomWebOptions,
    /// How log lines are written to standard error
    #[arg(long, value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// Which log lines are written, as in RUST_LOG
    #[arg(long, default_value = "info", env = "RUST_LOG", value_name = "FILTER")]
    pub log: String,
}

/// Opens the project and serves it until SIGTERM or ctrl-c.
///
/// # Errors
/// [`Usage`] for arguments that cannot be; anything else when the server could not start.
pub fn run(args: ServeArgs) -> anyhow::Result<()> {
    tokio::runtime::Runtime::new()?.block_on(start(args))
}

async fn start(args: ServeArgs) -> anyhow::Result<()> {
    let config = ServeConfig::check(RawServeConfig {
        studies: args.studies,
        data: args.data,
        host: args.host,
        port: args.port,
        insecure: args.insecure,
        infer_slots: args.infer_queue,
        upload_limit_bytes: args.upload_limit_mib << 20,
    })
    .map_err(|error| Usage(error.to_string()))?;
    // The worker would find out as well, but only with the first job.
    model::check_device(args.device)?;
    let settings = Settings::of_process()?;
    let logs = telemetry::init(args.log_format, &args.log)?;
    for line in &settings.ignored {
        tracing::warn!("ignored: {line}");
    }
    let given = args
        .model
        .as_deref()
        .map(Path::new)
        .filter(|dir| dir.join(MANIFEST).is_file());
    let labels = match choose_labels(&config, given, args.labels).await {
        Ok(labels) => labels,
        Err(error) => return serve_damaged(&config, error).await,
    };
    let open = OpenProject {
        studies: match &config.studies {
            StudiesAt::Folder(folder) => Studies::Folder(folder.clone()),
            StudiesAt::DicomWeb(url) => Studies::DicomWeb {
                url: url.clone(),
                settings: args.dicomweb.settings(),
            },
        },
        data: config.data.clone(),
        labels,
        clock: Arc::new(SystemClock),
        seed: args.seed,
        settle: SETTLE,
    };
    let limits = Limits {
        max_upload_bytes: config.upload_limit_bytes,
        min_free_bytes: args.min_free_mb << 20,
        ..Limits::default()
    };
    let project = match Project::open(open).await {
        Ok(project) => project.with_limits(limits),
        Err(error) => return serve_damaged(&config, error.into()).await,
    };
    if project.read_only().is_none() {
        args.rounds.keep(&project).await?;
    }
    let registry = Registry::new(&project);
    let ready = match project.read_only() {
        Some(reason) => format!("READ ONLY: {reason}"),
        None => {
            let live = choose_model(&project, &registry, args.model.as_deref(), given).await?;
            ready_line(&project, &args.device, &live)?
        }
    };
    let listener = listen(&config)?;
    let address = listener.local_addr()?;
    let stop = stop_signal()?;
    // A damaged store gives a worker nothing to do.
    let supervisor = match project.read_only() {
        Some(_) => None,
        None => {
            let jobs = project.jobs().clone();
            Some(supervisor::spawn(
                &config.data,
                jobs,
                &args.device,
                &args.precision,
            )?)
        }
    };
    let sessions = Sessions::new(&project);
    let mut housekeeping = tokio::task::JoinSet::new();
    if let Some(supervisor) = &supervisor {
        housekeeping.spawn(keep_house(project.clone(), sessions.clone()));
        if settings.follow_studies != Some(false) {
            let (follower, poll) = (project.clone(), args.dicomweb.poll());
            housekeeping.spawn(async move { follower.follow_studies(poll).await });
        }
        if let Some(how) = args.dicomweb.results() {
            let sender = project.clone();
            housekeeping.spawn(async move { sender.store_results(how).await });
        }
        housekeeping.spawn(ahead::fetch(project.clone()));
        housekeeping.spawn(schedule::keep_going(project.clone()));
        housekeeping.spawn(look_for_damage(project.clone(), supervisor.stopper()));
    }
    let no_worker = || watch::Sender::new(false).subscribe();
    let app = App::new(AppParts {
        project: project.clone(),
        registry,
        sessions,
        logs,
        device: args.device.to_string(),
        infer_slots: config.infer_slots,
        cors_origins: [args.cors_origin, settings.cors_origins].concat(),
        hosts: config.address.ip().is_loopback().then_some(args.allow_host),
        prefix: settings.prefix,
        offers: settings.offers,
        worker: supervisor
            .as_ref()
            .map_or_else(no_worker, Supervisor::alive),
    });
    println!(
        "fewlabel {} listens on http://{address}, {ready}",
        env!("CARGO_PKG_VERSION")
    );
    let limits = HttpLimits::default().within_files();
    let drained = serve::serve(listener, router::router(app), limits, stop).await;
    housekeeping.abort_all();
    if let Some(supervisor) = supervisor {
        supervisor.stop().await;
    }
    project.close().await;
    if !drained {
        tracing::warn!("some requests were still in progress after the time for them was over");
    }
    tracing::info!("stopped");
    Ok(())
}

/// Takes the address, or says what to do instead.
fn listen(config: &ServeConfig) -> anyhow::Result<TcpListener> {
    let address = config.address;
    serve::bind(address).map_err(|error| {
        let what_to_do = match error.kind() {
            ErrorKind::AddrInUse => "another program listens there; stop it, or choose another --port (0 takes a free one)".to_owned(),
            ErrorKind::AddrNotAvailable => format!(
                "no network interface of this machine has the address {}; see --host",
                address.ip()
            ),
            ErrorKind::PermissionDenied => {
                "this user may not listen there; choose a --port of 1024 or more".to_owned()
            }
            _ => "see --host and --port".to_owned(),
        };
        anyhow::anyhow!("cannot listen on {address}: {error}: {what_to_do}")
    })
}

/// Serves the reason, when nothing of the project can be read; returns any other error.
async fn serve_damaged(config: &ServeConfig, error: anyhow::Error) -> anyhow::Result<()> {
    let Some(ProjectError::Damaged(reason)) = error.downcast_ref() else {
        return Err(error);
    };
    tracing::error!("nothing can be served: {reason}");
    let listener = listen(config)?;
    println!(
        "fewlabel {} listens on http://{}, DAMAGED: {reason}",
        env!("CARGO_PKG_VERSION"),
        listener.local_addr()?
    );
    let limits = HttpLimits::default().within_files();
    serve::serve(listener, damaged::router(reason), limits, stop_signal()?).await;
    Ok(())
}

/// The labels of the project: those of the given model, else of the project when it exists already,
/// else of `dataset.json` in the studies folder, else those on the command line.
async fn choose_labels(
    config: &ServeConfig,
    given: Option<&Path>,
    spelled: Option<Vec<String>>,
) -> anyhow::Result<LabelSchema> {
    let spelled = match spelled {
        Some(names) => {
            Some(LabelSchema::new(names).map_err(|error| Usage(format!("--labels: {error}")))?)
        }
        None => None,
    };
    let dataset = config.studies.folder();
    let dataset = dataset.map(|folder| folder.join("dataset.json"));
    let found = if let Some(dir) = given {
        let manifest = Manifest::read(dir);
        Some(
            manifest
                .map_err(|error| Usage(format!("--model {}: {error}", dir.display())))?
                .model
                .labels,
        )
    } else if let Some(schema) = stored_labels(&config.data).await? {
        Some(schema)
    } else if let Some(dataset) = dataset.as_ref().filter(|file| file.is_file()) {
        let schema = LabelSchema::from_dataset_json(dataset);
        Some(schema.map_err(|error| Usage(format!("{}: {error}", dataset.display())))?)
    } else {
        None
    };
    match (found, spelled) {
        (Some(found), Some(spelled)) if found.names() != spelled.names() => Err(Usage(format!(
            "--labels {} does not fit what is there already ({}); leave --labels out, or start with \
             another model and data folder",
            spelled.names().join(","),
            found.names().join(","),
        ))
        .into()),
        (Some(labels), _) | (None, Some(labels)) => Ok(labels),
        (None, None) => Err(Usage(format!(
            "the labels of this project are not known; give one of: --model DIR (a model says its \
             labels){}, or --labels NAME,NAME,...",
            dataset.map_or_else(String::new, |file| format!(", a file {}", file.display())),
        ))
        .into()),
    }
}

/// The labels of a project that was opened before.
async fn stored_labels(data: &Path) -> anyhow::Result<Option<LabelSchema>> {
    if !data.is_dir() {
        return Ok(None);
    }
    match Project::open_reader(data).await {
        Ok(project) => {
            let labels = project.schema().clone();
            project.close().await;
            Ok(Some(labels))
        }
        Err(ProjectError::NotFound(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The model to serve: the given one, else the one named, else the live one, else an untrained one.
async fn choose_model(
    project: &Project,
    registry: &Registry,
    wanted: Option<&str>,
    given: Option<&Path>,
) -> anyhow::Result<ModelVersion> {
    if let Some(dir) = given {
        let given = registry.import_initial(dir).await?;
        if given.live {
            return Ok(given);
        }
        // A restart with the same arguments must not undo the rounds since.
        let live = registry.live(&given.name).await?.unwrap_or(given.clone());
        tracing::warn!(
            "the model of --model is version {} of {}; version {} stays live",
            given.version,
            given.name,
            live.version
        );
        return Ok(live);
    }
    let live: Vec<_> = registry
        .models()
        .await?
        .into_iter()
        .filter(|model| model.live)
        .collect();
    if let Some(wanted) = wanted {
        let names: Vec<_> = live.iter().map(|model| model.name.clone()).collect();
        let found = live.into_iter().find(|model| model.name == wanted);
        return Ok(found.ok_or_else(|| {
            Usage(format!(
                "--model {wanted}: this is neither a folder with {MANIFEST} nor a model of this \
                 project (models: {})",
                names.join(", "),
            ))
        })?);
    }
    if let Some(model) = live.into_iter().next() {
        return Ok(model);
    }
    let scratch = tempfile::tempdir_in(project.data_dir())?;
    let dir = scratch.path().join(DEFAULT_MODEL);
    let config =
        PctNetConfig::pct_net_s(project.schema().class_count(), PctNetConfig::SMALL_PATCH, 1);
    model::create_untrained(
        &dir,
        DEFAULT_MODEL,
        &config,
        project.schema(),
        project.seed(),
    )?;
    Ok(registry.import_initial(&dir).await?)
}

fn ready_line(
    project: &Project,
    device: &DeviceChoice,
    live: &ModelVersion,
) -> anyhow::Result<String> {
    Ok(format!(
        "data {}, device {device}, model {} version {} ({}, {})",
        project.data_dir().display(),
        live.name,
        live.version,
        live.sha256.get(..12).unwrap_or(&live.sha256),
        if live.manifest()?.trained {
            "trained"
        } else {
            "not trained yet"
        },
    ))
}

/// Reads every byte of the store once a day; when one is damaged, the server goes on read only and the
/// worker ends.
async fn look_for_damage(project: Project, stop_worker: watch::Sender<bool>) {
    loop {
        match project.scrub().await {
            Ok(None) => {}
            Ok(Some(_)) => {
                stop_worker.send_replace(true);
                return;
            }
            Err(error) => tracing::warn!("the store could not be checked: {error}"),
        }
        tokio::time::sleep(SCRUB).await;
    }
}

/// Ended sessions and leftovers are removed, every few minutes.
async fn keep_house(project: Project, sessions: Sessions) {
    loop {
        tokio::time::sleep(HOUSEKEEPING).await;
        let done = async {
            sessions.sweep().await?;
            project.sweep().await?;
            Ok::<_, ProjectError>(())
        };
        if let Err(error) = done.await {
            tracing::warn!("housekeeping failed and is tried again later: {error}");
        }
    }
}
