//! [`Kernels`](super::Kernels) on the CPU: burn's flex tensors in and out of the slices of [`cpu`](super::cpu).

use burn_flex::Flex;

use super::Kernels;

impl Kernels for Flex {}
