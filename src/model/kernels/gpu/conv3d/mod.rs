//! Convolution with kernel sides 1 or 3, channels last, as an implicit matrix product: `[voxels, taps * in]` (never
//! stored) times `[taps * in, out]`. Normalisation and PReLU happen while the left tile is loaded, the bias is the
//! product's first value.
//!
//! # By two numbers
//! The largest layer, 24 to 24 channels 1x3x3 at 64x128x128 (1,048,576 voxels): 10.9 GFLOP over 201 MB in float32, 101 MB
//! in bf16. On an H200 (67 TFLOP/s float32, 495 TF32, 990 bf16, 4.8 TB/s): float32 arithmetic 0.16 ms against 0.04 ms
//! of memory; bf16 0.01 ms against 0.02 ms. At 128 channels 3x3x3 on 32x32x32: 29 GFLOP over 34 MB: 0.43 ms in float32,
//! 0.03 in bf16. So float32 on the ordinary units is bound by arithmetic everywhere, and tensor cores would make the fine
//! levels memory-bound, where only fusion helps: hence an own kernel with a fused load. A library's implicit product would
//! need the activated map written and read again, which at 24 channels costs as much as the convolution.
//!
//! The kernel `product` multiplies on the ordinary units in float32, whatever the type of the map: half precision saves memory
//! traffic, not arithmetic. Its tiles are laid out for the 16x16x16 products of tensor cores (packed weights come in
//! multiples of 16 columns), which it does not use yet.

mod direct;
mod pack;
mod product;
mod weight;

use burn::tensor::DType;
use burn_cubecl::{CubeRuntime, kernel::into_contiguous, tensor::CubeTensor};

use super::layout::{channels_last, empty, feature_map, full, sides};
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
        let nothing = empty(like, [4], DType::F32);
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
    fn voxels(&self) -> usize {
        self.batch * self.depth * self.height * self.width
    }
}

/// A packed weight's product with a map: both convolution and its gradient for the input.
fn convolve<R: CubeRuntime>(
    x: CubeTensor<R>,
    activation: Option<Activation<R>>,
    packed: pack::Packed<R>,
) -> CubeTensor<R> {
    let x = channels_last(x);
    let [batch, depth, height, width, input] = sides(&x);
    let map = Map {
        batch,
        depth,
        height,
        width,
    };
    let activated = activation.is_some();
    let activation = activation.map_or_else(|| Activation::none(&x), Activation::full);
    let out = empty(&x, [batch, depth, height, width, packed.output], x.dtype);
    if product::fits(input) {
        product::launch(x, activation, activated, packed, out.clone(), map);
    } else {
        direct::launch(x, activation, activated, packed, out.clone(), map);
    }
    feature_map(out)
}

/// `[batch, in, d, h, w]` by `[out, in, kd, kh, kw]`.
pub fn forward<R: CubeRuntime>(
    x: CubeTensor<R>,
    activation: Option<Activation<R>>,
    weight: CubeTensor<R>,
    bias: CubeTensor<R>,
) -> CubeTensor<R> {
    let packed = pack::forward(full(weight), full(bias), x.dtype);
    convolve(x, activation, packed)
}

/// Gradient for the input: the convolution of the gradient with the weight flipped and its channels exchanged.
pub fn input_grad<R: CubeRuntime>(weight: CubeTensor<R>, grad: CubeTensor<R>) -> CubeTensor<R> {
    let packed = pack::backward(into_contiguous(full(weight)), grad.dtype);
    convolve(grad, None, packed)
}
