//! The built program as a process of its own, with its real worker.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::http::Http;

/// The folder of shared test data, or `None` with the reason printed.
pub fn shared(part: &str) -> Option<PathBuf> {
    let root = std::env::var_os("FEWLABEL_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"),
        PathBuf::from,
    );
    let folder = root.join(part);
    if folder.is_dir() {
        return Some(folder);
    }
    eprintln!(
        "skipped: there is no {} (FEWLABEL_SHARED may name another folder)",
        folder.display()
    );
    None
}

/// `fewlabel serve`, killed when dropped.
pub struct Process {
    child: Child,
    http: Http,
    ready: String,
}

impl Process {
    /// Starts a server on a free port and waits for its ready line; its log is added to `log`.
    pub fn serve<S: AsRef<OsStr>>(log: &Path, arguments: impl IntoIterator<Item = S>) -> Self {
        Self::serve_with(log, arguments, &[])
    }

    /// As `serve`, with more variables in its environment.
    pub fn serve_with<S: AsRef<OsStr>>(
        log: &Path,
        arguments: impl IntoIterator<Item = S>,
        variables: &[(&str, &str)],
    ) -> Self {
        let log = File::options().create(true).append(true).open(log).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_fewlabel"))
            .args(["serve", "--port", "0"])
            .args(arguments)
            .env_remove("RUST_LOG")
            .envs(variables.iter().copied())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut ready)
            .unwrap();
        let address = ready
            .split("http://")
            .nth(1)
            .and_then(|rest| rest.split(',').next());
        let address = address
            .unwrap_or_else(|| panic!("not ready: {ready:?}"))
            .parse()
            .unwrap();
        Self {
            child,
            http: Http { address },
            ready,
        }
    }

    /// The line that it printed when it was ready.
    pub fn ready(&self) -> &str {
        &self.ready
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to stop, as a service manager does, and waits until it did.
    pub fn terminate(mut self) {
        let asked = Command::new("kill")
            .arg(self.child.id().to_string())
            .status()
            .unwrap();
        assert!(asked.success());
        assert!(self.child.wait().unwrap().success(), "a clean stop");
    }

    /// Kills it without warning, and waits until the system has taken it away.
    pub fn kill_9(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl std::ops::Deref for Process {
    type Target = Http;

    fn deref(&self) -> &Http {
        &self.http
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The processes that `pid` started and that still run.
pub fn children(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let text = std::fs::read_to_string(task.unwrap().path().join("children"));
        let text = text.unwrap_or_default(); // a thread may have ended meanwhile
        found.extend(
            text.split_whitespace()
                .map(|pid| pid.parse::<u32>().unwrap()),
        );
    }
    found
}

/// Kills a process without warning.
pub fn kill_9(pid: u32) {
    let killed = Command::new("kill")
        .args(["-9", &pid.to_string()])
        .status()
        .unwrap();
    assert!(killed.success(), "process {pid} was not there");
}
