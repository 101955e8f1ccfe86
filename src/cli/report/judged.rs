//! Label maps that were measured, with pictures of the worst: what pages of agreement show.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::worst::{Picture, pictures};
use crate::cli::agreement::{Evaluation, Files, Structures, Summary, TOLERANCE_MM, predicted};
use crate::cli::progress::Progress;
use crate::imaging::{Budget, LabelFormat, read_scan, write_label};
use crate::model::{Segmenter, TrainCase};

/// Agreement of predictions with reference label maps.
pub struct Judged {
    /// The label maps, by their names.
    pub files: Files,
    /// Every case, measured.
    pub evaluation: Evaluation,
    /// Means over them.
    pub summary: Summary,
    /// The worst of them.
    pub pictures: Vec<Picture>,
}

impl Judged {
    /// With pictures of the worst cases on their `scans`, which are known by the cases' names and may be none.
    ///
    /// # Errors
    /// A scan that cannot be read or is on another grid than its labels.
    pub fn new(
        files: Files,
        evaluation: Evaluation,
        summary: Summary,
        scans: &HashMap<String, PathBuf>,
    ) -> anyhow::Result<Self> {
        let pictures = pictures(&files, scans, &evaluation, &summary)?;
        Ok(Self {
            files,
            evaluation,
            summary,
            pictures,
        })
    }

    /// Segments the scans of `cases`, with the label maps in `folder`, which must not exist and is removed at the end.
    ///
    /// # Errors
    /// A scan that cannot be segmented, a label that cannot be compared, a folder that cannot be written.
    pub fn of_model(model: &Segmenter, cases: &[TrainCase], folder: &Path) -> anyhow::Result<Self> {
        let result = Self::in_folder(model, cases, folder);
        // What is left of it only takes space.
        let _ = std::fs::remove_dir_all(folder);
        result
    }

    fn in_folder(model: &Segmenter, cases: &[TrainCase], folder: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        let labels = &model.manifest().labels;
        let mut progress = Progress::new("report", cases.len());
        for (n, case) in cases.iter().enumerate() {
            progress.set(n, cases.len(), "validation cases");
            let scan = read_scan(&case.image, &Budget::default())
                .with_context(|| case.image.display().to_string())?;
            let found = model.segment(&scan.volume, &[], &mut |_, _| ControlFlow::Continue(()))?;
            write_label(
                &predicted(folder, &case.name),
                &found.labels,
                &labels.values(),
                LabelFormat::NiftiGz,
            )?;
        }
        drop(progress);
        let files = Files::of_cases(cases, folder);
        let structures = Structures::of_cases(cases, labels.clone(), TOLERANCE_MM);
        let evaluation = Evaluation::of(&files, structures)?;
        let summary = Summary::of(&evaluation, 1);
        let image = |case: &TrainCase| (case.name.clone(), case.image.clone());
        let scans = cases.iter().map(image).collect();
        Self::new(files, evaluation, summary, &scans)
    }
}
