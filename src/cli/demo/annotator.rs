//! The clinician's part: a MONAI Label client that does what 3D Slicer's plugin does.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use ureq::{Agent, Body, http::Response};

use super::studies::{Study, names};
use crate::cli::progress::Progress;
use crate::imaging::{Budget, Volume, read_label};

/// Longest wait for one answer: an inference on a slow machine.
const ANSWER_LIMIT: Duration = Duration::from_secs(300);
/// Largest answer that is read.
const MAX_ANSWER_BYTES: u64 = 1 << 30;
/// How the annotator signs.
const CLIENT_ID: &str = "demo-annotator";
const BOUNDARY: &str = "fewlabel-demo-boundary";

/// A client of one model on one server.
pub struct Annotator {
    agent: Agent,
    url: String,
    model: String,
    strategy: String,
    interrupted: Arc<AtomicBool>,
}

/// Where training is.
pub struct Training {
    /// `SUBMITTED`, `RUNNING`, `DONE`, `ERROR` or `STOPPED`.
    pub status: String,
    /// Steps made; none before the first.
    pub step: Option<usize>,
    /// Loss of the last step.
    pub loss: f64,
    /// What the server said last.
    pub last_line: String,
}

impl Annotator {
    /// Asks the server what it offers.
    ///
    /// # Errors
    /// When it does not answer or has no model.
    pub fn connect(url: &str, interrupted: &Arc<AtomicBool>) -> anyhow::Result<Self> {
        // The server is on this machine: a proxy of the environment is not for it.
        let agent = Agent::config_builder()
            .proxy(None)
            .http_status_as_error(false)
            .timeout_global(Some(ANSWER_LIMIT))
            .build()
            .into();
        let mut this = Self {
            agent,
            url: url.to_owned(),
            model: String::new(),
            strategy: "first".to_owned(),
            interrupted: Arc::clone(interrupted),
        };
        let info = this.get("/info/")?;
        let models = info["models"]
            .as_object()
            .and_then(|models| models.keys().next());
        this.model = models.context("the server offers no model")?.clone();
        ensure!(
            info["strategies"][&this.strategy].is_object(),
            "the server has no strategy {}",
            this.strategy
        );
        Ok(this)
    }

    /// Id of the case to label next.
    ///
    /// # Errors
    /// When there is none left.
    pub fn next_case(&self) -> anyhow::Result<String> {
        let path = format!("/activelearning/{}", self.strategy);
        let sample = self.post_json(&path, &json!({ "client_id": CLIENT_ID }))?;
        Ok(sample["id"]
            .as_str()
            .context("the server has no case to label")?
            .to_owned())
    }

    /// The model's proposal for an image, on the image's grid.
    ///
    /// # Errors
    /// When inference failed, or the answer is not what the protocol says.
    pub fn propose(&self, image: &str) -> anyhow::Result<Volume<u16>> {
        let params = json!({ "result_extension": ".nii.gz", "result_dtype": "uint8", "client_id": CLIENT_ID });
        let form = form(&[("params", None, params.to_string().as_bytes())]);
        let url = format!("{}/infer/{}?image={}", self.url, self.model, escaped(image));
        let request = self.agent.post(&url).content_type(form_type());
        let mut answer = checked(self.talk(|| request.send(&form))?)?;
        let kind = answer
            .headers()
            .get("content-type")
            .and_then(|value| value.to_str().ok());
        let boundary = kind
            .and_then(|kind| kind.split_once("boundary="))
            .map(|(_, boundary)| boundary.to_owned());
        let boundary = boundary.context("the answer to /infer is not multipart")?;
        let body = answer
            .body_mut()
            .with_config()
            .limit(MAX_ANSWER_BYTES)
            .read_to_vec()?;
        let label =
            part(&body, &boundary, "image").context("the answer to /infer holds no label map")?;
        let mut file = tempfile::Builder::new().suffix(".nii.gz").tempfile()?;
        file.write_all(label)?;
        let mut read = read_label(file.path(), &Budget::default())?;
        let voxels = read
            .layers
            .pop()
            .context("the label map of the answer is empty")?;
        Ok(Volume::new(read.geometry, voxels)?)
    }

    /// [`propose`](Self::propose) for several studies.
    ///
    /// # Errors
    /// As there.
    pub fn propose_all(&self, what: &str, studies: &[Study]) -> anyhow::Result<Vec<Volume<u16>>> {
        let mut progress = Progress::new(&format!("held-out studies, {what}"), studies.len());
        let mut proposals = Vec::with_capacity(studies.len());
        for study in studies {
            proposals.push(self.propose(&study.id)?);
            progress.set(proposals.len(), studies.len(), &study.id);
        }
        Ok(proposals)
    }

    /// Submits the corrected label of a study.
    ///
    /// # Errors
    /// When the server does not take it.
    pub fn submit(&self, study: &Study) -> anyhow::Result<()> {
        let info: Vec<_> = names()?
            .into_iter()
            .map(|(value, name)| json!({ "name": name, "idx": value }))
            .collect();
        let params = json!({ "label_info": info, "client_id": CLIENT_ID });
        let label = std::fs::read(&study.truth_file)?;
        let form = form(&[
            ("params", None, params.to_string().as_bytes()),
            ("label", Some("label.nii.gz"), &label),
        ]);
        let url = format!(
            "{}/datastore/label?image={}&tag=final",
            self.url,
            escaped(&study.id)
        );
        let request = self.agent.put(&url).content_type(form_type());
        checked(self.talk(|| request.send(&form))?)?;
        Ok(())
    }

    /// Starts a round of fine-tuning.
    ///
    /// # Errors
    /// When the server refuses it.
    pub fn start_training(&self, params: &Value) -> anyhow::Result<()> {
        self.post_json(&format!("/train/{}", self.model), params)
            .map(drop)
    }

    /// How far the round is.
    ///
    /// # Errors
    /// When the server does not answer.
    pub fn training(&self) -> anyhow::Result<Training> {
        let task = self.get("/train/")?;
        let stats = &self.get("/info/")?["train_stats"][&self.model];
        let last_line = task["details"]
            .as_array()
            .and_then(|lines| lines.last()?.as_str());
        Ok(Training {
            status: task["status"]
                .as_str()
                .context("the task of /train/ has no status")?
                .to_owned(),
            step: stats["step"]
                .as_u64()
                .and_then(|step| usize::try_from(step).ok()),
            loss: stats["train"]["metrics"]["loss"]
                .as_f64()
                .unwrap_or(f64::NAN),
            last_line: last_line.unwrap_or_default().to_owned(),
        })
    }

    fn get(&self, path: &str) -> anyhow::Result<Value> {
        let request = self.agent.get(format!("{}{path}", self.url));
        Ok(checked(self.talk(|| request.call())?)?
            .body_mut()
            .read_json()?)
    }

    fn post_json(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let request = self.agent.post(format!("{}{path}", self.url));
        Ok(checked(self.talk(|| request.send_json(body))?)?
            .body_mut()
            .read_json()?)
    }

    /// One request, unless the user wants to stop.
    fn talk(
        &self,
        send: impl FnOnce() -> Result<Response<Body>, ureq::Error>,
    ) -> anyhow::Result<Response<Body>> {
        let answer = if self.interrupted.load(Ordering::Relaxed) {
            None
        } else {
            Some(send())
        };
        // Ctrl-c reaches the server too, so that an error after it is no news.
        match answer {
            Some(answer) if !self.interrupted.load(Ordering::Relaxed) => {
                answer.with_context(|| format!("the server at {} does not answer", self.url))
            }
            _ => bail!(
                "interrupted; submitted labels are kept, and the studies can be served as they are"
            ),
        }
    }
}

/// The answer when the server agreed, else its reason as error.
fn checked(mut answer: Response<Body>) -> anyhow::Result<Response<Body>> {
    if answer.status().is_success() {
        return Ok(answer);
    }
    let text = answer.body_mut().read_to_string().unwrap_or_default();
    let json: Option<Value> = serde_json::from_str(&text).ok();
    let detail = json
        .as_ref()
        .and_then(|json| json["detail"].as_str())
        .unwrap_or(&text);
    bail!("the server answered {}: {detail}", answer.status());
}

fn escaped(text: &str) -> impl std::fmt::Display {
    utf8_percent_encode(text, NON_ALPHANUMERIC)
}

fn form_type() -> String {
    format!("multipart/form-data; boundary={BOUNDARY}")
}

/// A multipart form of (field, file name, content).
fn form(parts: &[(&str, Option<&str>, &[u8])]) -> Vec<u8> {
    let mut form = Vec::new();
    for (field, file, content) in parts {
        let file = file
            .map(|file| format!("; filename=\"{file}\""))
            .unwrap_or_default();
        let head = format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{field}\"{file}\r\n\r\n"
        );
        form.extend_from_slice(head.as_bytes());
        form.extend_from_slice(content);
        form.extend_from_slice(b"\r\n");
    }
    form.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    form
}

/// Content of the part `name` of a multipart body.
fn part<'a>(body: &'a [u8], boundary: &str, name: &str) -> Option<&'a [u8]> {
    let delimiter = format!("--{boundary}");
    let wanted = format!("name=\"{name}\"");
    let mut rest = &body[find(body, delimiter.as_bytes())? + delimiter.len()..];
    // Inside the body a delimiter stands at the start of a line.
    let next = format!("\r\n{delimiter}");
    while let Some(end) = find(rest, next.as_bytes()) {
        let (this, after) = rest.split_at(end);
        let blank = find(this, b"\r\n\r\n")?;
        if String::from_utf8_lossy(&this[..blank]).contains(&wanted) {
            return Some(&this[blank + 4..]);
        }
        rest = &after[next.len()..];
    }
    None
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len())
        .position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_back_whole() {
        let content = b"\x1f\x8b\r\n--not the end\r\n\r\n";
        let form = form(&[
            ("params", None, b"{}"),
            ("image", Some("a.nii.gz"), content),
        ]);
        assert_eq!(part(&form, BOUNDARY, "params"), Some(&b"{}"[..]));
        assert_eq!(part(&form, BOUNDARY, "image"), Some(&content[..]));
        assert_eq!(part(&form, BOUNDARY, "label"), None);
    }

    #[test]
    fn a_broken_form_holds_nothing() {
        let form = form(&[("image", None, b"content")]);
        for end in 0..form.len() - BOUNDARY.len() - 6 {
            assert_eq!(part(&form[..end], BOUNDARY, "image"), None, "{end}");
        }
    }
}
