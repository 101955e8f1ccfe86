//! Names that clients send, checked once. No path is ever built from text that did not pass here.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest id or tag, in characters.
const MAX_CHARS: usize = 128;

/// Why a text is no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what} {text:?} is refused: {why}; use 1 to {MAX_CHARS} characters without path separators and control characters, not starting with a dot"
)]
pub struct IdError {
    what: &'static str,
    text: String,
    why: &'static str,
}

/// The rule of every id: usable verbatim as one file name on every common file system.
///
/// Spaces, inner dots and colons are allowed, because 3D Slicer sends volume names as they are.
fn check(what: &'static str, text: &str) -> Result<(), IdError> {
    let why = if text.is_empty() {
        "it is empty"
    } else if text.chars().count() > MAX_CHARS {
        "it is too long"
    } else if text.chars().any(char::is_control) {
        "it holds a control character"
    } else if text.contains(['/', '\\']) {
        "it holds a path separator"
    } else if text.starts_with('.') {
        "it starts with a dot"
    } else {
        return Ok(());
    };
    Err(IdError {
        what,
        text: text.chars().take(MAX_CHARS).collect(),
        why,
    })
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Takes the text as it is, or says why not.
            ///
            /// # Errors
            /// [`IdError`] when the text breaks the rule of ids.
            pub fn parse(text: &str) -> Result<Self, IdError> {
                check($what, text)?;
                Ok(Self(text.to_owned()))
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::parse(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                check($what, &text)?;
                Ok(Self(text))
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
    };
}

text_id!(
    /// Names one image of the project.
    ImageId,
    "image id"
);
text_id!(
    /// Names one line of label revisions of an image: `final`, `original`, `version_<n>` or any other.
    Tag,
    "tag"
);
text_id!(
    /// Names a model, the directory of its versions.
    ModelName,
    "model name"
);
text_id!(
    /// The base name of a file that a client sent.
    FileName,
    "file name"
);

impl Tag {
    /// The tag of accepted labels: what "labelled" means, and what training uses.
    pub fn accepted() -> Self {
        Self("final".to_owned())
    }

    /// The tag of labels proposed by a model.
    pub fn original() -> Self {
        Self("original".to_owned())
    }
}

impl FileName {
    /// The base name of what a client calls its file, which may be a whole path of its own system.
    ///
    /// # Errors
    /// [`IdError`] when nothing usable is left.
    pub fn from_client(path: &str) -> Result<Self, IdError> {
        Self::parse(path.rsplit(['/', '\\']).next().unwrap_or_default())
    }
}

/// Suffixes of image files, longest first. A zip file holds a DICOM series.
pub const IMAGE_SUFFIXES: [&str; 4] = [".nii.gz", ".nii", ".nrrd", ".zip"];
/// In place of a suffix for images that are folders with a DICOM series.
pub(super) const SERIES_FOLDER: &str = ".dicom";
/// Suffixes of label files, longest first. `.dcm` is a DICOM Segmentation or RT Structure Set, `.bin` is raw uint8 in the order of the image's file, i fastest.
pub const LABEL_SUFFIXES: [&str; 6] = [".seg.nrrd", ".nii.gz", ".nii", ".nrrd", ".dcm", ".bin"];

/// Splits a file name into stem and one of `suffixes` (any case; returned as listed).
pub fn split_suffix<'n>(
    name: &'n str,
    suffixes: &[&'static str],
) -> Option<(&'n str, &'static str)> {
    suffixes.iter().find_map(|suffix| {
        let at = name.len().checked_sub(suffix.len())?;
        let matches = name.is_char_boundary(at) && name[at..].eq_ignore_ascii_case(suffix);
        matches.then(|| (&name[..at], *suffix))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::{Component, Path};

    #[test]
    fn accepts_what_slicer_sends_and_refuses_paths() {
        for good in [
            "case_01",
            "CT: chest 2.5 mm",
            "case.with.dots",
            "Ünïcode",
            "a..b",
        ] {
            assert_eq!(ImageId::parse(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            ".",
            "..",
            ".hidden",
            "../x",
            "a/b",
            "a\\b",
            "a\0b",
            "a\nb",
            &"x".repeat(129),
        ] {
            assert!(Tag::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn client_paths_keep_only_their_base_name() {
        assert_eq!(
            FileName::from_client("C:\\Users\\me\\a b.nii.gz")
                .unwrap()
                .as_str(),
            "a b.nii.gz"
        );
        assert_eq!(
            FileName::from_client("/tmp/x/y.nrrd").unwrap().as_str(),
            "y.nrrd"
        );
        assert!(FileName::from_client("/tmp/").is_err());
        assert!(FileName::from_client("x/..").is_err());
    }

    #[test]
    fn suffixes_are_the_longest_that_fit() {
        assert_eq!(
            split_suffix("a.b.c.NII.GZ", &IMAGE_SUFFIXES),
            Some(("a.b.c", ".nii.gz"))
        );
        assert_eq!(
            split_suffix("x.seg.nrrd", &LABEL_SUFFIXES),
            Some(("x", ".seg.nrrd"))
        );
        assert_eq!(split_suffix("x.dcm", &IMAGE_SUFFIXES), None);
        assert_eq!(split_suffix("ü", &IMAGE_SUFFIXES), None);
    }

    proptest! {
        #[test]
        fn an_accepted_id_is_one_plain_path_component(text in any::<String>()) {
            if let Ok(id) = ImageId::parse(&text) {
                let joined = Path::new("/root").join(id.as_str());
                prop_assert_eq!(joined.parent(), Some(Path::new("/root")));
                let all_normal = Path::new(id.as_str()).components().all(|c| matches!(c, Component::Normal(_)));
                prop_assert!(all_normal);
            }
        }

        #[test]
        fn text_made_of_dots_and_separators_never_passes(text in "[./\\\\]{0,12}") {
            prop_assert!(ImageId::parse(&text).is_err());
        }
    }
}
