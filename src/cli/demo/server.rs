//! The server as a child process.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// How long the server may take to end its work before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);

/// A running `fewlabel serve`; stopped when dropped.
pub struct Server {
    /// Its address, without a slash at the end.
    pub url: String,
    /// Where its log lines go.
    pub log: PathBuf,
    child: Child,
    /// Kept open: a server that cannot write ends.
    _stdout: BufReader<ChildStdout>,
}

impl Server {
    /// Starts the server on a free port and returns when it listens.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(studies: &Path, log: &Path, seed: u64) -> anyhow::Result<Self> {
        let lines = File::create(log).with_context(|| format!("cannot make {}", log.display()))?;
        let mut child = Command::new(std::env::current_exe()?)
            .args([
                "serve",
                "--port",
                "0",
                "--seed",
                &seed.to_string(),
                "--studies",
            ])
            .arg(studies)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(lines)
            .spawn()
            .context("the server cannot be started")?;
        let Some(stdout) = child.stdout.take() else {
            bail!("the server's output cannot be read");
        };
        let mut server = Self {
            url: String::new(),
            log: log.to_owned(),
            child,
            _stdout: BufReader::new(stdout),
        };
        let mut ready = String::new();
        server._stdout.read_line(&mut ready)?;
        server.url = address(&ready)
            .with_context(|| format!("the server did not start; see {}", log.display()))?
            .to_owned();
        Ok(server)
    }

    /// Asks the server to stop and waits until it is gone.
    ///
    /// # Errors
    /// When it had to be killed or ended badly.
    pub fn stop(mut self) -> anyhow::Result<()> {
        let ended = self.end()?;
        ensure!(
            ended.success(),
            "the server ended badly ({ended}); see {}",
            self.log.display()
        );
        Ok(())
    }

    fn end(&mut self) -> std::io::Result<std::process::ExitStatus> {
        if let Some(ended) = self.child.try_wait()? {
            return Ok(ended);
        }
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let asked = Instant::now();
        while asked.elapsed() < STOP_PATIENCE {
            if let Some(ended) = self.child.try_wait()? {
                return Ok(ended);
            }
            std::thread::sleep(POLL);
        }
        self.child.kill()?;
        self.child.wait()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("fewlabel: the server of the demo could not be stopped: {error}");
        }
    }
}

/// The address in the line that the server prints when it listens.
fn address(ready: &str) -> Option<&str> {
    let from = ready.find("http://")?;
    ready[from..].split([',', ' ', '\n']).next()
}

/// What a user types to serve a folder again, with this same binary.
pub fn command_line(studies: &Path) -> String {
    let program = std::env::args()
        .next()
        .unwrap_or_else(|| "fewlabel".to_owned());
    format!(
        "{} serve --studies {}",
        quoted(&program),
        quoted(&studies.to_string_lossy())
    )
}

/// `text` as one word of a shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+:@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_tells_the_address() {
        let line = "fewlabel 0.1.0 listens on http://127.0.0.1:4711, data x, device cpu\n";
        assert_eq!(address(line), Some("http://127.0.0.1:4711"));
        assert_eq!(address(""), None);
    }

    #[test]
    fn words_survive_a_shell() {
        assert_eq!(quoted("target/release/fewlabel"), "target/release/fewlabel");
        assert_eq!(quoted("my studies"), "'my studies'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
