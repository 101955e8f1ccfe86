//! [`Kernels`](super::Kernels) on GPUs, as CubeCL kernels: one source for NVIDIA (CUDA) and for Vulkan.
//!
//! Feature maps are stored channels last; seen from outside they are `[batch, channels, d, h, w]` with permuted strides, so
//! that nothing is copied between these kernels. They compute in float32 whatever the type of the activations they are
//! given: the type of the network's input is the precision of the whole pass. Parameters, statistics, softmax and
//! gradients of parameters stay float32.

// A kernel's parameters are its buffers and sizes; the launchers that CubeCL generates repeat them.
#![allow(clippy::too_many_arguments)]

mod attention;
mod blocks;
mod conv3d;
mod layout;
mod loss;
mod norm;
mod operations;
mod reduce;
mod rows;
#[cfg(all(test, feature = "cuda-sources"))]
pub(crate) mod sources;
#[cfg(all(test, any(feature = "cuda", feature = "vulkan")))]
pub(crate) mod tests;
mod windows;
