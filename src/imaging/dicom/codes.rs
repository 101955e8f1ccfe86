//! SNOMED CT codes of structures, found by the names of labels (PS3.16, CID 7150 and following).

use super::encode::Code;

/// What a segment is, coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Property {
    pub category: Code,
    pub kind: Code,
    /// Left or right.
    pub side: Option<Code>,
}

const fn sct(value: &'static str, meaning: &'static str) -> Code {
    Code::new(value, "SCT", meaning)
}

const ANATOMY: Code = sct("123037004", "Anatomical Structure");
const ABNORMAL: Code = sct("49755003", "Morphologically Altered Structure");
const LEFT: Code = sct("7771000", "Left");
const RIGHT: Code = sct("24028007", "Right");
/// For names that are not in the table; the name itself stands in the segment's label.
const UNKNOWN: Code = sct("91723000", "Anatomical structure");

/// Structures by the words of their names, in lower case and without a side.
const STRUCTURES: [(&str, Code); 46] = [
    ("adrenal gland", sct("23451007", "Adrenal gland")),
    ("aorta", sct("15825003", "Aorta")),
    ("bladder", sct("89837001", "Urinary bladder")),
    ("brain", sct("12738006", "Brain")),
    ("brain stem", sct("15926001", "Brainstem")),
    ("brainstem", sct("15926001", "Brainstem")),
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
    ("lens", sct("78076003", "Lens of eye")),
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
    ("spine", sct("421060004", "Vertebral column")),
    ("spleen", sct("78961009", "Spleen")),
    ("sternum", sct("56873002", "Sternum")),
    ("stomach", sct("69695003", "Stomach")),
    (
        "submandibular gland",
        sct("54019009", "Submandibular gland"),
    ),
    ("thyroid", sct("69748006", "Thyroid")),
    ("trachea", sct("44567001", "Trachea")),
    ("vena cava", sct("64131007", "Inferior vena cava")),
    ("vertebra", sct("51282000", "Vertebra")),
];

/// Structures that are no normal anatomy.
const ALTERED: [(&str, Code); 4] = [
    ("cyst", sct("367643001", "Cyst")),
    ("lesion", sct("52988006", "Lesion")),
    ("tumor", sct("108369006", "Neoplasm")),
    ("tumour", sct("108369006", "Neoplasm")),
];

/// The codes of a label's name. A plural and a side (`left`, `right`, `l`, `r` as a word) are understood.
pub(super) fn of_name(name: &str) -> Property {
    let lower = name.to_lowercase();
    let words: Vec<&str> = lower
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect();
    let is_left = words.iter().any(|word| matches!(*word, "left" | "l"));
    let is_right = words.iter().any(|word| matches!(*word, "right" | "r"));
    let base: Vec<&str> = words
        .into_iter()
        .filter(|word| !matches!(*word, "left" | "l" | "right" | "r"))
        .collect();
    let base = base.join(" ");
    let find = |table: &[(&str, Code)]| {
        let is = |known: &str| base == known || base.strip_suffix('s') == Some(known);
        table
            .iter()
            .find(|(known, _)| is(known))
            .map(|(_, code)| *code)
    };
    let (category, kind) = match (find(&STRUCTURES), find(&ALTERED)) {
        (Some(kind), _) => (ANATOMY, kind),
        (None, Some(kind)) => (ABNORMAL, kind),
        (None, None) => (ANATOMY, UNKNOWN),
    };
    Property {
        category,
        kind,
        side: match (is_left, is_right) {
            (true, false) => Some(LEFT),
            (false, true) => Some(RIGHT),
            _ => None,
        },
    }
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
            ("SpinalCord", "91723000", None),
            ("spinal cord", "2748008", None),
            ("tumour", "108369006", None),
        ] {
            let property = of_name(name);
            assert_eq!(
                (property.kind.value, property.side),
                (value, side),
                "{name}"
            );
        }
    }

    #[test]
    fn the_table_is_in_order() {
        assert!(STRUCTURES.is_sorted_by(|a, b| a.0 < b.0));
    }
}
