//! [`Kernels`] on GPUs, as CubeCL kernels: one source for NVIDIA (CUDA) and for Vulkan.

use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};

use super::Kernels;

impl<R: CubeRuntime, F: FloatElement, I: IntElement, BT: BoolElement> Kernels
    for CubeBackend<R, F, I, BT>
{
}
