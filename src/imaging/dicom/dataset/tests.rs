use super::*;
use proptest::prelude::*;

const EXPLICIT: &str = "1.2.840.10008.1.2.1";

fn file(data_set: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 128];
    bytes.extend(b"DICM");
    bytes.extend([2, 0, 0x10, 0]);
    bytes.extend(b"UI");
    bytes.extend(20u16.to_le_bytes());
    bytes.extend(format!("{EXPLICIT}\0").bytes());
    bytes.extend(data_set);
    bytes
}

fn parse(data_set: &[u8]) -> Result<DataSet, ImagingError> {
    DataSet::parse(file(data_set), &Budget::default())
}

fn element(tag: u32, vr: &[u8; 2], value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![];
    bytes.extend(((tag >> 16) as u16).to_le_bytes());
    bytes.extend((tag as u16).to_le_bytes());
    bytes.extend(vr);
    if LONG_VRS.contains(&vr) {
        bytes.extend([0, 0]);
        bytes.extend((value.len() as u32).to_le_bytes());
    } else {
        bytes.extend((value.len() as u16).to_le_bytes());
    }
    bytes.extend(value);
    bytes
}

#[test]
fn values_are_found_where_they_belong() {
    let inner = element(0x0028_0010, b"US", &[7, 0]);
    let mut item = vec![0xfe, 0xff, 0, 0xe0];
    item.extend((inner.len() as u32).to_le_bytes());
    item.extend(&inner);
    let mut set = element(0x0028_0009, b"SQ", &item);
    set.extend(element(0x0028_0010, b"US", &[9, 0]));
    set.extend(element(0x0028_0030, b"DS", b"0.5\\2.25"));
    let set = parse(&set).unwrap();
    assert_eq!(set.root().u16(0x0028_0010), Some(9));
    let nested = set.root().first(0x0028_0009).unwrap();
    assert_eq!(nested.u16(0x0028_0010), Some(7));
    assert_eq!(
        set.root().decimal::<2>(0x0028_0030).unwrap(),
        Some([0.5, 2.25])
    );
    assert!(set.root().decimal::<3>(0x0028_0030).is_err());
}

#[test]
fn elements_out_of_order_are_found_and_the_first_of_two_counts() {
    let word = |tag, value: u8| element(tag, b"US", &[value, 0]);
    let set = [
        word(0x0028_0100, 16),
        word(0x0028_0010, 5),
        word(0x0028_0011, 6),
        word(0x0028_0010, 7),
    ]
    .concat();
    let set = parse(&set).unwrap();
    let found = [0x0028_0010, 0x0028_0011, 0x0028_0100, 0x0028_0101].map(|tag| set.root().u16(tag));
    assert_eq!(found, [Some(5), Some(6), Some(16), None]);
}

#[test]
fn a_length_beyond_the_file_is_refused_before_it_is_used() {
    let mut set = element(0x0040_0001, b"OB", &[1, 2]);
    let at = set.len() - 6;
    set[at..at + 4].copy_from_slice(&0xffff_fff0u32.to_le_bytes());
    assert!(parse(&set).is_err());
}

#[test]
fn deep_nesting_is_refused_without_recursion() {
    let mut set = Vec::new();
    for _ in 0..20_000 {
        set.extend([0x28, 0, 9, 0]);
        set.extend(b"SQ\0\0");
        set.extend(UNDEFINED.to_le_bytes());
        set.extend([0xfe, 0xff, 0, 0xe0]);
        set.extend(UNDEFINED.to_le_bytes());
    }
    assert!(matches!(parse(&set), Err(ImagingError::TooLarge(_))));
}

#[test]
fn many_elements_are_refused() {
    let set = element(0x0028_0010, b"US", &[]).repeat(MAX_ELEMENTS + 1);
    assert!(matches!(parse(&set), Err(ImagingError::TooLarge(_))));
}

#[test]
fn every_cut_is_noticed() {
    let mut set = element(0x0008_0060, b"CS", b"CT");
    set.extend(element(0x0028_0010, b"US", &[9, 0]));
    let whole = file(&set);
    for cut in whole.len() - set.len() + 1..whole.len() {
        let kept = whole[..cut].to_vec();
        let boundary = cut == whole.len() - 10;
        assert_eq!(
            DataSet::parse(kept, &Budget::default()).is_ok(),
            boundary,
            "cut at {cut}"
        );
    }
}

proptest! {
    #[test]
    fn any_bytes_end_in_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = parse(&bytes);
        let _ = DataSet::parse(bytes, &Budget::default());
    }
}
