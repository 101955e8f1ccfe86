//! [`Kernels`](super::Kernels) on GPUs, as CubeCL kernels: one source for NVIDIA (CUDA) and for Vulkan.
//!
//! Feature maps are stored channels last; seen from outside they are `[batch, channels, d, h, w]` with permuted strides, so
//! that nothing is copied between these kernels. The type of the network's input is the precision of the whole pass:
//! activations have it, and tensor units multiply in it ([`tiles`]; TF32 for float32). Sums, parameters, statistics, softmax
//! and gradients of parameters are float32 always.
//!
//! | file | what it computes |
//! |---|---|
//! | `tiles` | products of tiles on tensor units, and the same without them |
//! | `conv3d` | convolutions, linear layers, transposed convolutions, and their gradients |
//! | `attention` | attention inside windows and its gradients |
//! | `norm`, `rows`, `blocks`, `loss`, `reduce` | what is bound by memory |
//! | `inference` | layers with their weights packed |
//! | `patches` | patches of training |
//! | `dropout`, `adam` | masks of dropout, the optimiser's step |
//! | `random` | the numbers of the host's streams |
//! | `windows` | windows of a whole scan: cut, blended, labelled |

// A kernel's parameters are its buffers and sizes; the launchers that CubeCL generates repeat them.
#![allow(clippy::too_many_arguments)]

mod adam;
mod attention;
mod blocks;
mod conv3d;
mod dropout;
mod inference;
mod layout;
mod loss;
mod norm;
mod operations;
mod patches;
mod random;
mod reduce;
mod rows;
mod tiles;
mod windows;
#[cfg(all(test, any(feature = "cuda", feature = "vulkan")))]
pub(crate) use tiles::{Format, emulation};
#[cfg(all(test, feature = "cuda-sources"))]
pub(crate) mod sources;
#[cfg(all(test, any(feature = "cuda", feature = "vulkan")))]
pub(crate) mod tests;
