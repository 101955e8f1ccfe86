//! What the structures of the project look like and mean, for clients that show them.

use serde::Serialize;

use super::Project;
use crate::imaging::color;

/// A code of a coding scheme, as DICOM writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Code {
    /// `SCT`, SNOMED CT.
    pub scheme: &'static str,
    /// The code.
    pub value: &'static str,
    /// Its meaning in words.
    pub meaning: &'static str,
}

/// Category, type and side of a structure, as DICOM Segmentation objects (PS3.3 C.8.20.2) and 3D Slicer keep them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Terminology {
    /// Anatomical structure, or something that is not healthy.
    pub category: Code,
    /// What it is.
    pub r#type: Code,
    /// Left or right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modifier: Option<Code>,
}

/// One structure of the project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Structure {
    /// Its name.
    pub name: String,
    /// Its value in label maps.
    pub value: u16,
    /// Its colour, the same as in pictures and `.seg.nrrd` files.
    pub color_rgb: [u8; 3],
    /// What it means; none for a name that is not known here.
    pub terminology: Option<Terminology>,
}

const fn sct(value: &'static str, meaning: &'static str) -> Code {
    Code {
        scheme: "SCT",
        value,
        meaning,
    }
}

const ANATOMY: Code = sct("123037004", "Anatomical Structure");
const ALTERED: Code = sct("49755003", "Morphologically Altered Structure");
const LEFT: Code = sct("7771000", "Left");
const RIGHT: Code = sct("24028007", "Right");

/// Names without their side, with underscores for spaces, and what they are (DICOM PS3.16, annex L and the context
/// groups for segmentation).
const KNOWN: &[(&str, Code)] = &[
    ("adrenal_gland", sct("23451007", "Adrenal gland")),
    ("aorta", sct("15825003", "Aorta")),
    ("bladder", sct("89837001", "Urinary bladder")),
    ("bowel", sct("113276009", "Intestine")),
    ("brain", sct("12738006", "Brain")),
    ("brainstem", sct("119238007", "Brain stem")),
    ("colon", sct("71854001", "Colon")),
    ("duodenum", sct("38848004", "Duodenum")),
    ("esophagus", sct("32849002", "Esophagus")),
    ("gallbladder", sct("28231008", "Gallbladder")),
    ("heart", sct("80891009", "Heart")),
    ("inferior_vena_cava", sct("64131007", "Inferior vena cava")),
    ("kidney", sct("64033007", "Kidney")),
    ("larynx", sct("4596009", "Larynx")),
    ("liver", sct("10200004", "Liver")),
    ("lung", sct("39607008", "Lung")),
    ("mandible", sct("91609006", "Mandible")),
    ("optic_chiasm", sct("244453006", "Optic chiasm")),
    ("pancreas", sct("15776009", "Pancreas")),
    ("parotid", sct("45289007", "Parotid gland")),
    ("parotid_gland", sct("45289007", "Parotid gland")),
    ("prostate", sct("41216001", "Prostate")),
    ("pulmonary_artery", sct("81040000", "Pulmonary artery")),
    ("spinal_cord", sct("2748008", "Spinal cord")),
    ("spleen", sct("78961009", "Spleen")),
    ("stomach", sct("69695003", "Stomach")),
    (
        "submandibular_gland",
        sct("54019009", "Submandibular gland"),
    ),
    ("thyroid", sct("69748006", "Thyroid gland")),
    ("trachea", sct("44567001", "Trachea")),
    ("urinary_bladder", sct("89837001", "Urinary bladder")),
];

/// Names of what is not healthy anatomy.
const LESIONS: &[(&str, Code)] = &[
    ("gtv", sct("4147007", "Mass")),
    ("lesion", sct("4147007", "Mass")),
    ("mass", sct("4147007", "Mass")),
    ("tumor", sct("4147007", "Mass")),
    ("tumour", sct("4147007", "Mass")),
];

/// What a name means, whatever its case and wherever its side stands.
fn terminology(name: &str) -> Option<Terminology> {
    let mut modifier = None;
    let mut rest = Vec::new();
    let lower = name.to_lowercase();
    for word in lower
        .split(|letter: char| !letter.is_alphanumeric())
        .filter(|word| !word.is_empty())
    {
        match word {
            "left" | "l" => modifier = Some(LEFT),
            "right" | "r" => modifier = Some(RIGHT),
            _ => rest.push(word),
        }
    }
    let rest = rest.join("_");
    let find = |table: &[(&str, Code)]| {
        table
            .iter()
            .find(|(known, _)| *known == rest)
            .map(|(_, code)| *code)
    };
    let of = |category, code| Terminology {
        category,
        r#type: code,
        modifier,
    };
    find(KNOWN)
        .map(|code| of(ANATOMY, code))
        .or_else(|| find(LESIONS).map(|code| of(ALTERED, code)))
}

impl Project {
    /// The structures in the order of their values.
    pub fn structures(&self) -> Vec<Structure> {
        let values = self.schema().values().into_iter();
        values
            .map(|(value, name)| Structure {
                value,
                color_rgb: color::of_value(value),
                terminology: terminology(&name),
                name,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_a_meaning_and_a_side() {
        let parotid = terminology("parotid_left").unwrap();
        assert_eq!(parotid.r#type.meaning, "Parotid gland");
        assert_eq!(parotid.modifier, Some(LEFT));
        assert_eq!(terminology("Right Kidney").unwrap().modifier, Some(RIGHT));
        assert_eq!(
            terminology("spinal cord").unwrap(),
            terminology("Spinal_Cord").unwrap()
        );
        assert_eq!(terminology("GTV").unwrap().category, ALTERED);
        assert_eq!(terminology("my structure"), None);
        assert_eq!(terminology("left"), None);
    }
}
