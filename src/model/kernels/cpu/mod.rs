//! Kernels for the CPU on contiguous `f32` slices, independent of any tensor library.
//!
//! Volumes are `[batch, channel, depth, height, width]` (NCDHW, width fastest). All kernels run on rayon's current pool, and give the same bits
//! for any number of threads: sums over space are cut at places that depend on the shape alone. The instruction set is found at run time
//! ([`Isa::best`]), so one binary serves all machines; results may differ in the last bits between instruction sets.
//!
//! Slices whose length contradicts the stated shape are a programming error of the caller and panic with the two lengths.

pub mod adam;
#[cfg(target_arch = "x86_64")]
mod amx;
pub mod batch_norm;
pub mod conv3d;
pub mod dice_cross_entropy;
pub mod gelu;
pub mod layer_norm;
pub mod machine;
mod math;
mod micro;
pub mod pool;
pub mod product;
mod simd;
pub mod softmax;
#[cfg(test)]
mod testing;
pub mod tokens;
pub mod upsample;
pub mod window_attention;

#[cfg(test)]
pub(crate) use simd::chosen;
pub use simd::{Isa, zeroed};
