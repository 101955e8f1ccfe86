//! What a run writes down: JSON lines, one file for the curves and one for the scans.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::model::error::ModelError;
use crate::model::manifest::replace_file;

/// A file of JSON lines that grows.
pub struct JsonLines {
    path: PathBuf,
    file: std::fs::File,
}

impl JsonLines {
    /// Starts the file anew.
    pub fn create(path: PathBuf) -> Result<Self, ModelError> {
        let file = std::fs::File::create(&path).map_err(ModelError::io(&path))?;
        Ok(Self { path, file })
    }

    /// Goes on with a file; of its lines those for which `keep` is true stay. A line that a kill cut off goes too.
    pub fn resume(path: PathBuf, keep: impl Fn(&Value) -> bool) -> Result<Self, ModelError> {
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            text => text.map_err(ModelError::io(&path))?,
        };
        let kept: String = text
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'))
            .filter(|line| serde_json::from_str(line).is_ok_and(|value| keep(&value)))
            .collect();
        replace_file(&path, kept.as_bytes()).map_err(ModelError::io(&path))?;
        let file = append(&path)?;
        Ok(Self { path, file })
    }

    /// Adds a line.
    pub fn add(&mut self, value: &impl Serialize) -> Result<(), ModelError> {
        let mut line = serde_json::to_vec(value).map_err(|e| ModelError::bad(&self.path, e))?;
        line.push(b'\n');
        self.file
            .write_all(&line)
            .map_err(ModelError::io(&self.path))
    }
}

fn append(path: &Path) -> Result<std::fs::File, ModelError> {
    std::fs::OpenOptions::new()
        .append(true)
        .open(path)
        .map_err(ModelError::io(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_resumed_file_loses_what_the_run_will_do_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("curves.jsonl");
        let mut lines = JsonLines::create(path.clone()).unwrap();
        for step in 1..=4 {
            lines.add(&json!({"step": step})).unwrap();
        }
        drop(lines);
        append(&path).unwrap().write_all(b"{\"step\": 2").unwrap();
        let keep = |value: &Value| value["step"].as_u64().is_some_and(|step| step <= 2);
        let mut lines = JsonLines::resume(path.clone(), keep).unwrap();
        lines.add(&json!({"step": 3})).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n");
        JsonLines::resume(dir.path().join("new.jsonl"), keep).unwrap();
    }
}
