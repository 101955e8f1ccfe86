//! Layers of inference with weights packed, indices on the device, and everything around a product inside its kernel.

use burn::tensor::DType;
use burn_cubecl::{
    BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement, kernel::cast,
    kernel::into_contiguous, tensor::CubeTensor,
};

use super::attention::IndexedAttention;
use super::conv3d::{Activation, Finish, PackedLayer, fits};
use super::layout::full;
use super::tiles::multiplier;
use crate::model::kernels::{
    AttentionLayer, ConvLayer, PlainAttention, PlainConv, ReadyAttention, ReadyConv,
};

type Backend<R, F, I, BT> = CubeBackend<R, F, I, BT>;

struct TiledConv<R: CubeRuntime>(PackedLayer<R>);

impl<R: CubeRuntime, F: FloatElement, I: IntElement, BT: BoolElement>
    ReadyConv<Backend<R, F, I, BT>> for TiledConv<R>
{
    fn run(&self, sources: Vec<CubeTensor<R>>, added: Option<CubeTensor<R>>) -> CubeTensor<R> {
        self.0.run(sources, added)
    }
}

/// See [`Kernels::ready_conv`]: on tensor units where the layer is for them.
pub fn ready_conv<R: CubeRuntime, F: FloatElement, I: IntElement, BT: BoolElement>(
    layer: ConvLayer<Backend<R, F, I, BT>>,
    sources: &[usize],
    dtype: DType,
) -> Box<dyn ReadyConv<Backend<R, F, I, BT>>> {
    let like = cast(layer.bias.clone(), dtype);
    match multiplier(&like) {
        Some(by) if sources.len() <= 2 && sources.iter().all(|&channels| fits(channels)) => {
            let finish = match (layer.gelu, layer.spread) {
                (_, Some(block)) => Finish::Spread(block),
                (true, None) => Finish::Gelu,
                (false, None) => Finish::Store,
            };
            let activation = layer.activation.map(|[scale, shift, slope]| Activation {
                scale: full(scale),
                shift: full(shift),
                slope: full(slope),
            });
            Box::new(TiledConv(PackedLayer::new(
                layer.weight,
                layer.bias,
                activation,
                finish,
                dtype,
                by,
            )))
        }
        _ => Box::new(PlainConv(layer)),
    }
}

struct TiledAttention<R: CubeRuntime>(IndexedAttention<R>);

impl<R: CubeRuntime, F: FloatElement, I: IntElement, BT: BoolElement>
    ReadyAttention<Backend<R, F, I, BT>> for TiledAttention<R>
{
    fn run(&self, qkv: CubeTensor<R>) -> CubeTensor<R> {
        self.0.run(qkv)
    }
}

/// See [`Kernels::ready_attention`]: on tensor units where the heads are for them.
pub fn ready_attention<R: CubeRuntime, F: FloatElement, I: IntElement, BT: BoolElement>(
    mut layer: AttentionLayer<Backend<R, F, I, BT>>,
    dtype: DType,
) -> Box<dyn ReadyAttention<Backend<R, F, I, BT>>> {
    layer.bias = into_contiguous(full(layer.bias));
    let tiled = IndexedAttention::new(
        layer.bias.clone(),
        &layer.layout,
        &layer.index,
        layer.outside.clone(),
        layer.tokens,
        dtype,
    );
    match tiled {
        Some(tiled) => Box::new(TiledAttention(tiled)),
        None => Box::new(PlainAttention::new(layer, dtype)),
    }
}
