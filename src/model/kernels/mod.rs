#![allow(unsafe_code)] // vector instructions and uninitialised buffers, each with its reason
//! The operations that PCT-Net spends its time in, behind one trait.
//!
//! [`Kernels`] extends burn's `Backend`. Its default methods are written with burn's own operations
//! ([`plain`]), so that every backend works; a backend overrides what it does better. The CPU (flex)
//! overrides nearly all of it with [`cpu`]; `Autodiff` adds the backward passes ([`autodiff`]).
//!
//! Feature maps are `[batch, channels, depth, height, width]`, float32.

mod autodiff;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod flex;
#[cfg(any(feature = "cuda", feature = "vulkan", feature = "cuda-sources"))]
mod gpu;
mod inference;
mod operations;
pub mod pages;
mod patches;
pub mod plain;
#[cfg(test)]
mod tests;
#[cfg(feature = "vulkan")]
pub mod vulkan;
pub mod windows;

#[cfg(all(test, any(feature = "cuda", feature = "vulkan")))]
pub(crate) use gpu::{
    Format, emulation,
    tests::{CLOSE, Gpu, gpu_found},
};
pub use inference::{AttentionLayer, ConvLayer, ReadyAttention, ReadyConv};
#[cfg(any(feature = "cuda", feature = "vulkan", feature = "cuda-sources"))]
pub(crate) use inference::{PlainAttention, PlainConv};
pub use operations::{
    AdamStep, AttentionLayout, Keep, Kernels, MASKED, NO_ROW, NormConvGrads, NormPreluGrads,
    RowIndex, VoxelLabels,
};
pub(crate) use operations::{DICE_SMOOTHING, NORM_EPSILON, raw, wrap};
pub use patches::{Bend, Cut, FusionJob, PatchJob, PatchMaker, Tap, ValueChanges};
pub use windows::{DeviceMemory, WindowBlend, WindowJob};
