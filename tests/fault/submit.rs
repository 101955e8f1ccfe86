//! What is killed: one submit through the code of the server, and the server itself without its worker.

use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Duration;

use fewlabel::project::{ImageId, ProjectError, Tag};
use fewlabel::rest::{App, AppParts, Offers, router, serve as rest};
use fewlabel::rounds::registry::Registry;
use fewlabel::sessions::Sessions;
use fewlabel::telemetry::LogRing;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::site;

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // One system call, like the answer on a socket.
    out.write_all(format!("{line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

/// Waits for a line; false at the end of the input.
fn told() -> bool {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).unwrap() > 0
}

fn outcome(result: Result<fewlabel::project::LabelRow, ProjectError>) -> String {
    match result {
        Ok(row) => format!("revision {}", row.revision),
        Err(error) => {
            let class = match error {
                ProjectError::NoSpace(_) => "507",
                // SQLite takes a read that fails with EIO for damage.
                ProjectError::Unavailable(_) | ProjectError::Damaged(_) => "503",
                ProjectError::Internal(_) => "500",
                _ => "4xx",
            };
            format!("refused {class} {error}").replace('\n', " ")
        }
    }
}

/// Says `ready`; on the first line of input submits revision 2 of a label and tells the outcome; on the second reads
/// the label and repeats the submit. Everything blocking is on one thread, so that every run makes the same calls.
pub fn submit(dir: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .thread_keep_alive(Duration::from_secs(3600))
        .build()
        .unwrap();
    runtime.block_on(async {
        let project = site::open(dir).await;
        // Threads and connections are there afterwards.
        for n in 0..2 {
            site::submit(
                &project,
                "case_2",
                "warm",
                &site::label(n),
                &format!("w{n}"),
            )
            .await
            .unwrap();
        }
        let bytes = site::label(2);
        say("ready");
        if !told() {
            return;
        }
        say(&outcome(
            site::submit(&project, "case_1", "final", &bytes, "key").await,
        ));
        if !told() {
            return;
        }
        // The one fault may come only now; what fails once is asked again.
        let image = ImageId::parse("case_1").unwrap();
        let mut current = project.label(&image, &Tag::accepted()).await;
        if current.is_err() {
            current = project.label(&image, &Tag::accepted()).await;
        }
        say(&format!(
            "current {}",
            current.unwrap().map_or(0, |row| row.revision)
        ));
        let again = || site::submit(&project, "case_1", "final", &bytes, "key");
        let mut repeated = again().await;
        if repeated.is_err() {
            repeated = again().await;
        }
        say(&outcome(repeated));
    });
}

/// Serves on a free port, which it prints, until it is killed.
pub fn serve(dir: &Path) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let project = site::open(dir).await;
        let app = App::new(AppParts {
            registry: Registry::new(&project),
            sessions: Sessions::new(&project),
            project,
            logs: LogRing::default(),
            device: "cpu".to_owned(),
            infer_slots: 1,
            cors_origins: Vec::new(),
            hosts: None,
            prefix: String::new(),
            offers: Offers::default(),
            worker: watch::channel(false).1,
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        say(&listener.local_addr().unwrap().to_string());
        let limits = rest::Limits::default();
        rest::serve(
            listener,
            router::router(app),
            limits,
            std::future::pending(),
        )
        .await;
    });
}
