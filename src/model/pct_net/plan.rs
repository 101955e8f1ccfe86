//! Inference on the CPU as a list of steps in one buffer, made once per network and patch size.
//!
//! The steps come from the network's own description ([`super::net::Walk`]). Normalisation and PReLU are applied while a
//! convolution reads, bias, GELU and residual while it writes; a concatenation is a convolution of two sources; tokens are
//! voxels of a map, so attention moves nothing. Every value has a place in the buffer for as long as a later step reads it.

use std::sync::Arc;

use super::net::PctNet;
use super::record::Recorder;
use crate::model::kernels::cpu::conv3d::{
    Conv3dShape, Epilogue, PackedWeights, Prologue, conv3d_forward_into,
};
use crate::model::kernels::cpu::layer_norm::layer_norm_columns;
use crate::model::kernels::cpu::pool::{PoolShape, max_pool_into};
use crate::model::kernels::cpu::tokens::blocks_to_space_into;
use crate::model::kernels::cpu::window_attention::{
    AttentionBias, AttentionMap, AttentionShape, window_attention_in_map,
};
use crate::model::kernels::cpu::{Isa, zeroed};
use crate::model::kernels::{Kernels, MASKED, NORM_EPSILON};
use crate::model::precision::{Precision, PrecisionChoice};

/// The precision of inference on this machine's CPU for what the user chose. `auto` is f32: bf16 is faster, but the Dice
/// of a single small structure moves by up to 0.002 (tests/bench/RESULTS.md).
///
/// # Errors
/// Why it cannot be used.
pub fn precision(choice: PrecisionChoice) -> Result<Precision, String> {
    let bf16 = Isa::best().has_bf16();
    match choice {
        PrecisionChoice::Auto => Ok(Precision::F32),
        PrecisionChoice::Fixed(Precision::Bf16) if !bf16 => Err(
            "this processor has no bfloat16 products (AVX512-BF16); use --precision f32 or auto"
                .into(),
        ),
        PrecisionChoice::Fixed(Precision::F16) => {
            Err("the CPU does not compute in f16; use --precision f32, bf16 or auto".into())
        }
        PrecisionChoice::Fixed(precision) => Ok(precision),
    }
}

/// Offsets in the buffer are multiples of this many floats, a cache line.
const ALIGN: usize = 16;

/// Something that a step writes, by number.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Value(pub usize);

/// One step.
pub(super) struct Step {
    pub kind: StepKind,
    /// At most [`READS`].
    pub reads: Vec<Value>,
    pub writes: Value,
}

/// The most values that a step reads: two sources and a residual.
const READS: usize = 3;

/// What a step does.
pub(super) enum StepKind {
    Convolution(Box<Convolution>),
    Pool(PoolShape),
    /// Blocks of voxels out of channels.
    BlocksToSpace {
        bias: Vec<f32>,
        kernel: [usize; 3],
        map: [usize; 3],
    },
    /// Of each voxel over its channels.
    LayerNorm {
        gamma: Vec<f32>,
        beta: Vec<f32>,
    },
    Attention(AttentionTerms),
}

/// `gelu?(conv(prelu(norm(sources))) + bias) + residual?`.
pub(super) struct Convolution {
    pub weights: PackedWeights,
    /// Of each source.
    pub channels: Vec<usize>,
    pub bias: Vec<f32>,
    pub activation: Option<Activation>,
    pub gelu: bool,
    /// Whether the last value read is added to the result.
    pub residual: bool,
    pub shape: Conv3dShape,
}

/// Batch normalisation and PReLU.
pub(super) struct Activation {
    pub scale: Vec<f32>,
    pub shift: Vec<f32>,
    pub slope: f32,
}

/// Window attention of queries, keys and values that are channels of one map.
pub(super) struct AttentionTerms {
    pub outside: Vec<f32>,
    pub index: Arc<[u32]>,
    pub bias: Vec<f32>,
    pub regions: Option<Arc<[u8]>>,
    pub shape: AttentionShape,
}

/// A network made ready for patches of one size on the CPU. It holds its own copy of the weights.
pub struct Plan {
    steps: Vec<Step>,
    /// Where each value lies in the buffer: first float, number of floats.
    places: Vec<(usize, usize)>,
    input: Value,
    output: Value,
    buffer: Vec<f32>,
}

impl Plan {
    /// The finest scale of `net` for patches `[depth, height, width]`, which must divide by the network's stride, with
    /// `channels` input channels. With [`Precision::Bf16`] the factors of convolutions and linear layers are rounded to it
    /// where the processor multiplies such numbers ([`precision`] tells); sums and everything else are float32.
    pub fn new<B: Kernels>(
        net: &PctNet<B>,
        channels: usize,
        patch: [usize; 3],
        precision: Precision,
    ) -> Self {
        let mut recorder = Recorder::new(precision == Precision::Bf16);
        let input = recorder.map(channels, patch);
        let output = net.walk_finest(&mut recorder, input).value;
        let Recorder { steps, lens, .. } = recorder;
        let places = place(&steps, &lens, output);
        let end = places.iter().map(|(from, len)| from + len).max();
        Self {
            steps,
            places,
            input: input.value,
            output,
            buffer: zeroed(end.unwrap_or(0)),
        }
    }

    /// Logits `[classes, depth, height, width]` of one patch `[channels, depth, height, width]`; a shorter patch is
    /// completed with what was there before, a longer one cut.
    pub fn run(&mut self, patch: &[f32]) -> &[f32] {
        let (from, len) = self.places[self.input.0];
        let len = len.min(patch.len());
        self.buffer[from..from + len].copy_from_slice(&patch[..len]);
        for step in &self.steps {
            step.run(&self.places, &mut self.buffer);
        }
        let (from, len) = self.places[self.output.0];
        &self.buffer[from..from + len]
    }
}

/// What one step of a plan does, and how long it took.
#[derive(Debug, Clone)]
pub struct StepTime {
    /// The operation with its sizes.
    pub name: String,
    /// Wall clock.
    pub seconds: f64,
    /// Multiplications and additions of the operation by its definition.
    pub operations: f64,
    /// What it reads and writes once, weights included.
    pub bytes: f64,
    /// Whether its factors are bfloat16.
    pub bf16: bool,
}

impl Plan {
    /// What each step is; nothing runs, so none took any time.
    pub fn steps(&self) -> Vec<StepTime> {
        let steps = self.steps.iter();
        steps
            .map(|step| step.described(&self.places, 0.0))
            .collect()
    }

    /// One run on whatever is in the buffer, step by step.
    pub fn time_steps(&mut self) -> Vec<StepTime> {
        let mut times = Vec::with_capacity(self.steps.len());
        for step in &self.steps {
            let start = std::time::Instant::now();
            step.run(&self.places, &mut self.buffer);
            let seconds = start.elapsed().as_secs_f64();
            times.push(step.described(&self.places, seconds));
        }
        times
    }
}

impl Step {
    fn described(&self, places: &[(usize, usize)], seconds: f64) -> StepTime {
        let values = self.reads.iter().chain([&self.writes]);
        let floats: usize = values.map(|value| places[value.0].1).sum();
        let written = places[self.writes.0].1;
        let (name, operations, weights, bf16) = match &self.kind {
            StepKind::Convolution(conv) => conv.described(),
            StepKind::Pool(_) => ("max pool".to_owned(), written, 0, false),
            StepKind::BlocksToSpace { .. } => ("blocks to space".to_owned(), written, 0, false),
            StepKind::LayerNorm { gamma, .. } => (
                format!("layer norm of {}", gamma.len()),
                8 * written,
                0,
                false,
            ),
            StepKind::Attention(terms) => {
                let AttentionShape {
                    windows,
                    heads,
                    tokens,
                    dim,
                } = terms.shape;
                let name = format!("attention, {windows} windows of {tokens}, {heads} x {dim}");
                let pairs = windows * heads * tokens * tokens;
                (name, 4 * pairs * dim, terms.bias.len(), false)
            }
        };
        StepTime {
            name,
            seconds,
            operations: operations as f64,
            bytes: 4.0 * (floats + weights) as f64,
            bf16,
        }
    }

    fn run(&self, places: &[(usize, usize)], buffer: &mut [f32]) {
        let range = |value: Option<&Value>| {
            value.map_or(0..0, |value| {
                let (from, len) = places[value.0];
                from..from + len
            })
        };
        let mut ranges = [const { 0..0 }; 1 + READS];
        ranges[0] = range(Some(&self.writes));
        for (i, to) in ranges[1..].iter_mut().enumerate() {
            *to = range(self.reads.get(i));
        }
        let Ok([to, a, b, c]) = buffer.get_disjoint_mut(ranges) else {
            unreachable!("values that are needed at the same time lie apart");
        };
        let reads: [&[f32]; READS] = [a, b, c];
        match &self.kind {
            StepKind::Convolution(conv) => conv.run(reads, to),
            StepKind::Pool(shape) => max_pool_into(reads[0], *shape, to),
            StepKind::BlocksToSpace { bias, kernel, map } => {
                blocks_to_space_into(reads[0], bias.len(), *kernel, *map, bias, to);
            }
            StepKind::LayerNorm { gamma, beta } => {
                layer_norm_columns(reads[0], gamma, beta, NORM_EPSILON as f32, to);
            }
            StepKind::Attention(terms) => terms.run(reads[0], to),
        }
    }
}

impl Convolution {
    /// Name, operations, floats of the weights, whether they are bfloat16.
    fn described(&self) -> (String, usize, usize, bool) {
        let shape = self.shape;
        let channels: Vec<String> = self.channels.iter().map(usize::to_string).collect();
        let [kz, ky, kx] = shape.kernel;
        let name = format!(
            "{}to {}, {kz}x{ky}x{kx}, {}x{}x{}, {}",
            channels.join("+") + " ",
            shape.out_channels,
            shape.depth,
            shape.height,
            shape.width,
            self.weights.method(),
        );
        let operations = 2 * shape.weights() * shape.voxels();
        let bf16 = self.weights.is_bf16();
        (name, operations, self.weights.floats(), bf16)
    }

    fn run(&self, reads: [&[f32]; READS], to: &mut [f32]) {
        let inputs: Vec<(&[f32], usize)> = reads
            .into_iter()
            .zip(self.channels.iter().copied())
            .collect();
        let prologue = self.activation.as_ref().map(|activation| Prologue {
            scale: &activation.scale,
            shift: &activation.shift,
            slope: activation.slope,
        });
        let epilogue = Epilogue {
            gelu: self.gelu,
            residual: self.residual.then(|| reads[inputs.len()]),
        };
        conv3d_forward_into(
            &inputs,
            &self.weights,
            &self.bias,
            prologue,
            epilogue,
            self.shape,
            to,
        );
    }
}

impl AttentionTerms {
    fn run(&self, qkv: &[f32], to: &mut [f32]) {
        let map = AttentionMap {
            qkv,
            outside: &self.outside,
            index: &self.index,
        };
        let bias = AttentionBias {
            scale: (self.shape.dim as f32).powf(-0.5),
            bias: &self.bias,
            regions: self.regions.as_deref(),
            masked: MASKED,
        };
        window_attention_in_map(map, bias, self.shape, to);
    }
}

/// Finds each value a place that no other value has at the same time: the longest first, each as low as it goes.
fn place(steps: &[Step], lens: &[usize], output: Value) -> Vec<(usize, usize)> {
    // The steps between which a value is needed; what no step writes is there from the beginning.
    let mut needed = vec![(0, 0); lens.len()];
    for (at, step) in steps.iter().enumerate() {
        needed[step.writes.0] = (at, at);
        for read in &step.reads {
            needed[read.0].1 = at;
        }
    }
    needed[output.0].1 = steps.len();

    let mut order: Vec<usize> = (0..lens.len()).collect();
    order.sort_by_key(|&value| std::cmp::Reverse(lens[value]));
    let mut places = vec![(0, 0); lens.len()];
    let mut placed: Vec<usize> = Vec::with_capacity(lens.len());
    for value in order {
        let (first, last) = needed[value];
        let mut taken: Vec<(usize, usize)> = placed
            .iter()
            .filter(|&&other| needed[other].0 <= last && first <= needed[other].1)
            .map(|&other| places[other])
            .collect();
        taken.sort_unstable();
        let mut from = 0;
        for (other, len) in taken {
            if other >= from + lens[value] {
                break;
            }
            from = from.max((other + len).next_multiple_of(ALIGN));
        }
        places[value] = (from, lens[value]);
        placed.push(value);
    }
    places
}

#[cfg(test)]
mod tests {
    use super::super::config::PctNetConfig;
    use super::super::layers::Mode;
    use super::*;
    use crate::model::weights::{export, import, to_f32};
    use crate::rng::Rng;
    use burn::tensor::{Tensor, TensorData};
    use burn_flex::Flex;

    /// A network whose every parameter and statistic is off its initial value.
    fn random_network(config: &PctNetConfig, seed: u64) -> PctNet<Flex> {
        let net = PctNet::<Flex>::new(config, seed, &Default::default()).unwrap();
        let mut state = export(&net, config.resolution_mode);
        for (i, (name, tensor)) in state.iter_mut().enumerate() {
            let rng = Rng::new(seed).stream(1000 + i as u64);
            for (at, value) in tensor.values.iter_mut().enumerate() {
                *value += 0.2 * rng.normal_at(at as u64) as f32;
                if name.ends_with("running_var") {
                    *value = 0.5 + value.abs();
                }
            }
        }
        import(net, &state, config.resolution_mode).0
    }

    /// A configuration, a patch size and values for it.
    fn random_case(case: u64) -> (PctNetConfig, [usize; 3], Vec<f32>) {
        let rng = &mut Rng::new(77).stream(case);
        let heads = [1 + rng.below(3), 1 + rng.below(3), 1 + rng.below(4)];
        let mode = (case % 3) as u8;
        let stride = [16 >> mode, 16, 16];
        let mut size = || stride.map(|side| side * (1 + rng.below(3)));
        let (input_size, patch) = (size(), size());
        let mut config = PctNetConfig::pct_net_s(2 + rng.below(4), input_size, mode);
        config.num_heads = heads;
        config.feature_chns = [
            1 + rng.below(14),
            1 + rng.below(20),
            heads[0] * (1 + rng.below(9)),
            heads[1] * (1 + rng.below(9)),
            heads[2] * (1 + rng.below(9)),
        ];
        config.window_sizes = [0; 3].map(|_| 2 + rng.below(5));
        config.depths = [0; 3].map(|_| 1 + rng.below(3));
        config.in_chns = 1 + rng.below(2);
        config.validate().unwrap();
        let values = (0..config.in_chns * patch.iter().product::<usize>())
            .map(|_| rng.normal() as f32)
            .collect();
        (config, patch, values)
    }

    #[test]
    fn the_plan_computes_what_the_network_does() {
        for case in 0..24u64 {
            let (config, patch, values) = random_case(case);
            let net = random_network(&config, case);
            let [d, h, w] = patch;
            let data = TensorData::new(values.clone(), [1, config.in_chns, d, h, w]);
            let input = Tensor::<Flex, 5>::from_data(data, &Default::default());
            let want = to_f32(net.forward_finest(input, Mode::Eval).into_data());
            let scale = want.iter().fold(1f32, |top, v| top.max(v.abs()));

            let mut plan = Plan::new(&net, config.in_chns, patch, Precision::F32);
            drop(net);
            // The second time the buffer is full of what the first left.
            for _ in 0..2 {
                let got = plan.run(&values);
                assert_eq!(got.len(), want.len());
                for (got, want) in got.iter().zip(&want) {
                    assert!(
                        (got - want).abs() <= 1e-4 * scale,
                        "{got}, not {want}: {config:?} on {patch:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn bfloat16_is_near() {
        if precision(PrecisionChoice::Fixed(Precision::Bf16)).is_err() {
            eprintln!("skipped: this processor has no bfloat16 products");
            return;
        }
        for case in 0..24u64 {
            let (mut config, patch, values) = random_case(case);
            // Wide enough that most layers are computed so.
            config.feature_chns = config.feature_chns.map(|channels| 4 * channels);
            // As drawn: with noise on the weights as above the attention saturates, and magnifies every rounding.
            let net = PctNet::<Flex>::new(&config, case, &Default::default()).unwrap();
            let [want, got] = [Precision::F32, Precision::Bf16].map(|precision| {
                Plan::new(&net, config.in_chns, patch, precision)
                    .run(&values)
                    .to_vec()
            });
            let norm = |v: &mut dyn Iterator<Item = f32>| {
                v.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt()
            };
            let distance = norm(&mut got.iter().zip(&want).map(|(a, b)| a - b));
            let relative = distance / norm(&mut want.iter().copied());
            eprintln!("case {case}: {relative:.2e}");
            assert!(relative <= 1e-2, "{relative}: {config:?} on {patch:?}");
            assert!(relative > 0.0, "nothing was rounded: {config:?}");
        }
    }

    #[test]
    fn the_buffer_is_reused() {
        let config = PctNetConfig::pct_net_s(3, [32, 64, 64], 1);
        let net = PctNet::<Flex>::new(&config, 1, &Default::default()).unwrap();
        let plan = Plan::new(&net, 1, [32, 64, 64], Precision::F32);
        let all: usize = plan.places.iter().map(|(_, len)| len).sum();
        let largest = plan.places.iter().map(|(_, len)| len).max().unwrap();
        // At most three maps of the finest level are needed at a time.
        assert!(
            plan.buffer.len() <= 3 * largest + 64 * ALIGN,
            "{}",
            plan.buffer.len() / largest
        );
        assert!(plan.buffer.len() < all / 4);
    }
}
