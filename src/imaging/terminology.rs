//! What the names of structures mean: SNOMED CT codes (PS3.16, CID 7150 and those below it).

use serde::Serialize;

/// A coded concept (PS3.3, 8.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Code {
    /// Coding scheme: `SCT` (SNOMED CT), `DCM`.
    pub scheme: &'static str,
    /// The code.
    pub value: &'static str,
    /// Its meaning in words.
    pub meaning: &'static str,
}

impl Code {
    /// A code of a scheme.
    pub const fn new(value: &'static str, scheme: &'static str, meaning: &'static str) -> Self {
        Self {
            scheme,
            value,
            meaning,
        }
    }
}

/// Category, type and side of a structure, as DICOM Segmentation objects (PS3.3, C.8.20.2) and 3D Slicer keep them.
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

const fn sct(value: &'static str, meaning: &'static str) -> Code {
    Code::new(value, "SCT", meaning)
}

const ANATOMY: Code = sct("91723000", "Anatomical Structure");
const ABNORMAL: Code = sct("49755003", "Morphologically Abnormal Structure");
const LEFT: Code = sct("7771000", "Left");
const RIGHT: Code = sct("24028007", "Right");

/// Structures by the words of their names, in lower case and without a side.
const STRUCTURES: [(&str, Code); 48] = [
    ("adrenal gland", sct("23451007", "Adrenal gland")),
    ("aorta", sct("15825003", "Aorta")),
    ("bladder", sct("89837001", "Urinary bladder")),
    ("bowel", sct("113276009", "Intestine")),
    ("brain", sct("12738006", "Brain")),
    ("brain stem", sct("119238007", "Brain stem")),
    ("brainstem", sct("119238007", "Brain stem")),
    ("colon", sct("71854001", "Colon")),
    ("duodenum", sct("38848004", "Duodenum")),
    ("esophagus", sct("32849002", "Esophagus")),
    ("eye", sct("81745001", "Eye")),
    ("femur", sct("71341001", "Femur")),
    ("gall bladder", sct("28231008", "Gallbladder")),
    ("gallbladder", sct("28231008", "Gallbladder")),
    ("heart", sct("80891009", "Heart")),
    ("hip", sct("29836001", "Hip")),
    ("inferior vena cava", sct("64131007", "Inferior vena cava")),
    ("kidney", sct("64033007", "Kidney")),
    ("larynx", sct("4596009", "Larynx")),
    ("lens", sct("78076003", "Lens")),
    ("liver", sct("10200004", "Liver")),
    ("lung", sct("39607008", "Lung")),
    ("mandible", sct("91609006", "Mandible")),
    ("oesophagus", sct("32849002", "Esophagus")),
    ("optic chiasm", sct("244453006", "Optic chiasm")),
    ("optic nerve", sct("18234004", "Optic nerve")),
    ("pancreas", sct("15776009", "Pancreas")),
    ("parotid", sct("45289007", "Parotid gland")),
    ("parotid gland", sct("45289007", "Parotid gland")),
    ("portal vein", sct("32764006", "Portal vein")),
    ("prostate", sct("41216001", "Prostate")),
    ("pulmonary artery", sct("81040000", "Pulmonary artery")),
    ("rectum", sct("34402009", "Rectum")),
    ("rib", sct("113197003", "Rib")),
    ("sacrum", sct("54735007", "Sacrum")),
    ("small bowel", sct("30315005", "Small intestine")),
    ("small intestine", sct("30315005", "Small intestine")),
    ("spinal cord", sct("2748008", "Spinal cord")),
    ("spine", sct("421060004", "Spine")),
    ("spleen", sct("78961009", "Spleen")),
    ("sternum", sct("56873002", "Sternum")),
    ("stomach", sct("69695003", "Stomach")),
    (
        "submandibular gland",
        sct("54019009", "Submandibular gland"),
    ),
    ("thyroid", sct("69748006", "Thyroid")),
    ("trachea", sct("44567001", "Trachea")),
    ("urinary bladder", sct("89837001", "Urinary bladder")),
    ("vena cava", sct("64131007", "Inferior vena cava")),
    ("vertebra", sct("51282000", "Vertebra")),
];

/// What is not healthy anatomy.
const ALTERED: [(&str, Code); 6] = [
    ("cyst", sct("367643001", "Cyst")),
    ("gtv", sct("108369006", "Neoplasm")),
    ("lesion", sct("52988006", "Lesion")),
    ("mass", sct("4147007", "Mass")),
    ("tumor", sct("108369006", "Neoplasm")),
    ("tumour", sct("108369006", "Neoplasm")),
];

/// What a name means; none when it is not known. Case, a plural, and a side (`left`, `right`, `l`, `r` as a word) are
/// understood.
pub fn of_name(name: &str) -> Option<Terminology> {
    let (base, modifier) = base_and_side(name);
    let find = |table: &[(&str, Code)]| {
        let is = |known: &str| base == known || base.strip_suffix('s') == Some(known);
        let found = table.iter().find(|(known, _)| is(known));
        found.map(|(_, code)| *code)
    };
    let of = |category, kind| Terminology {
        category,
        r#type: kind,
        modifier,
    };
    find(&STRUCTURES)
        .map(|kind| of(ANATOMY, kind))
        .or_else(|| find(&ALTERED).map(|kind| of(ABNORMAL, kind)))
}

/// As [`of_name`]; a name that is not known is that of some anatomical structure.
pub fn of_any_name(name: &str) -> Terminology {
    of_name(name).unwrap_or_else(|| Terminology {
        category: ANATOMY,
        r#type: ANATOMY,
        modifier: base_and_side(name).1,
    })
}

/// The words of a name in lower case, without its side.
fn base_and_side(name: &str) -> (String, Option<Code>) {
    let lower = name.to_lowercase();
    let (mut base, mut is_left, mut is_right) = (Vec::new(), false, false);
    for word in lower
        .split(|letter: char| !letter.is_alphanumeric())
        .filter(|word| !word.is_empty())
    {
        match word {
            "left" | "l" => is_left = true,
            "right" | "r" => is_right = true,
            _ => base.push(word),
        }
    }
    let side = match (is_left, is_right) {
        (true, false) => Some(LEFT),
        (false, true) => Some(RIGHT),
        _ => None,
    };
    (base.join(" "), side)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_find_their_codes() {
        for (name, value, side) in [
            ("liver", "10200004", None),
            ("Left Kidney", "64033007", Some(LEFT)),
            ("kidney_right", "64033007", Some(RIGHT)),
            ("Parotid_L", "45289007", Some(LEFT)),
            ("lungs", "39607008", None),
            ("spinal cord", "2748008", None),
            ("Spinal_Cord", "2748008", None),
            ("GTV", "108369006", None),
        ] {
            let found = of_name(name).unwrap();
            assert_eq!(
                (found.r#type.value, found.modifier),
                (value, side),
                "{name}"
            );
        }
        assert_eq!(of_name("tumour").unwrap().category, ABNORMAL);
        for unknown in ["my structure", "SpinalCord", "left", ""] {
            assert_eq!(of_name(unknown), None, "{unknown}");
        }
        assert_eq!(of_any_name("left thing").modifier, Some(LEFT));
        assert_eq!(of_any_name("left and right thing").modifier, None);
    }

    #[test]
    fn the_tables_are_in_order() {
        assert!(STRUCTURES.is_sorted_by(|a, b| a.0 < b.0));
        assert!(ALTERED.is_sorted_by(|a, b| a.0 < b.0));
    }
}
