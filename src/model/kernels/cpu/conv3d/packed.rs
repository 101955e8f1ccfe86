//! Weights in the order in which the inner kernel reads them.

#[cfg(target_arch = "x86_64")]
use super::super::amx::Tiles;
use super::super::micro::Kernel;
use super::super::simd::{Isa, Output};
use super::Conv3dShape;
use super::load::pack_pairs;
use super::winograd::Winograd;

/// Weights ready for [`super::conv3d_forward`]. Worth keeping between calls where the weights do not change (inference).
pub struct PackedWeights {
    /// `[block of rows][in channel][tap][row]`, `[block of rows][component][in channel][tap x][row]` for Winograd's method, or
    /// `[block of rows][group of slots][tap][row][slot]` for matrix units; zero where a block or group goes past the last channel.
    data: Vec<f32>,
    pub(super) method: Method,
    /// Whether a float holds the bfloat16 of two channels, the first one in its lower half; an odd last channel has a zero beside it.
    pub(super) pairs: bool,
    pub(super) micro: Kernel,
    pub(super) isa: Isa,
    pub(super) out_channels: usize,
    pub(super) in_channels: usize,
    pub(super) kernel: [usize; 3],
}

/// How the products are made.
#[derive(Clone, Copy)]
pub enum Method {
    /// One by one.
    Direct,
    /// Fewer, of transformed factors.
    Winograd(Winograd),
    /// On matrix units; the factors are pairs.
    #[cfg(target_arch = "x86_64")]
    Tiles(Tiles),
}

/// Below so many output voxels the transform of the weights, or reading the longer result, costs more than the saved products.
const WINOGRAD_VOXELS: usize = 256;
const WINOGRAD_CHANNELS: usize = 8;
/// Pairs of channels per voxel above which the memory of kept weights counts more than the saved products.
const WEIGHTS_PER_VOXEL: usize = 12;
/// The same for bfloat16, which takes half of it.
const PAIRS_PER_VOXEL: usize = 64;
/// Fewer channels than this (the image itself) stay float32: little is to gain, and their rounding is in all that follows.
const BF16_CHANNELS: usize = 8;

impl PackedWeights {
    /// From weights `[out, in, kz, ky, kx]`, for the forward convolution of `shape`.
    pub fn forward(weights: &[f32], shape: Conv3dShape) -> Self {
        Self::forward_on(Isa::best(), pays(shape, WINOGRAD_VOXELS), weights, shape)
    }

    /// As [`Self::forward`], for weights that are kept between calls: transformed weights are longer, so where many of them serve few voxels
    /// they stay as they are.
    pub fn to_keep(weights: &[f32], shape: Conv3dShape) -> Self {
        let fast = pays_to_keep(shape, WEIGHTS_PER_VOXEL);
        Self::forward_on(Isa::best(), fast, weights, shape)
    }

    /// As [`Self::to_keep`], in bfloat16: weights and input are rounded, products are summed in float32. Where the processor has no such products, or
    /// where they would not pay, the result is that of `to_keep`.
    pub fn to_keep_bf16(weights: &[f32], shape: Conv3dShape) -> Self {
        let isa = Isa::best();
        if shape.in_channels < BF16_CHANNELS || !isa.has_bf16() {
            return Self::to_keep(weights, shape);
        }
        #[cfg(target_arch = "x86_64")]
        if let Some(packed) = Self::tiles(weights, shape) {
            return packed;
        }
        Self::pairs_on(isa, pays_to_keep(shape, PAIRS_PER_VOXEL), weights, shape)
    }

    /// For matrix units, in bfloat16; none where there are none.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn tiles(weights: &[f32], shape: Conv3dShape) -> Option<Self> {
        assert_eq!(
            weights.len(),
            shape.weights(),
            "conv3d: length of the weights"
        );
        let (inputs, taps) = (shape.in_channels, shape.taps());
        let slots = slots(inputs, true).max(1);
        let tiles = Tiles::new(shape.out_channels.max(1), slots)?;
        let isa = Isa::best();
        let (rows, depth) = (tiles.block_rows(), tiles.depth);
        let groups = slots.div_ceil(depth);
        let step = rows * depth;
        let block_len = groups * taps * step;
        let write = |block: usize, data: &mut [f32]| {
            data.fill(0.0);
            let (mut first, mut second) = (vec![0.0; taps], vec![0.0; taps]);
            for row in 0..rows.min(shape.out_channels - block * rows) {
                let of = |input: usize| {
                    &weights[((block * rows + row) * inputs + input) * taps..][..taps]
                };
                for slot in 0..inputs.div_ceil(2) {
                    first.copy_from_slice(of(2 * slot));
                    if 2 * slot + 1 < inputs {
                        second.copy_from_slice(of(2 * slot + 1));
                    } else {
                        second.fill(0.0);
                    }
                    pack_pairs(isa, &first, &mut second);
                    let at = slot / depth * taps * step + tiles.place(row, slot % depth);
                    for (tap, &pair) in second.iter().enumerate() {
                        data[at + tap * step] = pair;
                    }
                }
            }
        };
        let blocks = shape.out_channels.div_ceil(rows);
        // SAFETY: `write` writes its whole part.
        let data = unsafe { Output::in_chunks(blocks * block_len, block_len, write) };
        Some(Self {
            data,
            method: Method::Tiles(tiles),
            pairs: true,
            micro: Kernel::for_rows(isa, shape.out_channels),
            isa,
            out_channels: shape.out_channels,
            in_channels: inputs,
            kernel: shape.kernel,
        })
    }

    pub(super) fn pairs_on(isa: Isa, fast: bool, weights: &[f32], shape: Conv3dShape) -> Self {
        let number = if isa.has_bf16() {
            Number::Pairs
        } else {
            Number::Float
        };
        Self::forward_as(isa, number, fast, weights, shape)
    }

    /// From the same weights `[out, in, kz, ky, kx]`, for the gradient of the input: `shape` is that of the forward convolution.
    pub fn backward_data(weights: &[f32], shape: Conv3dShape) -> Self {
        Self::backward_data_on(Isa::best(), pays(shape, WINOGRAD_VOXELS), weights, shape)
    }

    pub(super) fn forward_on(isa: Isa, fast: bool, weights: &[f32], shape: Conv3dShape) -> Self {
        Self::forward_as(isa, Number::Float, fast, weights, shape)
    }

    fn forward_as(
        isa: Isa,
        number: Number,
        fast: bool,
        weights: &[f32],
        shape: Conv3dShape,
    ) -> Self {
        assert_eq!(
            weights.len(),
            shape.weights(),
            "conv3d: length of the weights"
        );
        let (inputs, taps) = (shape.in_channels, shape.taps());
        let channels = [shape.out_channels, shape.in_channels];
        Self::pack(
            isa,
            number,
            fast,
            channels,
            shape.kernel,
            false,
            |out, input| &weights[(out * inputs + input) * taps..][..taps],
        )
    }

    pub(super) fn backward_data_on(
        isa: Isa,
        fast: bool,
        weights: &[f32],
        shape: Conv3dShape,
    ) -> Self {
        assert_eq!(
            weights.len(),
            shape.weights(),
            "conv3d: length of the weights"
        );
        let (inputs, taps) = (shape.in_channels, shape.taps());
        let channels = [shape.in_channels, shape.out_channels];
        Self::pack(
            isa,
            Number::Float,
            fast,
            channels,
            shape.kernel,
            true,
            |out, input| &weights[(input * inputs + out) * taps..][..taps],
        )
    }

    /// `fast`: by Winograd's method where the kernel allows it. `flip`: with the taps in reverse order. `pair(out, in)`: the taps of two channels.
    #[allow(clippy::too_many_arguments)] // all that may differ between the two directions and numbers
    fn pack<'a>(
        isa: Isa,
        number: Number,
        fast: bool,
        [out_channels, in_channels]: [usize; 2],
        kernel: [usize; 3],
        flip: bool,
        pair: impl Fn(usize, usize) -> &'a [f32] + Sync,
    ) -> Self {
        let (micro, pairs) = match number {
            Number::Pairs => Kernel::for_pairs(isa, out_channels).map(|micro| (micro, true)),
            Number::Float => None,
        }
        .unwrap_or_else(|| (Kernel::for_rows(isa, out_channels), false));
        let winograd = if pairs {
            Winograd::for_pairs(isa, kernel)
        } else {
            Winograd::for_kernel(isa, kernel)
        }
        .filter(|_| fast);
        let (rows, taps) = (micro.rows, kernel.iter().product::<usize>());
        let components = winograd.map_or(1, |w| w.components());
        // What a channel has in each component.
        let part = rows * if winograd.is_some() { kernel[2] } else { taps };
        let slots = slots(in_channels, pairs);
        let block_len = components * slots * part;
        let write = |block: usize, data: &mut [f32]| {
            let mut plain = vec![0.0; taps * rows];
            let mut middle = Vec::new();
            let mut transformed = vec![0.0; components * part];
            let mut first = vec![0.0; components * part];
            for input in 0..in_channels {
                for row in 0..rows.min(out_channels - block * rows) {
                    let (pair, to) = (
                        pair(block * rows + row, input),
                        plain[row..].iter_mut().step_by(rows),
                    );
                    if flip {
                        to.zip(pair.iter().rev()).for_each(|(to, &from)| *to = from);
                    } else {
                        to.zip(pair).for_each(|(to, &from)| *to = from);
                    }
                }
                let from = match winograd {
                    None => &mut plain,
                    Some(winograd) => {
                        winograd.transform_weights(isa, &plain, &mut middle, &mut transformed);
                        &mut transformed
                    }
                };
                let slot = if !pairs {
                    input
                } else if input % 2 == 0 && input + 1 < in_channels {
                    first.copy_from_slice(from);
                    continue;
                } else {
                    if input % 2 == 0 {
                        first.copy_from_slice(from);
                        from.fill(0.0);
                    }
                    pack_pairs(isa, &first, from);
                    input / 2
                };
                for (component, from) in from.chunks_exact(part).enumerate() {
                    data[(component * slots + slot) * part..][..part].copy_from_slice(from);
                }
                if pairs {
                    // The rows beyond the last channel stay zero; they were overwritten with pairs of zeros, which is the same.
                    from.fill(0.0);
                }
            }
        };
        // SAFETY: `write` writes every channel of every component of its block.
        let data =
            unsafe { Output::in_chunks(out_channels.div_ceil(rows) * block_len, block_len, write) };
        Self {
            data,
            method: winograd.map_or(Method::Direct, Method::Winograd),
            pairs,
            micro,
            isa,
            out_channels,
            in_channels,
            kernel,
        }
    }

    /// How they are multiplied, for people.
    pub fn method(&self) -> &'static str {
        match (self.method, self.pairs) {
            (Method::Winograd(_), false) => "Winograd",
            (Method::Winograd(_), true) => "Winograd bf16",
            (Method::Direct, false) => "direct",
            (Method::Direct, true) => "direct bf16",
            #[cfg(target_arch = "x86_64")]
            (Method::Tiles(_), _) => "matrix units bf16",
        }
    }

    /// Whether the products are of bfloat16.
    pub fn is_bf16(&self) -> bool {
        self.pairs
    }

    /// Their length in memory.
    pub fn floats(&self) -> usize {
        self.data.len()
    }

    /// Floats that hold one voxel of all input channels.
    pub(super) fn slots(&self) -> usize {
        slots(self.in_channels, self.pairs)
    }

    /// Rows of a block.
    pub(super) fn block_rows(&self) -> usize {
        match self.method {
            Method::Direct | Method::Winograd(_) => self.micro.rows,
            #[cfg(target_arch = "x86_64")]
            Method::Tiles(tiles) => tiles.block_rows(),
        }
    }

    /// Number of blocks of rows.
    pub(super) fn blocks(&self) -> usize {
        self.out_channels.div_ceil(self.block_rows())
    }

    /// The weights of a block of rows (and a component, 0 but for Winograd's method) from a slot of the input channels on (for matrix units, the
    /// first of a group): `[slot][tap][row]`.
    pub(super) fn block(&self, block: usize, component: usize, from_slot: usize) -> &[f32] {
        let taps = self.kernel.iter().product();
        let (components, steps, slots) = match self.method {
            Method::Direct => (1, taps, self.slots()),
            Method::Winograd(winograd) => (winograd.components(), self.kernel[2], self.slots()),
            #[cfg(target_arch = "x86_64")]
            Method::Tiles(tiles) => (1, taps, self.slots().next_multiple_of(tiles.depth)),
        };
        let per_slot = steps * self.block_rows();
        let matrix = block * components + component;
        &self.data[(matrix * slots + from_slot) * per_slot..(matrix + 1) * slots * per_slot]
    }
}

/// What the inner kernel multiplies.
#[derive(Clone, Copy)]
enum Number {
    Float,
    /// Two bfloat16 in the place of a float.
    Pairs,
}

fn slots(channels: usize, pairs: bool) -> usize {
    if pairs {
        channels.div_ceil(2)
    } else {
        channels
    }
}

/// Whether Winograd's method is worth its transforms.
pub(super) fn pays(shape: Conv3dShape, from_voxels: usize) -> bool {
    #[cfg(test)]
    if crate::model::kernels::cpu::chosen::plain() {
        return false;
    }
    shape.batch * shape.voxels() >= from_voxels
        && shape.in_channels.min(shape.out_channels) >= WINOGRAD_CHANNELS
}

/// The same for weights that are kept.
fn pays_to_keep(shape: Conv3dShape, most: usize) -> bool {
    let many = shape.in_channels * shape.out_channels > most * shape.voxels();
    pays(shape, WINOGRAD_VOXELS) && !many
}
