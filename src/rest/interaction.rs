//! Names of `/infer` beyond the models themselves: clicks and strokes, and what clients send with them.
//!
//! A model that takes clicks is offered three times: under its own name it segments alone, as `NAME-deepedit` it takes points
//! for each label and gives all of them, as `NAME-deepgrow` it takes points inside and outside of one label and gives that.
//! The two methods for strokes have the names of MONAI Label and belong to no model.
//!
//! Points are voxels `[i, j, k]` of the file, i fastest, as are the ends of a box. Whether they lie inside of the image is
//! found out by the worker, which reads it.

use serde_json::{Map, Value, json};

use super::App;
use super::error::ApiError;
use super::form::Upload;
use crate::project::requests::{Click, Interaction, Method, Scribbles, ScribblesOptions};
use crate::rounds::registry::ModelVersion;

const DEEPEDIT: &str = "-deepedit";
const DEEPGROW: &str = "-deepgrow";
const HISTOGRAM: &str = "Histogram+GraphCut";
const MIXTURE: &str = "GMM+GraphCut";
const BINS: usize = 64;
const COMPONENTS: usize = 20;
const LAMDA: f64 = 1.0;
const SIGMA: f64 = 0.1;

/// What a name of `/infer` stands for.
#[derive(Debug)]
pub struct Target {
    /// The model, or the method for strokes.
    pub model: String,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Segmentation,
    DeepEdit,
    DeepGrow,
    Scribbles(Method),
}

impl Target {
    /// What `name` stands for.
    ///
    /// # Errors
    /// 404 for what is not in `/info/`.
    pub async fn of(app: &App, name: &str) -> Result<Self, ApiError> {
        let unknown = match app.live_model(name).await {
            Ok(_) => return Ok(Self::new(name, Kind::Segmentation)),
            Err(unknown) => unknown,
        };
        for (suffix, kind) in [(DEEPEDIT, Kind::DeepEdit), (DEEPGROW, Kind::DeepGrow)] {
            if let Some(model) = name.strip_suffix(suffix)
                && let Ok(version) = app.live_model(model).await
                && version.manifest()?.clicks.is_some()
            {
                return Ok(Self::new(model, kind));
            }
        }
        let method = match name {
            HISTOGRAM => Method::Histogram { bins: BINS },
            MIXTURE => Method::Mixture {
                components: COMPONENTS,
            },
            _ => return Err(unknown),
        };
        Ok(Self::new(name, Kind::Scribbles(method)))
    }

    fn new(model: &str, kind: Kind) -> Self {
        Self {
            model: model.to_owned(),
            kind,
        }
    }

    /// The files that its form may hold.
    pub fn files(&self) -> &'static [&'static str] {
        match self.kind {
            Kind::Scribbles(_) => &["file", "label"],
            _ => &["file"],
        }
    }

    /// What was drawn; `strokes` is the file `label` of the form.
    ///
    /// # Errors
    /// 422 for drawings that cannot be meant.
    pub async fn interaction(
        &self,
        app: &App,
        params: &Map<String, Value>,
        strokes: Option<&Upload>,
    ) -> Result<Option<Interaction>, ApiError> {
        match self.kind {
            Kind::Segmentation => Ok(None),
            Kind::DeepEdit => deepedit(app, params).map(Some),
            Kind::DeepGrow => deepgrow(app, params).map(Some),
            Kind::Scribbles(method) => {
                let strokes = strokes.ok_or_else(|| {
                    refused(
                        "no_strokes",
                        "the form has no file 'label' with strokes: send the label map that holds foreground_scribbles and background_scribbles",
                    )
                })?;
                scribbles(app, params, strokes, method).await.map(Some)
            }
        }
    }
}

fn refused(code: &'static str, text: impl Into<String>) -> ApiError {
    ApiError::new(axum::http::StatusCode::UNPROCESSABLE_ENTITY, code, text)
}

/// Points of every label, under its name.
fn deepedit(app: &App, params: &Map<String, Value>) -> Result<Interaction, ApiError> {
    let mut clicks = points(params, "background", 0)?;
    for (value, name) in app.project.schema().values() {
        clicks.extend(points(params, &name, value)?);
    }
    Ok(Interaction::Clicks { clicks, only: None })
}

/// Points inside and outside of one label, which OHIF does not name.
fn deepgrow(app: &App, params: &Map<String, Value>) -> Result<Interaction, ApiError> {
    let schema = app.project.schema();
    let no_points = || {
        refused(
            "no_points",
            "there are no points: place some inside of the structure (foreground) or outside of it (background), then update again",
        )
    };
    let name = match params.get("label").and_then(Value::as_str) {
        Some(name) => name,
        None if schema.names().len() == 1 => &schema.names()[0],
        None => {
            let voxels = |key: &str| -> Result<Vec<[usize; 3]>, ApiError> {
                let found = points(params, key, 0)?;
                Ok(found.into_iter().map(|click| click.voxel).collect())
            };
            let [foreground, background] = [voxels("foreground")?, voxels("background")?];
            if foreground.is_empty() {
                return Err(no_points());
            }
            return Ok(Interaction::Unnamed {
                foreground,
                background,
            });
        }
    };
    let value = schema.value_of(name).ok_or_else(|| {
        refused(
            "unknown_label",
            format!(
                "the label {name:?} is not one of this project; use one of: {}",
                schema.names().join(", ")
            ),
        )
    })?;
    let mut clicks = points(params, "foreground", value)?;
    clicks.extend(points(params, "background", 0)?);
    if clicks.is_empty() {
        return Err(no_points());
    }
    Ok(Interaction::Clicks {
        clicks,
        only: Some(name.to_owned()),
    })
}

/// The points `[[i, j, k], ...]` under a key, as clicks of a class.
fn points(params: &Map<String, Value>, key: &str, class: u16) -> Result<Vec<Click>, ApiError> {
    let wrong = |what: &Value| {
        refused(
            "bad_points",
            format!("the points of {key:?} have to be a list of voxels [i, j, k], this is: {what}"),
        )
    };
    let list = match params.get(key) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(wrong(other)),
    };
    let each = list.iter().map(|point| {
        let numbers: Option<Vec<f64>> = point
            .as_array()
            .and_then(|numbers| numbers.iter().map(Value::as_f64).collect());
        let ijk: [f64; 3] = numbers
            .and_then(|numbers| numbers.try_into().ok())
            .ok_or_else(|| wrong(point))?;
        if ijk.iter().any(|v| v.round() < 0.0) {
            return Err(refused(
                "bad_points",
                format!("the point {point} of {key:?} lies outside of the image"),
            ));
        }
        let [i, j, k] = ijk.map(|v| v.round() as usize);
        Ok(Click {
            class,
            voxel: [k, j, i],
        })
    });
    each.collect()
}

/// Strokes as 3D Slicer sends them.
async fn scribbles(
    app: &App,
    params: &Map<String, Value>,
    strokes: &Upload,
    method: Method,
) -> Result<Interaction, ApiError> {
    let schema = app.project.schema();
    let label = match params.get("selected_label_name").and_then(Value::as_str) {
        Some(name) => name.to_owned(),
        None => schema.names().first().cloned().unwrap_or_default(),
    };
    let options = ScribblesOptions {
        method: match method {
            Method::Histogram { bins } => Method::Histogram {
                bins: number(params, "num_bins", bins as f64, [2.0, 4096.0])? as usize,
            },
            Method::Mixture { components } => Method::Mixture {
                components: number(params, "num_mixtures", components as f64, [1.0, 100.0])?
                    as usize,
            },
        },
        lamda: number(params, "lamda", LAMDA, [0.0, 1000.0])?,
        sigma: number(params, "sigma", SIGMA, [1e-4, 1000.0])?,
    };
    let uses_model = params
        .get("model_prior")
        .is_none_or(|wanted| *wanted != Value::Bool(false));
    let prior = if uses_model && schema.value_of(&label).is_some() {
        trained(&app.live_models().await?)?
    } else {
        None
    };
    Ok(Interaction::Scribbles(Scribbles {
        file: strokes.staged.path.clone(),
        segments: segments(params)?,
        label,
        roi: roi(params)?,
        options,
        prior,
    }))
}

/// The first live model that has learned anything.
fn trained(versions: &[ModelVersion]) -> Result<Option<String>, ApiError> {
    for version in versions {
        if version.manifest()?.trained {
            return Ok(Some(version.name.clone()));
        }
    }
    Ok(None)
}

/// Names and values of the segments in the stroke file. Without them MONAI Label's defaults: strokes after the labels,
/// background first.
fn segments(params: &Map<String, Value>) -> Result<Vec<(String, u16)>, ApiError> {
    let entries = match params.get("label_info") {
        None | Some(Value::Null) => return Ok(defaults()),
        Some(Value::Array(entries)) if entries.is_empty() => return Ok(defaults()),
        Some(Value::Array(entries)) => entries,
        Some(_) => {
            return Err(refused(
                "bad_label_info",
                "label_info has to be a list of objects with name and id",
            ));
        }
    };
    let each = entries.iter().enumerate().map(|(at, entry)| {
        let id = ["id", "idx"].iter().find_map(|key| entry.get(*key)?.as_u64());
        let name = entry.get("name").and_then(Value::as_str);
        let value = u16::try_from(id.unwrap_or(at as u64 + 1)).ok();
        name.map(str::to_owned).zip(value).ok_or_else(|| {
            refused(
                "bad_label_info",
                format!("label_info has an entry without a name or with an id that no label has: {entry}"),
            )
        })
    });
    each.collect()
}

fn defaults() -> Vec<(String, u16)> {
    vec![
        (Scribbles::BACKGROUND.to_owned(), 2),
        (Scribbles::FOREGROUND.to_owned(), 3),
    ]
}

/// The box `[i0, i1, j0, j1, k0, k1]`, none when it is absent or empty.
fn roi(params: &Map<String, Value>) -> Result<Option<[i64; 6]>, ApiError> {
    let list = match params.get("roi") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(list)) if list.is_empty() => return Ok(None),
        Some(other) => other.as_array(),
    };
    let numbers: Option<Vec<f64>> = list.and_then(|list| list.iter().map(Value::as_f64).collect());
    // A saturating cast.
    let ends: Option<[i64; 6]> = numbers.and_then(|numbers| {
        let whole: Vec<i64> = numbers.into_iter().map(|v| v.round() as i64).collect();
        whole.try_into().ok()
    });
    ends.map(Some).ok_or_else(|| {
        refused(
            "bad_roi",
            "roi has to be six voxels [i0, i1, j0, j1, k0, k1], or empty",
        )
    })
}

/// A number of the configuration, which clients may send as text.
fn number(
    params: &Map<String, Value>,
    key: &'static str,
    default: f64,
    [low, high]: [f64; 2],
) -> Result<f64, ApiError> {
    let found = match params.get(key) {
        None | Some(Value::Null) => return Ok(default),
        Some(Value::String(text)) => text.trim().parse().ok(),
        Some(other) => other.as_f64(),
    };
    found.filter(|v| (low..=high).contains(v)).ok_or_else(|| {
        refused(
            "bad_params",
            format!("{key} has to be a number from {low} to {high}"),
        )
    })
}

/// What `/info/` lists under models for clicks, after the model itself.
pub fn click_entries(
    version: &ModelVersion,
    labels: &Value,
    config: &Value,
) -> Vec<(String, Value)> {
    let entry = |suffix: &str, kind: &str, description: &str| {
        let entry = json!({
            "type": kind,
            "labels": labels,
            "dimension": 3,
            "description": description,
            "config": config,
        });
        (format!("{}{suffix}", version.name), entry)
    };
    vec![
        entry(
            DEEPEDIT,
            "deepedit",
            "Clicks on any label correct the segmentation of all of them",
        ),
        entry(
            DEEPGROW,
            "deepgrow",
            "Clicks inside and outside of one label segment it",
        ),
    ]
}

/// What `/info/` lists under models for strokes.
pub fn scribbles_entries(labels: &Value) -> [(&'static str, Value); 2] {
    let entry = |description: &str, key: &str, value: usize| {
        json!({
            "type": "scribbles",
            "labels": labels,
            "dimension": 3,
            "description": description,
            "config": { "lamda": LAMDA, "sigma": SIGMA, key: value, "model_prior": true },
        })
    };
    [
        (
            HISTOGRAM,
            entry(
                "Strokes refine a label: histograms of intensity and a graph cut",
                "num_bins",
                BINS,
            ),
        ),
        (
            MIXTURE,
            entry(
                "Strokes refine a label: Gaussian mixtures of intensity and a graph cut",
                "num_mixtures",
                COMPONENTS,
            ),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap()
    }

    #[test]
    fn points_are_turned_to_array_order() {
        let params = map(json!({"liver": [[1, 2, 3], [4.4, 5, 6]], "spleen": [], "aorta": null}));
        let liver = points(&params, "liver", 7).unwrap();
        let expected = [[3, 2, 1], [6, 5, 4]].map(|voxel| Click { class: 7, voxel });
        assert_eq!(liver, expected);
        for empty in ["spleen", "aorta", "kidney"] {
            assert!(points(&params, empty, 1).unwrap().is_empty());
        }
        for bad in [
            json!([1, 2, 3]),
            json!([[1, 2]]),
            json!([[1, 2, "x"]]),
            json!([[1, -1, 2]]),
            json!("x"),
        ] {
            assert!(points(&map(json!({ "a": bad })), "a", 1).is_err());
        }
    }

    #[test]
    fn boxes_values_and_numbers_are_read_as_clients_send_them() {
        assert_eq!(roi(&map(json!({"roi": []}))).unwrap(), None);
        assert_eq!(roi(&map(json!({}))).unwrap(), None);
        let found = roi(&map(json!({"roi": [9, 1, -3, 4, 5.0, 6]}))).unwrap();
        assert_eq!(found, Some([9, 1, -3, 4, 5, 6]));
        assert!(roi(&map(json!({"roi": [1, 2, 3]}))).is_err());
        assert!(roi(&map(json!({"roi": "all"}))).is_err());

        let info = json!({"label_info": [{"name": "liver", "id": 1}, {"name": "foreground_scribbles", "idx": 4}, {"name": "x"}]});
        let expected = [("liver", 1), ("foreground_scribbles", 4), ("x", 3)];
        assert_eq!(
            segments(&map(info)).unwrap(),
            expected.map(|(n, v)| (n.to_owned(), v))
        );
        assert_eq!(
            segments(&map(json!({"label_info": []}))).unwrap(),
            defaults()
        );
        assert!(segments(&map(json!({"label_info": [{"id": 1}]}))).is_err());
        assert!(segments(&map(json!({"label_info": [{"name": "a", "id": 70000}]}))).is_err());

        let params = map(json!({"lamda": "2.5", "sigma": 0, "num_bins": "many"}));
        assert_eq!(number(&params, "lamda", 1.0, [0.0, 10.0]).unwrap(), 2.5);
        assert!(number(&params, "sigma", 1.0, [0.1, 10.0]).is_err());
        assert!(number(&params, "num_bins", 1.0, [0.1, 10.0]).is_err());
        assert_eq!(number(&params, "other", 3.0, [0.1, 1.0]).unwrap(), 3.0);
    }
}
