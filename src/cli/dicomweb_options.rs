//! Options of `fewlabel serve` about a DICOMweb server.

use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::dicomweb::Settings;
use crate::imaging::dicom::{ResultKind, SegmentationKind};
use crate::project::StoreResults;

/// What accepted labels are stored as.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreAs {
    /// Segmentation object
    DicomSeg,
    /// Segmentation object of the newer kind that holds label values
    DicomLabelmap,
    /// RT Structure Set
    Rtstruct,
    /// Nothing is stored
    None,
}

/// When accepted labels are stored.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreWhen {
    /// Each one that is submitted
    Submitted,
    /// Only those that a second reader approved
    Approved,
}

/// What is taken from a DICOMweb server, and what is stored there.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "DICOMweb")]
pub struct DicomWebOptions {
    /// Series to take from the DICOMweb server, as an attribute with its value; repeatable, all have to fit [default:
    /// Modality=CT]
    #[arg(long = "filter", value_name = "NAME=VALUE", value_parser = pair)]
    pub filter: Vec<(String, String)>,
    /// Ask the DICOMweb server for new series after so many seconds
    #[arg(long, default_value_t = 60, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub poll_s: u64,
    /// Keep copies of series up to this size together; the least recently used go first
    #[arg(long, default_value_t = 50, value_name = "GIB")]
    pub cache_gib: u64,
    /// What accepted labels are stored as on the DICOMweb server
    #[arg(long, value_enum, default_value = "dicom-seg", value_name = "KIND")]
    pub store_as: StoreAs,
    /// Which accepted labels are stored there
    #[arg(long, value_enum, default_value = "submitted", value_name = "WHEN")]
    pub store_when: StoreWhen,
}

impl DicomWebOptions {
    /// What is kept of the server.
    pub fn settings(&self) -> Settings {
        let usual = Settings::default();
        Settings {
            filter: match self.filter.is_empty() {
                true => usual.filter,
                false => self.filter.clone(),
            },
            cache_limit_bytes: self.cache_gib << 30,
        }
    }

    /// Pause between two questions for new series.
    pub fn poll(&self) -> Duration {
        Duration::from_secs(self.poll_s)
    }

    /// What is stored there, if anything is.
    pub fn results(&self) -> Option<StoreResults> {
        let kind = match self.store_as {
            StoreAs::DicomSeg => ResultKind::Segmentation(SegmentationKind::Binary),
            StoreAs::DicomLabelmap => ResultKind::Segmentation(SegmentationKind::LabelMap),
            StoreAs::Rtstruct => ResultKind::Structures,
            StoreAs::None => return None,
        };
        Some(StoreResults {
            kind,
            approved_only: self.store_when == StoreWhen::Approved,
        })
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once('=')
        .ok_or("this has to be an attribute with its value, as Modality=CT")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}
