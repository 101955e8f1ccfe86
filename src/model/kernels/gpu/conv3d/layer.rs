//! A convolution that is made ready once.

use burn::tensor::DType;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};

use super::super::layout::{channels_last, empty, feature_map, full};
use super::super::tiles::Multiplier;
use super::{Activation, Finish, Map, pack, tiled};

/// A layer of inference on tensor units.
pub struct PackedLayer<R: CubeRuntime> {
    packed: pack::Packed<R>,
    activation: Option<Activation<R>>,
    finish: Finish,
    by: Multiplier,
}

impl<R: CubeRuntime> PackedLayer<R> {
    /// Packs `weight` `[out, in, kd, kh, kw]` and `bias` `[out]` for maps of `dtype`.
    pub fn new(
        weight: CubeTensor<R>,
        bias: CubeTensor<R>,
        activation: Option<Activation<R>>,
        finish: Finish,
        dtype: DType,
        by: Multiplier,
    ) -> Self {
        Self {
            packed: pack::forward(full(weight), full(bias), dtype),
            activation,
            finish,
            by,
        }
    }

    /// Of one or two maps side by side; `added` has the shape of the result.
    pub fn run(&self, sources: Vec<CubeTensor<R>>, added: Option<CubeTensor<R>>) -> CubeTensor<R> {
        let mut sources = sources.into_iter().map(channels_last);
        let (Some(x), joined) = (sources.next(), sources.next()) else {
            unreachable!("a convolution of nothing");
        };
        let map = Map::of(&x);
        let [bd, bh, bw] = self.finish.block();
        let channels = self.packed.output / (bd * bh * bw);
        let shape = [
            map.batch,
            map.depth * bd,
            map.height * bh,
            map.width * bw,
            channels,
        ];
        let out = empty(&x, shape, x.dtype);
        let around = tiled::Around {
            joined,
            activation: self.activation.clone(),
            finish: if added.is_some() {
                Finish::Add
            } else {
                self.finish
            },
            added: added.map(channels_last),
        };
        tiled::launch(x, around, &self.packed, out.clone(), map, self.by);
        feature_map(out)
    }
}
