//! From the values of a label file to the classes of the project, by name.
//!
//! A file says in one of three ways what its values mean:
//! - segments (`.seg.nrrd`): name, value and layer of each, in the file itself;
//! - `params.label_info`, a list of names: 3D Slicer writes value *k* for the *k*-th exported name.
//!   The `idx` beside the name is its position among all segments, exported or not, so that the
//!   position in the list is trusted, and `idx` only where the positions cannot be meant;
//! - nothing: the values are those of the schema.
//!
//! Slicer's auxiliary segments (`background…`, `foreground_scribbles`) are no classes and dropped.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Map, ProjectError};
use crate::imaging::LabelFile;
use crate::model::LabelSchema;

/// A label in the values of the schema.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mapped {
    /// One value per voxel, in C order `[z, y, x]`; 0 is background.
    pub voxels: Vec<u16>,
    /// Names of the annotated classes in the order of the schema.
    pub annotated: Vec<String>,
}

/// One entry of `label_info`.
struct Listed {
    name: String,
    index: Option<u64>,
}

/// Translates the values. Layers are flattened: where two overlap, the later one wins.
///
/// # Errors
/// [`ProjectError::Invalid`] for names that the project does not know and values without a name.
pub(super) fn to_schema(
    file: LabelFile,
    params: &Map,
    schema: &LabelSchema,
) -> Result<Mapped, ProjectError> {
    let listed = listed(params)?;
    let mut declared = BTreeSet::new();
    for entry in listed.iter().flatten() {
        declared.insert(value_of(schema, &entry.name)?);
    }
    let voxels = if file.segments.is_empty() {
        let [layer] = <[Vec<u16>; 1]>::try_from(file.layers).map_err(|layers| {
            invalid(format!(
                "the label has {} layers and names none of them; export one label map",
                layers.len()
            ))
        })?;
        let table = match &listed {
            Some(listed) => table_of_list(&layer, listed, schema)?,
            None => (0..=schema.names().len())
                .map(|value| u16::try_from(value).ok())
                .collect(),
        };
        let known = table.len().saturating_sub(1);
        translate(
            layer,
            |value| table.get(usize::from(value)).copied().flatten(),
            || match listed {
                Some(_) => format!("label_info lists {known} classes"),
                None => format!(
                    "the project has {known} classes ({}) and the submit names none (label_info)",
                    schema.names().join(", ")
                ),
            },
        )?
    } else {
        let mut of_segments = Vec::with_capacity(file.segments.len());
        for segment in &file.segments {
            let value = if is_auxiliary(&segment.name) {
                0
            } else {
                value_of(schema, &segment.name)?
            };
            if value > 0 {
                declared.insert(value);
            }
            of_segments.push((segment.layer, segment.value, value));
        }
        flatten(file.layers, &of_segments)?
    };

    let names = schema.names();
    let all = || {
        (1..=names.len())
            .filter_map(|value| u16::try_from(value).ok())
            .collect()
    };
    let annotated: BTreeSet<u16> = match params.get("annotated_labels") {
        None | Some(Value::Null) if declared.is_empty() => all(),
        None | Some(Value::Null) => declared,
        Some(list) => annotated_labels(list, schema)?,
    };
    let name_of = |value: u16| {
        names
            .get(usize::from(value).wrapping_sub(1))
            .cloned()
            .unwrap_or_default()
    };
    let present: BTreeSet<u16> = present(&voxels);
    if let Some(missing) = present.difference(&annotated).next() {
        return Err(invalid(format!(
            "the label holds voxels of {:?}, which annotated_labels leaves out; add it there",
            name_of(*missing)
        )));
    }
    Ok(Mapped {
        voxels,
        annotated: annotated.into_iter().map(name_of).collect(),
    })
}

fn invalid(text: String) -> ProjectError {
    ProjectError::Invalid(text)
}

/// Segments that Slicer makes for its own use.
fn is_auxiliary(name: &str) -> bool {
    let name = name.to_lowercase();
    name.starts_with("background") || name == "foreground_scribbles"
}

fn value_of(schema: &LabelSchema, name: &str) -> Result<u16, ProjectError> {
    schema.value_of(name.trim()).ok_or_else(|| {
        invalid(format!(
            "the class {name:?} is not one of this project; rename the segment to one of: {}",
            schema.names().join(", ")
        ))
    })
}

/// The structures that `label_info` of a label lists, auxiliary ones left out; none when it lists nothing.
///
/// # Errors
/// [`ProjectError::Invalid`] for something else than a list of objects with a name.
pub fn listed_structures(info: &Map) -> Result<Vec<String>, ProjectError> {
    let listed = listed(info)?.into_iter().flatten();
    Ok(listed.map(|entry| entry.name).collect())
}

/// `params.label_info` without auxiliary entries; none when it is absent or empty.
fn listed(params: &Map) -> Result<Option<Vec<Listed>>, ProjectError> {
    let entries = match params.get("label_info") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(entries)) if entries.is_empty() => return Ok(None),
        Some(Value::Array(entries)) => entries,
        Some(_) => {
            return Err(invalid(
                "label_info must be a list of objects with a name".to_owned(),
            ));
        }
    };
    let mut listed = Vec::with_capacity(entries.len());
    for entry in entries {
        let name = entry.get("name").and_then(Value::as_str);
        let name = name
            .ok_or_else(|| invalid(format!("label_info has an entry without a name: {entry}")))?;
        let index = ["idx", "id", "labelID", "label", "value"]
            .iter()
            .find_map(|key| number(entry.get(*key)?));
        if !is_auxiliary(name) {
            listed.push(Listed {
                name: name.to_owned(),
                index,
            });
        }
    }
    Ok(Some(listed))
}

fn number(value: &Value) -> Option<u64> {
    value
        .as_u64()
        .or_else(|| value.as_str()?.trim().parse().ok())
}

fn annotated_labels(list: &Value, schema: &LabelSchema) -> Result<BTreeSet<u16>, ProjectError> {
    let names: Option<Vec<&str>> = list
        .as_array()
        .and_then(|list| list.iter().map(Value::as_str).collect());
    let names =
        names.ok_or_else(|| invalid("annotated_labels must be a list of names".to_owned()))?;
    names
        .into_iter()
        .map(|name| value_of(schema, name))
        .collect()
}

/// Schema value by file value, from the positions in the list, or from its indices where a value
/// lies beyond the list and the indices explain every value.
fn table_of_list(
    layer: &[u16],
    listed: &[Listed],
    schema: &LabelSchema,
) -> Result<Vec<Option<u16>>, ProjectError> {
    let present = present(layer);
    let highest = present.last().copied().unwrap_or_default();
    let mut table = vec![None; listed.len() + 1];
    let indices: Option<Vec<usize>> = listed
        .iter()
        .map(|entry| usize::try_from(entry.index?).ok())
        .collect();
    let positions = match indices {
        Some(indices)
            if usize::from(highest) > listed.len()
                && present
                    .iter()
                    .all(|value| indices.contains(&usize::from(*value))) =>
        {
            table = vec![None; usize::from(highest) + 1];
            indices
        }
        _ => (1..=listed.len()).collect(),
    };
    table[0] = Some(0);
    for (entry, at) in listed.iter().zip(positions) {
        if let Some(slot) = table.get_mut(at)
            && at > 0
        {
            *slot = Some(value_of(schema, &entry.name)?);
        }
    }
    Ok(table)
}

/// The values that occur, without background.
fn present(voxels: &[u16]) -> BTreeSet<u16> {
    let mut seen = vec![false; usize::from(u16::MAX) + 1];
    for value in voxels {
        seen[usize::from(*value)] = true;
    }
    (1..=u16::MAX)
        .filter(|value| seen[usize::from(*value)])
        .collect()
}

fn translate(
    mut layer: Vec<u16>,
    of: impl Fn(u16) -> Option<u16>,
    expected: impl Fn() -> String,
) -> Result<Vec<u16>, ProjectError> {
    for voxel in &mut layer {
        *voxel = of(*voxel).ok_or_else(|| {
            invalid(format!(
                "the label holds the value {voxel}, but {}; export it again",
                expected()
            ))
        })?;
    }
    Ok(layer)
}

/// One label map of all layers; `segments` are layer, value in the file, value in the schema.
fn flatten(
    layers: Vec<Vec<u16>>,
    segments: &[(usize, u16, u16)],
) -> Result<Vec<u16>, ProjectError> {
    let mut flat: Option<Vec<u16>> = None;
    for (number, layer) in layers.into_iter().enumerate() {
        let of = |value: u16| match value {
            0 => Some(0),
            _ => segments
                .iter()
                .find(|segment| segment.0 == number && segment.1 == value)
                .map(|segment| segment.2),
        };
        let table: Vec<Option<u16>> = (0..=present(&layer).last().copied().unwrap_or_default())
            .map(of)
            .collect();
        let layer = translate(
            layer,
            |value| table.get(usize::from(value)).copied().flatten(),
            || format!("no segment of layer {number} has it"),
        )?;
        flat = Some(match flat {
            None => layer,
            Some(below) => below
                .into_iter()
                .zip(layer)
                .map(|(below, above)| if above > 0 { above } else { below })
                .collect(),
        });
    }
    flat.ok_or_else(|| invalid("the label has no layer; export it again".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imaging::{Geometry, Segment};
    use serde_json::json;

    fn schema() -> LabelSchema {
        LabelSchema::new(["liver", "spleen", "aorta"].map(str::to_owned).to_vec()).unwrap()
    }

    fn file(layers: &[&[u16]], segments: &[(&str, u16, usize)]) -> LabelFile {
        let n = layers.first().map_or(1, |layer| layer.len());
        LabelFile {
            geometry: Geometry::new(
                [1, 1, n],
                [0.0; 3],
                [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
            )
            .unwrap(),
            layers: layers.iter().map(|layer| layer.to_vec()).collect(),
            segments: segments
                .iter()
                .map(|&(name, value, layer)| Segment {
                    id: name.to_owned(),
                    name: name.to_owned(),
                    value,
                    layer,
                    color: None,
                })
                .collect(),
            warnings: vec![],
        }
    }

    fn map(
        layers: &[&[u16]],
        segments: &[(&str, u16, usize)],
        params: Value,
    ) -> Result<(Vec<u16>, String), String> {
        let params = params.as_object().cloned().unwrap();
        match to_schema(file(layers, segments), &params, &schema()) {
            Ok(mapped) => Ok((mapped.voxels, mapped.annotated.join(" "))),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn values_follow_names_whatever_way_they_are_given() {
        let list = |names: &[(&str, i64)]| json!({"label_info": names.iter().map(|(n, i)| json!({"name": n, "idx": i})).collect::<Vec<_>>()});
        let ok = |voxels: &[u16], names: &str| Ok((voxels.to_vec(), names.to_owned()));
        // Nothing said: values of the schema, everything annotated.
        assert_eq!(
            map(&[&[0, 1, 3]], &[], json!({})),
            ok(&[0, 1, 3], "liver spleen aorta")
        );
        assert_eq!(
            map(&[&[0, 1, 3]], &[], json!({"label_info": []})),
            ok(&[0, 1, 3], "liver spleen aorta")
        );
        // By position, also where idx says otherwise.
        assert_eq!(
            map(&[&[0, 1, 2]], &[], list(&[("aorta", 1), ("liver", 2)])),
            ok(&[0, 3, 1], "liver aorta")
        );
        assert_eq!(
            map(&[&[0, 1, 2]], &[], list(&[("aorta", 2), ("liver", 4)])),
            ok(&[0, 3, 1], "liver aorta")
        );
        // Auxiliary segments are not counted.
        let with_scribbles = list(&[
            ("background_scribbles", 1),
            ("foreground_scribbles", 2),
            ("spleen", 3),
        ]);
        assert_eq!(
            map(&[&[0, 1, 1]], &[], with_scribbles),
            ok(&[0, 2, 2], "spleen")
        );
        // By index, where only that can be meant.
        assert_eq!(
            map(&[&[0, 7, 2]], &[], list(&[("aorta", 7), ("liver", 2)])),
            ok(&[0, 3, 1], "liver aorta")
        );
        // Segments name themselves; the later layer wins.
        let segments = [("liver", 1, 0), ("Background", 2, 0), ("spleen", 1, 1)];
        assert_eq!(
            map(&[&[1, 1, 2], &[0, 1, 0]], &segments, json!({})),
            ok(&[1, 2, 0], "liver spleen")
        );
        // Annotated classes, said explicitly.
        assert_eq!(
            map(
                &[&[0, 1, 1]],
                &[],
                json!({"annotated_labels": ["spleen", "liver"]})
            ),
            ok(&[0, 1, 1], "liver spleen")
        );
    }

    #[test]
    fn what_cannot_be_named_is_refused_with_the_known_names() {
        let refused = |layers: &[&[u16]], segments: &[(&str, u16, usize)], params, text: &str| {
            let error = map(layers, segments, params).unwrap_err();
            assert!(error.contains(text), "{error}");
        };
        refused(&[&[4]], &[], json!({}), "liver, spleen, aorta");
        refused(
            &[&[1]],
            &[],
            json!({"label_info": [{"name": "kidney", "idx": 1}]}),
            "liver, spleen, aorta",
        );
        refused(
            &[&[3]],
            &[],
            json!({"label_info": [{"name": "liver"}]}),
            "label_info lists 1 classes",
        );
        refused(&[&[1]], &[("kidney", 1, 0)], json!({}), "\"kidney\"");
        refused(
            &[&[2]],
            &[("liver", 1, 0)],
            json!({}),
            "no segment of layer 0",
        );
        refused(&[&[1], &[1]], &[], json!({}), "2 layers");
        refused(&[], &[("liver", 1, 0)], json!({}), "no layer");
        refused(
            &[&[1]],
            &[],
            json!({"label_info": {"liver": 1}}),
            "must be a list",
        );
        refused(
            &[&[1]],
            &[],
            json!({"label_info": [{"idx": 1}]}),
            "without a name",
        );
        refused(
            &[&[2]],
            &[],
            json!({"annotated_labels": ["liver"]}),
            "\"spleen\"",
        );
        refused(
            &[&[0]],
            &[],
            json!({"annotated_labels": "liver"}),
            "list of names",
        );
    }
}
