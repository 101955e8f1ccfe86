//! Labels are never overwritten. A submit adds revision *n + 1* of (image, tag).
//!
//! Order of a submit, and why a kill at any point is harmless:
//! 1. stream to `staging/`, hashing and counting; nothing refers to it yet;
//! 2. decode, check the grid against the image, map values to classes; refuse before anything is kept;
//! 3. put the blobs under their hashes, synced; orphans at worst, swept after a day;
//! 4. one transaction: revision row, audit row, queued jobs; the commit *is* the submit;
//! 5. answer. A client that saw no answer repeats with the same idempotency key.

use serde_json::json;
use sha2::{Digest, Sha256};

use super::ids::{ImageId, LABEL_SUFFIXES, Tag, split_suffix};
use super::images::{geometry_json, unknown};
use super::labels::{LabelRow, Origin};
use super::mapping::{self, Mapped};
use super::provenance::Proposal;
use super::revisions::{check_expected, voxels_changed};
use super::{Map, NewJob, Project, ProjectError, Provenance, Staged};
use crate::imaging::{self, Geometry, ImagingError, LabelFile, LabelFormat, Volume};
use crate::store::rows::{self, LabelRecord, NewLabel};
use crate::store::{StoreError, hex};

/// Corners of two grids may differ by this much, or by [`TOLERANCE_VOXELS`] where that is more:
/// NIfTI keeps rotations as float32 quaternions, which moves a far corner by some hundredths of a
/// millimetre.
const TOLERANCE_MM: f64 = 1e-2;
/// Share of the smallest voxel side.
const TOLERANCE_VOXELS: f64 = 0.05;

/// A label on its way into the project.
#[derive(Debug)]
pub struct SubmitLabel {
    /// The image it belongs to.
    pub image: ImageId,
    /// The tag, usually `final`.
    pub tag: Tag,
    /// The file.
    pub staged: Staged,
    /// What the client calls the file; only its suffix is used.
    pub file_name: String,
    /// What the client sent with it; kept as it is.
    pub params: Map,
    /// Who.
    pub author: String,
    /// How it was made.
    pub origin: Origin,
    /// How it came about, as far as the client says; the server adds what it knows.
    pub provenance: Provenance,
    /// The revision that the author saw, 0 for none; the submit is refused when there is another.
    pub expected_revision: Option<i64>,
    /// Names this submit, so that repeating it adds nothing.
    pub idempotency_key: Option<String>,
    /// Jobs that exist exactly if the revision does.
    pub jobs: Vec<NewJob>,
}

impl SubmitLabel {
    /// A submit by hand, without parameters and conditions.
    pub fn new(image: ImageId, tag: Tag, staged: Staged, file_name: &str, author: &str) -> Self {
        Self {
            image,
            tag,
            staged,
            file_name: file_name.to_owned(),
            params: Map::new(),
            author: author.to_owned(),
            origin: Origin::Manual,
            provenance: Provenance::default(),
            expected_revision: None,
            idempotency_key: None,
            jobs: Vec::new(),
        }
    }
}

impl Project {
    /// Adds a revision; see the module for the order. When this returns, it is on the disk.
    ///
    /// # Errors
    /// [`ProjectError::Invalid`] when the file does not fit the image or the classes,
    /// [`ProjectError::Conflict`] when somebody else was first. Nothing is kept then.
    pub async fn submit_label(&self, mut submit: SubmitLabel) -> Result<LabelRow, ProjectError> {
        if let Some(key) = &submit.idempotency_key
            && let Some(row) = self.store().database.label_by_key(key).await?
        {
            return repeated(row, &submit);
        }
        self.staging().check_space()?;
        let (_, ext) = split_suffix(&submit.file_name, &LABEL_SUFFIXES).ok_or_else(|| {
            ProjectError::Invalid(format!(
                "label file {:?}: the name must end with {}",
                submit.file_name,
                LABEL_SUFFIXES.join(", ")
            ))
        })?;
        let image = self.image_facts(&submit.image).await?;
        let proposal = match submit.origin {
            Origin::Manual | Origin::Interactive => {
                self.look_up_proposal(
                    &submit.image,
                    &submit.tag,
                    &submit.author,
                    &mut submit.provenance,
                )
                .await?
            }
            Origin::Auto(_) | Origin::Import => None,
        };
        let normalised = self
            .normalise(&submit, ext, image.geometry, proposal)
            .await?;
        let Normalised {
            staged: normalised,
            annotated,
            voxels_changed,
        } = normalised;
        submit.provenance.voxels_changed = voxels_changed;
        self.store().blobs.put(&submit.staged).await?;
        self.store().blobs.put(&normalised).await?;

        let new = NewLabel {
            image: submit.image.to_string(),
            tag: submit.tag.to_string(),
            deleted: false,
            ext: ext.to_owned(),
            sha256: submit.staged.sha256.clone(),
            normalised_sha256: normalised.sha256.clone(),
            size_bytes: i64::try_from(submit.staged.size_bytes).unwrap_or(i64::MAX),
            author: submit.author.clone(),
            origin: serde_json::to_string(&submit.origin).map_err(StoreError::from)?,
            params: json!(submit.params).to_string(),
            annotated: json!(annotated).to_string(),
            image_sha256: image.sha256,
            created_ms: self.clock().now_ms(),
            idempotency_key: submit.idempotency_key.clone(),
            provenance: serde_json::to_string(&submit.provenance).map_err(StoreError::from)?,
            geometry_sha256: hex(&Sha256::digest(geometry_json(&image.geometry))),
        };
        self.commit(&submit, &new).await
    }

    /// Step 2: the label in the values of the schema, staged, and how far it is from the proposal.
    async fn normalise(
        &self,
        submit: &SubmitLabel,
        ext: &'static str,
        image: Geometry,
        proposal: Option<Proposal>,
    ) -> Result<Normalised, ProjectError> {
        let (path, params, budget) = (
            submit.staged.path.clone(),
            submit.params.clone(),
            self.limits.budget,
        );
        let (schema, staging) = (self.schema().clone(), self.inner.store.staging.clone());
        self.decode(move || {
            let file = match ext {
                ".bin" => read_raw(&path, &image)?,
                _ => imaging::read_label_of(&path, &image, &budget).map_err(refusal)?,
            };
            let Mapped { voxels, annotated } =
                mapping::to_schema(on_grid(file, &image)?, &params, &schema)?;
            // A proposal that cannot be read any more is not compared; the label counts.
            let proposed = proposal.and_then(|proposal| {
                let file = imaging::read_label_of(&proposal.path, &image, &budget).ok()?;
                mapping::to_schema(on_grid(file, &image).ok()?, &Map::new(), &schema).ok()
            });
            let voxels_changed = proposed.map(|proposed| voxels_changed(&proposed.voxels, &voxels));
            let volume = Volume::new(image, voxels)
                .map_err(|error| ProjectError::Internal(error.to_string()))?;
            let names: Vec<(u16, String)> = (1..).zip(schema.names().iter().cloned()).collect();
            let write = |path: &std::path::Path| {
                imaging::write_label(path, &volume, &names, LabelFormat::NiftiGz)
                    .map_err(|error| StoreError::foreign(&error))
            };
            Ok(Normalised {
                staged: staging.write_with(write)?,
                annotated,
                voxels_changed,
            })
        })
        .await
    }

    /// Step 4.
    async fn commit(&self, submit: &SubmitLabel, new: &NewLabel) -> Result<LabelRow, ProjectError> {
        let mut tx = self.store().database.begin().await?;
        if let Some(key) = &submit.idempotency_key
            && let Some(row) = rows::label_by_key(&mut tx, key).await?
        {
            return repeated(row, submit);
        }
        let image = rows::image(&mut tx, &new.image).await?;
        image
            .filter(|row| row.state != "deleted")
            .ok_or_else(|| unknown(&submit.image))?;
        let current = rows::current_label(&mut tx, &new.image, &new.tag)
            .await?
            .map_or(0, |row| row.revision);
        check_expected(
            submit.expected_revision,
            current,
            &submit.image,
            &submit.tag,
        )?;
        self.check_blob(&new.sha256)?;
        self.check_blob(&new.normalised_sha256)?;
        let row = rows::add_label(&mut tx, new).await?;
        let detail = json!({
            "tag": new.tag, "revision": row.revision, "sha256": new.sha256, "image_sha256": new.image_sha256, "origin": submit.origin,
        });
        let entry = rows::AuditEntry {
            actor: &new.author,
            ..self.audit_entry("submit-label", &new.image, detail)
        };
        rows::append_audit(&mut tx, entry).await?;
        if submit.tag == Tag::accepted() {
            rows::end_lease(&mut tx, &new.image).await?;
        }
        for job in &submit.jobs {
            self.jobs().add(&mut tx, job).await?;
        }
        tx.commit().await.map_err(StoreError::from)?;
        LabelRow::from_record(row)
    }
}

/// A label in the values of the schema.
struct Normalised {
    staged: Staged,
    annotated: Vec<String>,
    voxels_changed: Option<u64>,
}

/// A file that is wrong is the sender's matter; a disk that does not read it is not.
fn refusal(error: ImagingError) -> ProjectError {
    let text = format!("the label is refused: {error}");
    match error {
        ImagingError::Io(error) => match StoreError::from(error) {
            StoreError::Internal(_) => ProjectError::Invalid(text),
            fault => fault.into(),
        },
        _ => ProjectError::Invalid(text),
    }
}

/// The answer to a submit whose key is known.
fn repeated(row: LabelRecord, submit: &SubmitLabel) -> Result<LabelRow, ProjectError> {
    if row.image == submit.image.as_str()
        && row.tag == submit.tag.as_str()
        && row.sha256 == submit.staged.sha256
    {
        return LabelRow::from_record(row);
    }
    Err(ProjectError::Conflict(
        "this idempotency key was used for another label; nothing was stored, submit again with a new key".to_owned(),
    ))
}

/// Raw uint8 in the order of the image's file, i fastest: the order of our arrays.
fn read_raw(path: &std::path::Path, image: &Geometry) -> Result<LabelFile, ProjectError> {
    let size_bytes = std::fs::metadata(path)?.len();
    if size_bytes != image.voxel_count() as u64 {
        return Err(ProjectError::Invalid(format!(
            "the raw label has {size_bytes} bytes, the image {} has {} voxels: send one uint8 per voxel, i fastest",
            size_text(image),
            image.voxel_count()
        )));
    }
    let layer = std::fs::read(path)?.into_iter().map(u16::from).collect();
    Ok(LabelFile {
        geometry: *image,
        layers: vec![layer],
        segments: Vec::new(),
        warnings: Vec::new(),
    })
}

/// How far corners of a label's grid may lie from those of the image's.
pub(super) fn tolerance_mm(image: &Geometry) -> f64 {
    let smallest_mm = image.spacing_mm().into_iter().fold(f64::INFINITY, f64::min);
    TOLERANCE_MM.max(TOLERANCE_VOXELS * smallest_mm)
}

/// The label on the grid of the image.
///
/// A `.seg.nrrd` cropped to its segments, as 3D Slicer may write it, is put back where it lies; any
/// other difference is refused, because resampling would change what the annotator drew.
pub(crate) fn on_grid(file: LabelFile, image: &Geometry) -> Result<LabelFile, ProjectError> {
    let tolerance_mm = tolerance_mm(image);
    if file.geometry.same_grid(image, tolerance_mm) {
        return Ok(file);
    }
    if !file.segments.is_empty()
        && let Some(offset) = crop_offset(&file.geometry, image, tolerance_mm)
    {
        let layers = file
            .layers
            .iter()
            .map(|layer| paste(layer, file.geometry.shape(), offset, image.shape()))
            .collect();
        return Ok(LabelFile {
            geometry: *image,
            layers,
            ..file
        });
    }
    let (label, what) = (size_text(&file.geometry), size_text(image));
    Err(ProjectError::Invalid(
        if file.geometry.shape() == image.shape() {
            format!(
                "label and image are both {what}, but lie differently: first voxel at {:?} and {:?} mm (LPS), spacing {:?} and {:?} mm (z, y, x); \
             export with the source volume as reference",
                file.geometry.origin_lps_mm(),
                image.origin_lps_mm(),
                file.geometry.spacing_mm(),
                image.spacing_mm()
            )
        } else {
            format!("label is {label}, image is {what}: export with the source volume as reference")
        },
    ))
}

/// Columns x rows x slices, the order in which users know sizes.
fn size_text(geometry: &Geometry) -> String {
    let [z, y, x] = geometry.shape();
    format!("{x}x{y}x{z}")
}

/// Index in the image of the label's first voxel, when the label's grid is a box of the image's.
fn crop_offset(label: &Geometry, image: &Geometry, tolerance_mm: f64) -> Option<[usize; 3]> {
    let at = image.to_index(label.origin_lps_mm()).map(f64::round);
    let (shape, outer) = (label.shape(), image.shape());
    let inside =
        (0..3).all(|axis| at[axis] >= 0.0 && at[axis] + shape[axis] as f64 <= outer[axis] as f64);
    let box_of_image = Geometry::new(shape, image.to_world(at), image.steps_lps_mm()).ok()?;
    (inside && label.same_grid(&box_of_image, tolerance_mm)).then(|| at.map(|index| index as usize))
}

/// A zero volume of shape `outer` with `layer` at `offset`; all `[z, y, x]`.
fn paste(layer: &[u16], shape: [usize; 3], offset: [usize; 3], outer: [usize; 3]) -> Vec<u16> {
    let mut volume = vec![0; outer.iter().product()];
    for (row, values) in layer.chunks_exact(shape[2]).enumerate() {
        let (z, y) = (row / shape[1] + offset[0], row % shape[1] + offset[1]);
        let start = (z * outer[1] + y) * outer[2] + offset[2];
        volume[start..start + shape[2]].copy_from_slice(values);
    }
    volume
}
