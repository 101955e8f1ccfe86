//! What a device could do at most, measured: the two numbers of the roofline.

use std::time::Instant;

use burn::tensor::{DType, Tensor, backend::Backend};

use crate::model::engine::{DeviceChoice, Engine, on_engine};
use crate::model::error::ModelError;
use crate::model::kernels::{Kernels, cpu::machine};
use crate::model::precision::Precision;

/// A measurement goes on for so long; the best repetition counts.
const PATIENCE_S: f64 = 0.4;
/// A repetition shorter than this measures the start of a kernel.
const SHORTEST_S: f64 = 0.01;
/// Largest side of a matrix, largest number of floats that are copied.
const MOST: (usize, usize) = (8192, 256 << 20);

/// A device's two limits.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// Multiplications and additions per second: of the inner kernel on a CPU, of a large matrix product on a GPU.
    pub operations_per_s: f64,
    /// Bytes per second of copying memory that is far larger than the caches; reading and writing both count.
    pub bytes_per_s: f64,
}

impl Machine {
    /// The least seconds for so many operations on so many bytes.
    pub fn bound_s(&self, operations: f64, bytes: f64) -> f64 {
        (operations / self.operations_per_s).max(bytes / self.bytes_per_s)
    }
}

/// Measures a device.
///
/// # Errors
/// The device is not there, or fails.
pub fn measure_machine(device: DeviceChoice, precision: Precision) -> Result<Machine, ModelError> {
    let engine = Engine::open(device)?;
    if engine == Engine::Cpu {
        let bf16 = precision == Precision::Bf16;
        return Ok(Machine {
            operations_per_s: machine::peak_operations_per_s(bf16).unwrap_or(f64::INFINITY),
            bytes_per_s: machine::bandwidth_bytes_per_s(),
        });
    }
    engine.guarded(|| {
        on_engine!(engine, |B, device| Ok(Machine {
            operations_per_s: matrix_product::<B>(precision.dtype(), &device),
            bytes_per_s: copy::<B>(&device),
        }))
    })
}

fn matrix_product<B: Kernels>(dtype: DType, device: &B::Device) -> f64 {
    let mut side = 512;
    loop {
        let matrix = Tensor::<B, 2>::ones([side, side], device).cast(dtype);
        let seconds = best::<B>(device, || drop(matrix.clone().matmul(matrix.clone())));
        if seconds > SHORTEST_S || side >= MOST.0 {
            return 2.0 * (side as f64).powi(3) / seconds;
        }
        side *= 2;
    }
}

fn copy<B: Kernels>(device: &B::Device) -> f64 {
    let mut len = 16 << 20;
    loop {
        let values = Tensor::<B, 1>::ones([len], device);
        let seconds = best::<B>(device, || drop(values.clone() + 1.0));
        if seconds > SHORTEST_S || len >= MOST.1 {
            return (8 * len) as f64 / seconds;
        }
        len *= 2;
    }
}

/// The least seconds of `work`, after two that do not count: the fastest kernel is looked for in the first.
fn best<B: Backend>(device: &B::Device, mut work: impl FnMut()) -> f64 {
    let mut timed = || {
        let start = Instant::now();
        work();
        // A failure shows in what is read next.
        drop(B::sync(device));
        start.elapsed().as_secs_f64()
    };
    timed();
    timed();
    let (started, mut best) = (Instant::now(), f64::INFINITY);
    while best.is_infinite() || started.elapsed().as_secs_f64() < PATIENCE_S {
        best = timed().min(best);
    }
    best
}
