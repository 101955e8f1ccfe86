//! The label schema: which structures, in which order.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// Names of the structures in order; the structure at position `k` has label value and class `k + 1`, background is 0.
///
/// Values are always 1..=N without gaps: 3D Slicer maps the k-th name to voxel value k, OHIF maps by index, and only
/// consecutive values satisfy both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct LabelSchema {
    names: Vec<String>,
}

/// Most structures that a schema may have: label maps stay one byte a voxel.
pub const MAX_LABELS: usize = 255;
/// Why labels cannot be flipped of which [`LabelSchema::mirrored`] is `None`.
pub const ONE_SIDED: &str =
    "flips exchange left and right, but a structure of one side has no partner among the labels";
/// Longest name, in characters.
const MAX_NAME: usize = 64;

/// A label schema that cannot be used.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum SchemaError {
    /// No structure, or too many.
    #[error("a label schema needs 1 to {MAX_LABELS} structures, this one has {0}")]
    Count(usize),
    /// A name that cannot be used.
    #[error("label name {0:?}: {1}")]
    Name(String, &'static str),
    /// `dataset.json` could not be used.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
}

impl LabelSchema {
    /// Checks the names: 1 to 255, each unique, 1 to 64 characters, no control characters or commas, not "background".
    pub fn new(names: Vec<String>) -> Result<Self, SchemaError> {
        if names.is_empty() || names.len() > MAX_LABELS {
            return Err(SchemaError::Count(names.len()));
        }
        for (i, name) in names.iter().enumerate() {
            let wrong = if name.trim() != name || name.is_empty() {
                Some("it is empty or has space around it")
            } else if name.chars().count() > MAX_NAME {
                Some("it is longer than 64 characters")
            } else if name.chars().any(|c| c.is_control() || c == ',') {
                Some("it holds a comma or a control character")
            } else if name.eq_ignore_ascii_case("background") {
                Some("background is always there, as value 0; list the structures only")
            } else if names[..i].contains(name) {
                Some("it is there twice")
            } else {
                None
            };
            if let Some(reason) = wrong {
                return Err(SchemaError::Name(name.clone(), reason));
            }
        }
        Ok(Self { names })
    }

    /// Names from `a,b,c`.
    pub fn from_list(list: &str) -> Result<Self, SchemaError> {
        Self::new(list.split(',').map(|name| name.trim().to_owned()).collect())
    }

    /// Names from the `labels` of a Medical Segmentation Decathlon `dataset.json`: values must be 0 (background) and 1..=N.
    /// Both spellings are read: `{"1": "liver"}` and `{"liver": 1}`.
    pub fn from_dataset_json(path: &Path) -> Result<Self, SchemaError> {
        let fail = |reason: String| SchemaError::File {
            path: path.display().to_string(),
            reason,
        };
        let text = std::fs::read(path).map_err(|e| fail(e.to_string()))?;
        let json: serde_json::Value =
            serde_json::from_slice(&text).map_err(|e| fail(e.to_string()))?;
        let labels = json
            .get("labels")
            .and_then(|labels| labels.as_object())
            .ok_or_else(|| fail("no object \"labels\"".into()))?;
        let mut pairs = Vec::new();
        for (key, value) in labels {
            let pair = match (key.parse::<usize>(), value.as_str(), value.as_u64()) {
                (Ok(index), Some(name), _) => (index, name.to_owned()),
                (_, _, Some(index)) => (index as usize, key.clone()),
                _ => {
                    return Err(fail(format!(
                        "label {key:?}: {value} is neither a name nor a value"
                    )));
                }
            };
            if pair.0 > 0 {
                pairs.push(pair);
            }
        }
        pairs.sort();
        if pairs
            .iter()
            .enumerate()
            .any(|(i, (index, _))| *index != i + 1)
        {
            return Err(fail("label values are not 1, 2, 3, … without gaps".into()));
        }
        Self::new(pairs.into_iter().map(|(_, name)| name).collect())
    }

    /// The names, position `k` for value `k + 1`.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The label value of a name.
    pub fn value_of(&self, name: &str) -> Option<u16> {
        let position = self.names.iter().position(|n| n == name)?;
        u16::try_from(position + 1).ok()
    }

    /// Classes, background included.
    pub fn class_count(&self) -> usize {
        self.names.len() + 1
    }

    /// For each label value (0 first) the value of the structure on the other side of the body, for flips of left and
    /// right: "kidney_left" and "kidney_right" exchange, "Parotid_L" and "Parotid_R" too, "liver" stays. `None` when a side
    /// has no partner, or when a name holds both sides: then nothing may be flipped.
    pub fn mirrored(&self) -> Option<Vec<u8>> {
        let sides: Vec<Option<Sided>> = self.names.iter().map(|name| sided(name)).collect();
        let mut table = vec![0u8];
        for (position, side) in sides.iter().enumerate() {
            let other = match side {
                None => position,
                Some(side) => {
                    let mut partners = sides.iter().enumerate().filter(|(_, other)| {
                        other
                            .as_ref()
                            .is_some_and(|other| side.is_partner_of(other))
                    });
                    let (partner, _) = partners.next()?;
                    if partners.next().is_some() {
                        return None;
                    }
                    partner
                }
            };
            table.push(u8::try_from(other + 1).ok()?);
        }
        Some(table)
    }

    /// `(value, name)` of every structure, as label writers take them.
    pub fn values(&self) -> Vec<(u16, String)> {
        (1u16..).zip(self.names.iter().cloned()).collect()
    }
}

/// A name that says a side.
struct Sided {
    left: bool,
    right: bool,
    /// The name in lower case, with the same sign for either side.
    both: String,
}

impl Sided {
    fn is_partner_of(&self, other: &Self) -> bool {
        self.left != self.right
            && (self.left, self.right) == (other.right, other.left)
            && self.both == other.both
    }
}

/// What side a name says: by "left" or "right" anywhere in it, or by "L" or "R" as a word of its own.
fn sided(name: &str) -> Option<Sided> {
    let (mut left, mut right) = (false, false);
    let lower = name.to_lowercase();
    let words = lower.split(|c: char| !c.is_alphanumeric()).map(|word| {
        left |= word == "l" || word.contains("left");
        right |= word == "r" || word.contains("right");
        match word {
            "l" | "r" => "*".to_owned(),
            word => word.replace("left", "*").replace("right", "*"),
        }
    });
    let both = words.collect::<Vec<_>>().join(" ");
    (left || right).then_some(Sided { left, right, both })
}

impl TryFrom<Vec<String>> for LabelSchema {
    type Error = SchemaError;

    fn try_from(names: Vec<String>) -> Result<Self, SchemaError> {
        Self::new(names)
    }
}

impl From<LabelSchema> for Vec<String> {
    fn from(schema: LabelSchema) -> Self {
        schema.names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_follow_the_order() {
        let schema = LabelSchema::from_list("liver, spleen").unwrap();
        assert_eq!(schema.names(), ["liver", "spleen"]);
        assert_eq!(schema.value_of("spleen"), Some(2));
        assert_eq!(schema.value_of("kidney"), None);
        assert_eq!(schema.class_count(), 3);
    }

    #[test]
    fn sides_mirror() {
        let mirrored = |list| LabelSchema::from_list(list).unwrap().mirrored();
        assert_eq!(
            mirrored("liver,kidney_left,kidney_right"),
            Some(vec![0, 1, 3, 2])
        );
        assert_eq!(mirrored("liver,kidney_left"), None);
        assert_eq!(mirrored("liver,spleen"), Some(vec![0, 1, 2]));
        for pair in [
            "Parotid_L,Parotid_R",
            "Left Kidney,Right kidney",
            "lung left,lung-right",
            "KidneyRight,KidneyLeft",
        ] {
            assert_eq!(mirrored(pair), Some(vec![0, 2, 1]), "{pair}");
        }
        // Vertebrae are no sides; a side without its partner, or with two, is a reason not to flip.
        assert_eq!(mirrored("L1,L2,R"), None);
        assert_eq!(mirrored("vertebra_L1,vertebra_L2"), Some(vec![0, 1, 2]));
        assert_eq!(mirrored("Eye_L,Eye_R,eye left"), None);
        assert_eq!(mirrored("Eye_L,Lens_R"), None);
        assert_eq!(mirrored("left_right_border"), None);
    }

    #[test]
    fn unusable_names_are_refused() {
        for list in ["", "a,,b", "a,a", "Background", "a\nb"] {
            assert!(LabelSchema::from_list(list).is_err(), "{list:?}");
        }
        assert!(LabelSchema::new((0..256).map(|i| format!("l{i}")).collect()).is_err());
    }

    #[test]
    fn dataset_json_in_both_spellings() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dataset.json");
        for text in [
            r#"{"labels": {"0": "background", "2": "spleen", "1": "liver"}}"#,
            r#"{"labels": {"background": 0, "liver": 1, "spleen": 2}}"#,
        ] {
            std::fs::write(&path, text).unwrap();
            let schema = LabelSchema::from_dataset_json(&path).unwrap();
            assert_eq!(schema.names(), ["liver", "spleen"]);
        }
        std::fs::write(&path, r#"{"labels": {"0": "background", "2": "spleen"}}"#).unwrap();
        assert!(LabelSchema::from_dataset_json(&path).is_err());
    }
}
