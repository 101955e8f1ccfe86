//! How much fits into a device's memory at once.
//!
//! Estimates, not promises: they are for the first try. What does not fit after all fails, and is tried once more with
//! less ([`with_less`]).

#[cfg(any(feature = "cuda", feature = "vulkan"))]
use super::Engine;
use crate::model::error::ModelError;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
use crate::model::kernels::Kernels;
use crate::model::pct_net::PctNetConfig;
use crate::model::precision::Precision;

/// Of the free memory this share is planned with: allocations are rounded up, and others use the device too.
const USABLE: f64 = 0.8;
/// More windows at once do not make a GPU faster.
const MOST_WINDOWS: usize = 8;
/// Maps of the finest level that a forward pass holds at the same time, the coarser levels' included.
const MAPS_FORWARD: u64 = 12;
/// Maps of the finest level that a training step keeps until its backward pass, the coarser levels' included.
const MAPS_STEP: u64 = 64;
/// Weights, gradients and the optimiser's two moments, beside one copy that is being made.
const COPIES_STEP: u64 = 5;

/// What a computation needs in bytes: once, and for every item that is computed at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    pub fixed: u64,
    pub per_item: u64,
}

impl Need {
    /// A pass of windows `[d, h, w]` through the network; `fixed` is what lies beside it.
    pub fn forward(
        config: &PctNetConfig,
        patch: [usize; 3],
        precision: Precision,
        fixed: u64,
    ) -> Self {
        let voxels = patch.iter().product::<usize>() as u64;
        let map = config.feature_chns[0] as u64 * bytes_of(precision);
        let input = config.in_chns as u64 * bytes_of(precision);
        let logits = 2 * 4 * config.class_num as u64;
        Self {
            fixed,
            per_item: voxels * (input + MAPS_FORWARD * map + logits),
        }
    }

    /// A training step on patches `[d, h, w]` of a network of so many parameters.
    pub fn step(
        config: &PctNetConfig,
        patch: [usize; 3],
        precision: Precision,
        parameters: usize,
    ) -> Self {
        let voxels = patch.iter().product::<usize>() as u64;
        let map = config.feature_chns[0] as u64 * bytes_of(precision);
        let logits = 4 * 4 * config.class_num as u64;
        Self {
            fixed: COPIES_STEP * 4 * parameters as u64,
            per_item: voxels * (MAPS_STEP * map + logits),
        }
    }

    /// How many of `wanted` items fit into `free` bytes; all where that is not known.
    ///
    /// # Errors
    /// Not even one fits: the bytes that are needed.
    pub fn fitting(self, free: Option<u64>, wanted: usize) -> Result<usize, u64> {
        let Some(free) = free else {
            return Ok(wanted);
        };
        let usable = (free as f64 * USABLE) as u64;
        let items = usable.saturating_sub(self.fixed) / self.per_item.max(1);
        match usize::try_from(items).unwrap_or(usize::MAX).min(wanted) {
            0 => Err(((self.fixed + self.per_item) as f64 / USABLE) as u64),
            items => Ok(items),
        }
    }

    /// Windows to send through the network at once; one where the free memory is not known.
    ///
    /// # Errors
    /// Not even one fits.
    pub fn windows(self, free: Option<u64>) -> Result<usize, u64> {
        self.fitting(free, free.map_or(1, |_| MOST_WINDOWS))
    }
}

/// Memory that a computation could have, in bytes: what nobody uses, and what this process holds ready. `None` where the
/// system does not tell.
#[cfg(any(feature = "cuda", feature = "vulkan"))]
pub fn to_be_had<B: Kernels>(engine: Engine, device: &B::Device) -> Option<u64> {
    let held = B::device_memory(device);
    let ready = held.reserved.saturating_sub(held.in_use);
    engine.free_bytes().map(|free| free + ready)
}

fn bytes_of(precision: Precision) -> u64 {
    match precision {
        Precision::F32 => 4,
        Precision::Bf16 | Precision::F16 => 2,
    }
}

/// Does `work` with `items` at once; when that fails, once more with half of them.
///
/// # Errors
/// It failed with one item, or twice: [`ModelError::Compute`] with both reasons. Errors that are no failure of the device
/// come back as they are, at once.
pub fn with_less<T>(
    device: &str,
    items: &mut usize,
    mut work: impl FnMut(usize) -> Result<T, Failure>,
) -> Result<T, ModelError> {
    let first = match work(*items) {
        Err(Failure::Device(reason)) => reason,
        Err(Failure::Other(error)) => return Err(error),
        Ok(done) => return Ok(done),
    };
    let failed = |reason| ModelError::Compute {
        device: device.to_owned(),
        reason,
    };
    if *items <= 1 {
        return Err(failed(first));
    }
    let before = std::mem::replace(items, items.div_ceil(2));
    tracing::warn!("{device} failed with {before} at once ({first}); trying {items}");
    match work(*items) {
        Err(Failure::Device(again)) => Err(failed(format!(
            "{first}; with {items} instead of {before} at once: {again}"
        ))),
        Err(Failure::Other(error)) => Err(error),
        Ok(done) => Ok(done),
    }
}

/// Why a computation ended.
#[derive(Debug)]
pub enum Failure {
    /// The device: its memory, most often.
    Device(String),
    /// Anything else, which less memory does not mend.
    Other(ModelError),
}

impl From<ModelError> for Failure {
    fn from(error: ModelError) -> Self {
        Self::Other(error)
    }
}

/// Memory of this machine that could be had now.
pub fn available_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_planned_fits() {
        let need = Need {
            fixed: 1000,
            per_item: 500,
        };
        assert_eq!(need.fitting(Some(10_000), 4), Ok(4));
        assert_eq!(need.fitting(Some(3_000), 4), Ok(2));
        assert_eq!(need.fitting(Some(1_000), 4), Err(1875));
        assert_eq!((need.fitting(None, 4), need.windows(None)), (Ok(4), Ok(1)));
        assert!(available_bytes().is_none_or(|bytes| bytes > 0));
        let config = PctNetConfig::pct_net(8, [64, 128, 128], 1);
        let of = |precision| Need::forward(&config, [64, 128, 128], precision, 0);
        assert!(of(Precision::Bf16).per_item < of(Precision::F32).per_item);
        assert_eq!(of(Precision::F32).windows(Some(1 << 40)), Ok(MOST_WINDOWS));
        let step = Need::step(&config, [64, 128, 128], Precision::F32, 44_000_000);
        assert!(step.per_item > 4 * of(Precision::F32).per_item);
    }

    #[test]
    fn a_failing_device_is_given_less_once() {
        let mut tried = Vec::new();
        let mut items = 8;
        let done = with_less("gpu", &mut items, |n| {
            tried.push(n);
            if n > 4 {
                return Err(Failure::Device("out of memory".into()));
            }
            Ok(n)
        });
        assert_eq!((done.unwrap(), items), (4, 4));
        assert_eq!(tried, [8, 4]);
        let mut tried = 0;
        let told = with_less::<()>("gpu", &mut 8, |n| {
            tried += 1;
            Err(Failure::Device(format!("no room for {n}")))
        });
        let told = told.unwrap_err().to_string();
        assert_eq!(tried, 2);
        assert!(
            told.contains("no room for 8") && told.contains("no room for 4"),
            "{told}"
        );
        let told = with_less::<()>("gpu", &mut 1, |_| Err(Failure::Device("full".into())));
        assert!(told.unwrap_err().to_string().contains("full"));
        let mut tried = 0;
        let told = with_less::<()>("gpu", &mut 8, |_| {
            tried += 1;
            Err(ModelError::Stopped.into())
        });
        assert!(matches!(told, Err(ModelError::Stopped)));
        assert_eq!(tried, 1);
    }
}
