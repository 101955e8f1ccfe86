//! What a run is asked for, and what follows from that before it starts.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::pipeline::{Layout, Source};
use super::scans::{Reading, ScanFile};
use crate::imaging::{Budget, read_scan};
use crate::model::engine::DeviceChoice;
use crate::model::error::ModelError;
use crate::model::manifest::{Lineage, ModelDescription, Preprocessing};
use crate::model::pct_net::PctNetConfig;
use crate::model::plan::{Spacing, plan_preprocessing};
use crate::model::precision::{Precision, PrecisionChoice};
use crate::model::schema::LabelSchema;
use crate::model::train::Schedule;
use crate::model::volume_fusion::{FusionOptions, Generator};
use crate::model::weights::sha256_hex;

/// Learning rate of the publication, and the patches of a step that it belongs to.
const PUBLISHED_RATE: (f64, usize) = (1e-3, 4);
/// Scans that are looked at for planning the spacing.
const PLANNED_SCANS: usize = 12;
/// What to pretrain, on what.
#[derive(Debug, Clone)]
pub struct PretrainRequest {
    /// Name of the model.
    pub name: String,
    /// Architecture; its `class_num` is the number of fusion classes.
    pub network: PctNetConfig,
    /// Scans to learn from.
    pub scans: Vec<ScanFile>,
    /// Scans of other patients, to validate on; may be empty.
    pub validation: Vec<ScanFile>,
    /// Model directory to write; must not exist. Curves and checkpoint lie beside it, in [`super::run_folder`].
    pub out: PathBuf,
    /// What the weights depend on.
    pub options: PretrainOptions,
    /// Steps between two validations; 0 validates at the end only.
    pub validate_every: usize,
    /// Samples to validate on.
    pub validation_samples: usize,
    /// Steps between two checkpoints; 0 saves when interrupted only.
    pub checkpoint_every: usize,
    /// Threads that make samples.
    pub loaders: usize,
    /// Go on from the checkpoint in [`super::run_folder`], if there is one.
    pub resume: bool,
    /// Where to compute.
    pub device: DeviceChoice,
    /// Numbers of activations: float32, or bfloat16 on a GPU. Weights, statistics and sums are float32.
    pub precision: PrecisionChoice,
}

/// Everything, beside network and scans, that the weights depend on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PretrainOptions {
    /// Optimiser steps.
    pub steps: usize,
    /// Patches of a forward pass.
    pub batch: usize,
    /// Forward passes of a step.
    pub accumulate: usize,
    /// Learning rate at the start.
    pub learning_rate: f64,
    /// L2 penalty, added to the gradient.
    pub weight_decay: f32,
    /// How the learning rate falls.
    pub schedule: Schedule,
    /// Seed of everything random.
    pub seed: u64,
    /// What a sample looks like.
    pub fusion: FusionOptions,
    /// How samples of several scans are mixed.
    pub layout: Layout,
    /// Voxel spacing to learn at.
    pub spacing: Spacing,
    /// HU range that becomes [-1, 1]; `None`: planned as for fine-tuning.
    pub hu_window: Option<[f32; 2]>,
    /// Whether scans are cropped to the body.
    pub body_crop: bool,
}

impl PretrainOptions {
    /// The published learning rate, scaled to the number of patches in a step.
    pub fn linear_rate(batch: usize, accumulate: usize) -> f64 {
        let (rate, patches) = PUBLISHED_RATE;
        rate * (batch * accumulate) as f64 / patches as f64
    }
}

impl PretrainRequest {
    /// The model's spacing and HU window.
    pub(super) fn plan(&self) -> Result<Preprocessing, ModelError> {
        let mut plan = match self.options.spacing {
            Spacing::Plan => {
                let every = self.scans.len().div_ceil(PLANNED_SCANS).max(1);
                let looked_at = self.scans.iter().step_by(every);
                let grids: Vec<_> = looked_at
                    .filter_map(|scan| read_scan(&scan.path, &Budget::default()).ok())
                    .map(|scan| scan.volume.geometry)
                    .collect();
                plan_preprocessing(&grids)
            }
            Spacing::Own => plan_preprocessing(&[]),
            Spacing::Millimetres(spacing_mm) => Preprocessing {
                spacing_mm: Some(spacing_mm),
                ..plan_preprocessing(&[])
            },
        };
        if let Some(hu_window) = self.options.hu_window {
            plan.hu_window = hu_window;
        }
        Ok(plan)
    }

    /// Where samples of `scans` come from.
    pub(super) fn source(
        &self,
        scans: Vec<ScanFile>,
        preprocessing: Preprocessing,
        seed: u64,
        on_device: bool,
    ) -> Source {
        let fusion = self.options.fusion.clone();
        Source {
            scans,
            reading: Reading {
                preprocessing,
                body_crop: self.options.body_crop,
                min_sides: fusion.patch.map(|side| (side / 4).max(2)),
            },
            scheme: fusion.scheme,
            generator: Generator::new(fusion, seed),
            layout: self.options.layout,
            seed,
            on_device,
        }
    }

    pub(super) fn describe(
        &self,
        preprocessing: Preprocessing,
    ) -> Result<ModelDescription, ModelError> {
        let blends = (1..self.options.fusion.classes).map(|class| format!("blend_{class}"));
        Ok(ModelDescription {
            name: self.name.clone(),
            network: self.network.clone(),
            labels: LabelSchema::new(blends.collect())?,
            preprocessing,
            patch: self.options.fusion.patch,
            clicks: None,
            trained: true,
            lineage: Lineage {
                seed: Some(self.options.seed),
                steps: Some(self.options.steps),
                ..Lineage::made_by("pretrained")
            },
        })
    }

    /// What defines the run, as text.
    pub(super) fn identity(&self) -> Result<String, ModelError> {
        let scans: String = self
            .scans
            .iter()
            .map(|scan| format!("{}\t{}\n", scan.name, scan.patient))
            .collect();
        let mut identity = json!({
            "options": self.options,
            "network": self.network,
            "scans": self.scans.len(),
            "scans_sha256": sha256_hex(scans.as_bytes()),
        });
        if let PrecisionChoice::Fixed(precision) = self.precision
            && precision != Precision::F32
        {
            identity["precision"] = json!(precision);
        }
        serde_json::to_string_pretty(&identity).map_err(|e| ModelError::bad(&self.out, e))
    }

    pub(super) fn check(&self) -> Result<(), ModelError> {
        let options = &self.options;
        let patch: usize = options.fusion.patch.iter().product();
        let refuse = |reason: &str| Err(ModelError::Data(reason.to_owned()));
        if self.out.exists() {
            let reason =
                "it is there already; models are never overwritten. Name another directory";
            return Err(ModelError::bad(&self.out, reason));
        }
        if self.scans.is_empty() {
            return refuse(
                "there is no scan to learn from; looked for .nii.gz, .nii, .nrrd and DICOM series",
            );
        }
        if options.batch == 0 || options.accumulate == 0 || options.steps == 0 || patch == 0 {
            return refuse(
                "steps, batch, accumulate and the sides of the patch must be at least 1",
            );
        }
        if options.layout.visits == 0 || options.layout.samples == 0 {
            return refuse("a shelf needs at least one scan and one sample of each");
        }
        if !(options.learning_rate.is_finite() && options.learning_rate > 0.0) {
            return refuse("the learning rate must be a number above 0");
        }
        if !(2..=256).contains(&options.fusion.classes) {
            return refuse("there must be 2 to 256 classes");
        }
        Ok(())
    }
}
