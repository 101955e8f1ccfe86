//! Convolution with kernel sides 1 or 3, channels last, as an implicit matrix product: `[voxels, taps * in]` (never
//! stored) times `[taps * in, out]`. Normalisation and PReLU happen while the left tile is loaded; bias, GELU or a residual
//! when the sums are stored. Fully connected layers and transposed convolutions are its case of one tap.
//!
//! # By two numbers
//! On an H100 (67 TFLOP/s float32, 495 TF32, 990 bf16, 3.35 TB/s), at 64x128x128 voxels of input:
//!
//! | layer | operations, memory bf16 | float32 units | TF32 | bf16 | memory TF32, bf16 |
//! |---|---|---|---|---|---|
//! | 24 to 24, 1x3x3, 2^20 voxels | 10.9 GFLOP, 101 MB | 0.16 ms | 0.02 ms | 0.01 ms | 0.06, 0.03 ms |
//! | 48 to 24, 1x3x3, 2^20 voxels | 21.7 GFLOP, 151 MB | 0.32 ms | 0.04 ms | 0.02 ms | 0.09, 0.05 ms |
//! | 48 to 48, 3x3x3, 2^18 voxels | 32.6 GFLOP, 50 MB | 0.49 ms | 0.07 ms | 0.03 ms | 0.03, 0.02 ms |
//! | 128 to 128, 3x3x3, 2^15 voxels | 29 GFLOP, 18 MB | 0.43 ms | 0.06 ms | 0.03 ms | 0.01, 0.01 ms |
//! | linear 128 to 512, 2^15 rows | 4.3 GFLOP, 42 MB | 0.06 ms | 0.01 ms | 0.00 ms | 0.03, 0.01 ms |
//!
//! So float32 on the ordinary units is bound by arithmetic everywhere, and tensor units make the fine levels and the linear
//! layers memory-bound, where only fusion helps: hence own kernels with a fused load and store. A library's implicit product
//! would need the activated map written and read again, which at 24 channels costs as much as the convolution.
//!
//! The gradient by data is the same product with the packed weight of [`pack::backward`]; the gradient by weights has the
//! same operations over twice the memory (map and gradient read, nothing written but the weights).
//!
//! # Kernels
//! [`tiled`] and [`tiled_weight`] multiply on tensor units where the device has them for the type of the map
//! ([`multiplier`]) and the channels are multiples of eight. Otherwise [`product`] and [`weight`] multiply in float32 on the
//! ordinary units, and [`direct`] takes few or odd numbers of channels: these three are the reference.

mod direct;
mod layer;
mod pack;
mod product;
mod tiled;
mod tiled_weight;
mod weight;

use burn::tensor::DType;
use burn_cubecl::{CubeRuntime, kernel::into_contiguous, tensor::CubeTensor};

use super::layout::{channels_last, empty, feature_map, full, sides};
use super::tiles::multiplier;
pub use layer::PackedLayer;
pub use tiled::{Finish, fits};
pub use weight::weight_grad;

/// What is done to each value of the input as it is read: `prelu(x * scale + shift)`.
#[derive(Clone)]
pub struct Activation<R: CubeRuntime> {
    pub scale: CubeTensor<R>,
    pub shift: CubeTensor<R>,
    pub slope: CubeTensor<R>,
}

impl<R: CubeRuntime> Activation<R> {
    fn full(self) -> Self {
        Self {
            scale: full(self.scale),
            shift: full(self.shift),
            slope: full(self.slope),
        }
    }

    /// Something to bind where nothing is read.
    fn none(like: &CubeTensor<R>) -> Self {
        let nothing = empty(like, [8], DType::F32);
        Self {
            scale: nothing.clone(),
            shift: nothing.clone(),
            slope: nothing,
        }
    }
}

/// Sides of a convolution's map.
#[derive(Clone, Copy)]
struct Map {
    batch: usize,
    depth: usize,
    height: usize,
    width: usize,
}

impl Map {
    /// Of a tensor `[batch, depth, height, width, channels]`.
    fn of<R: CubeRuntime>(x: &CubeTensor<R>) -> Self {
        let [batch, depth, height, width, _] = sides(x);
        Self {
            batch,
            depth,
            height,
            width,
        }
    }

    fn voxels(&self) -> usize {
        self.batch * self.depth * self.height * self.width
    }
}

/// A packed weight's product with a map `[batch, d, h, w, in]`: both convolution and its gradient for the input.
fn convolve<R: CubeRuntime>(
    x: CubeTensor<R>,
    activation: Option<Activation<R>>,
    packed: &pack::Packed<R>,
) -> CubeTensor<R> {
    let [batch, depth, height, width, input] = sides(&x);
    let map = Map::of(&x);
    let out = empty(&x, [batch, depth, height, width, packed.output], x.dtype);
    match multiplier(&x) {
        Some(by) if tiled::fits(input) => {
            let around = tiled::Around {
                joined: None,
                activation,
                finish: Finish::Store,
                added: None,
            };
            tiled::launch(x, around, packed, out.clone(), map, by);
        }
        _ => {
            let activated = activation.is_some();
            let activation = activation.map_or_else(|| Activation::none(&x), Activation::full);
            if product::fits(input) {
                product::launch(x, activation, activated, packed, out.clone(), map);
            } else {
                direct::launch(x, activation, activated, packed, out.clone(), map);
            }
        }
    }
    out
}

/// `[batch, in, d, h, w]` by `[out, in, kd, kh, kw]`.
pub fn forward<R: CubeRuntime>(
    x: CubeTensor<R>,
    activation: Option<Activation<R>>,
    weight: CubeTensor<R>,
    bias: CubeTensor<R>,
) -> CubeTensor<R> {
    let packed = pack::forward(full(weight), full(bias), x.dtype);
    feature_map(convolve(channels_last(x), activation, &packed))
}

/// Gradient for the input: the convolution of the gradient with the weight flipped and its channels exchanged.
pub fn input_grad<R: CubeRuntime>(weight: CubeTensor<R>, grad: CubeTensor<R>) -> CubeTensor<R> {
    let packed = pack::backward(into_contiguous(full(weight)), grad.dtype);
    feature_map(convolve(channels_last(grad), None, &packed))
}
