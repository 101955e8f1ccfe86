//! Attention of inference on tensor units.

use burn::tensor::DType;
use burn_cubecl::{
    CubeRuntime,
    kernel::{cast, into_contiguous},
    tensor::CubeTensor,
};
use cubecl::prelude::*;

use super::super::layout::{cubes, empty, full, sides, upload};
use super::regions_of;
use super::tiled::{Tiles, tiled_attention_kernel};
use crate::model::kernels::{AttentionLayout, RowIndex};

/// Attention of inference: windows are read from the map and written back to it, and everything but queries, keys and values
/// lies ready on the device.
pub struct IndexedAttention<R: CubeRuntime> {
    bias: CubeTensor<R>,
    regions: CubeTensor<R>,
    /// Windows per sample that have regions of their own.
    per_sample: usize,
    rows: CubeTensor<R>,
    /// Windows of a map.
    windows: usize,
    outside: CubeTensor<R>,
    tiles: Tiles,
}

impl<R: CubeRuntime> IndexedAttention<R> {
    /// Makes it ready where tensor units are for it. `bias` is `[heads, query, key]`, contiguous, `outside` what tokens
    /// beyond the map have, `[3 * channels]`.
    pub fn new(
        bias: CubeTensor<R>,
        layout: &AttentionLayout,
        index: &RowIndex,
        outside: CubeTensor<R>,
        tokens: usize,
        dtype: DType,
    ) -> Option<Self> {
        let outside = full(outside);
        let [width] = sides(&outside);
        let like = cast(outside.clone(), dtype);
        let tiles = Tiles::new(&like, layout, tokens, width / 3 / layout.heads, 1)?;
        let regions = regions_of(layout);
        Some(Self {
            per_sample: (regions.len() / tokens).max(1),
            regions: upload(&bias, &regions),
            rows: upload(&bias, &index.from),
            windows: index.from.len() / tokens,
            bias,
            outside,
            tiles,
        })
    }

    /// `[batch, tokens of the map, 3 * channels]` to `[batch, tokens of the map, channels]`.
    pub fn run(&self, qkv: CubeTensor<R>) -> CubeTensor<R> {
        let qkv = into_contiguous(qkv);
        let [batch, map_tokens, width] = sides(&qkv);
        let out = empty(&qkv, [batch, map_tokens, width / 3], qkv.dtype);
        let log_sums = empty(&qkv, [1], DType::F32);
        let dim = CubeDim::new_1d(self.tiles.units() as u32);
        let count = self.tiles.cubes(batch * self.windows);
        let types = [qkv.dtype.into(), self.tiles.by.storage()];
        // SAFETY: as in `forward`; rows of the index lie in the map.
        unsafe {
            tiled_attention_kernel::launch_unchecked(
                &out.client,
                cubes(&out, count, dim),
                dim,
                self.tiles.vector,
                qkv.into_tensor_arg(),
                self.bias.clone().into_tensor_arg(),
                self.regions.clone().into_tensor_arg(),
                self.rows.clone().into_tensor_arg(),
                self.outside.clone().into_tensor_arg(),
                out.clone().into_tensor_arg(),
                log_sums.into_tensor_arg(),
                count,
                self.per_sample,
                self.windows,
                map_tokens,
                (self.tiles.dim as f32).powf(-0.5),
                self.tiles,
                false,
                true,
                types,
            );
        }
        out
    }
}
