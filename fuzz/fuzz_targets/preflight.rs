//! Any bytes as a DICOM file: walked to the end or refused.
#![no_main]

use fewlabel::imaging::dicom;
use fewlabel_fuzz::{BUDGET, report_panics};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: report_panics(), |file: &[u8]| {
    let _ = dicom::identity(file, &BUDGET);
});
