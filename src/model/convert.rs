//! Tensors of a checkpoint become a model directory.

use std::path::Path;

use burn::tensor::{Tensor, TensorData};
use burn_flex::Flex;

use super::engine::{DeviceChoice, Engine, on_engine};
use super::error::ModelError;
use super::kernels::Kernels;
use super::manifest::{Lineage, Manifest, ModelDescription, Preprocessing, write_model};
use super::pct_net::{Mode, PctNet, PctNetConfig, Plan};
use super::precision::Precision;
use super::schema::LabelSchema;
use super::weights::{HostTensor, LoadReport, State, export, import, to_f32};

/// A checkpoint that covers less of the encoder is refused unless asked for.
const MIN_ENCODER_COVERAGE: f64 = 0.9;
/// Seed of the parameters that the checkpoint does not hold.
const SEED: u64 = 0;

/// What a checkpoint is to become.
#[derive(Debug, Clone)]
pub struct ConvertOptions {
    /// Name of the model.
    pub name: String,
    /// Architecture of the checkpoint; `class_num` is that of the checkpoint's heads.
    pub network: PctNetConfig,
    /// Structures of the model; heads of another class count start afresh.
    pub labels: LabelSchema,
    /// How an image becomes input.
    pub preprocessing: Preprocessing,
    /// Accept a low encoder coverage.
    pub partial: bool,
}

/// A finished conversion.
#[derive(Debug)]
pub struct Conversion {
    /// The model written.
    pub manifest: Manifest,
    /// What was taken from the checkpoint.
    pub report: LoadReport,
}

/// Writes a model directory from the tensors of a checkpoint.
///
/// # Errors
/// An encoder covered below 90 % (unless `partial`), no tensor that fits, an output that exists. Nothing is written then.
pub fn convert(
    options: &ConvertOptions,
    state: &State,
    out: &Path,
) -> Result<Conversion, ModelError> {
    let network = PctNetConfig {
        class_num: options.labels.class_count(),
        ..options.network.clone()
    };
    let mode = network.resolution_mode;
    let net = PctNet::<Flex>::new(&network, SEED, &Default::default())?;
    let (net, report) = import(net, state, mode);
    if report.encoder_coverage < MIN_ENCODER_COVERAGE && !options.partial {
        let reason = format!(
            "the checkpoint covers {:.1} % of the encoder ({} tensors missing, {} of another shape), so it is probably of \
             another architecture; check the configuration, or say --partial. Nothing was written",
            report.encoder_coverage * 100.0,
            report.missing.len(),
            report.reshaped.len()
        );
        return Err(ModelError::bad(out, reason));
    }
    if report.loaded.is_empty() {
        return Err(ModelError::bad(
            out,
            "no tensor of the checkpoint fits this architecture. Nothing was written",
        ));
    }
    let description = ModelDescription {
        name: options.name.clone(),
        patch: network.input_size,
        network,
        labels: options.labels.clone(),
        preprocessing: options.preprocessing.clone(),
        clicks: None,
        // Heads that start afresh have learned nothing.
        trained: report.missing.is_empty() && report.reshaped.is_empty(),
        lineage: Lineage {
            seed: Some(SEED),
            ..Lineage::made_by("converted")
        },
    };
    let manifest = write_model(out, &description, &export(&net, mode))?;
    Ok(Conversion { manifest, report })
}

/// A model with random weights, to start a project with.
///
/// # Errors
/// An architecture or name that cannot be used, a directory that exists.
pub fn create_untrained(
    dir: &Path,
    name: &str,
    network: &PctNetConfig,
    labels: &LabelSchema,
    seed: u64,
) -> Result<Manifest, ModelError> {
    let network = PctNetConfig {
        class_num: labels.class_count(),
        ..network.clone()
    };
    let net = PctNet::<Flex>::new(&network, seed, &Default::default())?;
    let description = ModelDescription {
        name: name.to_owned(),
        patch: network.input_size,
        labels: labels.clone(),
        preprocessing: Preprocessing::default(),
        clicks: None,
        trained: false,
        lineage: Lineage {
            seed: Some(seed),
            ..Lineage::made_by("initialised")
        },
        network: network.clone(),
    };
    write_model(dir, &description, &export(&net, network.resolution_mode))
}

/// Runs `input` of a reference file through a model and returns the largest absolute difference of each `logitsN`.
///
/// A reference may hold every k-th voxel of an output per axis, with the same k on each axis.
///
/// # Errors
/// A model that cannot be loaded, a reference without input or with outputs of other shapes.
pub fn verify(model: &Path, reference: &State) -> Result<Vec<(String, f32)>, ModelError> {
    let bad = |reason: &str| ModelError::bad(model, format!("the reference {reason}"));
    let manifest = Manifest::read(model)?;
    let net = PctNet::<Flex>::new(&manifest.network, SEED, &Default::default())?;
    let (net, _) = import(
        net,
        &manifest.read_weights(model)?,
        manifest.network.resolution_mode,
    );
    let input = reference
        .get("input")
        .ok_or_else(|| bad("has no tensor \"input\""))?;
    let [_, channels, d, h, w] = <[usize; 5]>::try_from(input.shape.clone())
        .map_err(|_| bad("has an input that is not 5-dimensional"))?;
    if channels != manifest.network.in_chns {
        return Err(bad("has an input of another channel count"));
    }
    manifest.network.check_patch([d, h, w])?;
    let data = TensorData::new(input.values.clone(), input.shape.clone());
    let outputs = net.forward(Tensor::from_data(data, &Default::default()), Mode::Eval);
    let mut differences = Vec::new();
    for (i, output) in outputs.into_iter().enumerate() {
        let name = format!("logits{i}");
        let Some(expected) = reference.get(&name) else {
            continue;
        };
        let difference = largest_difference(output, expected)
            .ok_or_else(|| bad("has outputs of another shape"))?;
        differences.push((name, difference));
    }
    // Inference goes another way than training to the finest output.
    if let Some(expected) = reference.get("logits0") {
        let mut plan = Plan::new(&net, channels, [d, h, w], Precision::F32);
        let items = input.values.chunks_exact(channels * d * h * w);
        let logits: Vec<f32> = items.flat_map(|item| plan.run(item).to_vec()).collect();
        let shape = [input.shape[0], manifest.network.class_num, d, h, w];
        let output = Tensor::from_data(TensorData::new(logits, shape), &Default::default());
        let difference = largest_difference(output, expected)
            .ok_or_else(|| bad("has outputs of another shape"))?;
        differences.push(("logits0 (as inferred)".to_owned(), difference));
    }
    Ok(differences)
}

/// Runs `input` of a reference file through a model on a device, layer by layer in `precision`, and returns for each
/// `logitsN` the norm of the difference by the norm of the reference; on a GPU for the finest once more as inferred.
///
/// # Errors
/// As [`verify`]; a device that is not there, does not compute in this precision, or fails.
pub fn verify_on(
    model: &Path,
    reference: &State,
    device: DeviceChoice,
    precision: Precision,
) -> Result<Vec<(String, f32)>, ModelError> {
    let bad = |reason: &str| ModelError::bad(model, format!("the reference {reason}"));
    let manifest = Manifest::read(model)?;
    let state = manifest.read_weights(model)?;
    let input = reference
        .get("input")
        .ok_or_else(|| bad("has no tensor \"input\""))?;
    let sides = <[usize; 5]>::try_from(input.shape.clone())
        .map_err(|_| bad("has an input that is not 5-dimensional"))?;
    manifest
        .network
        .check_patch([sides[2], sides[3], sides[4]])?;
    let engine = Engine::open(device)?;
    let outputs = engine.guarded(|| {
        on_engine!(engine, |B, device| {
            let net = PctNet::<B>::new(&manifest.network, SEED, &device)?;
            let (net, _) = import(net, &state, manifest.network.resolution_mode);
            logits_in::<B>(engine, &net, input, precision, &device)
        })
    })?;
    let named = outputs.into_iter().filter_map(|(name, output)| {
        let expected = reference.get(name.split(' ').next()?)?;
        Some((name, output, expected))
    });
    named
        .map(|(name, output, expected)| {
            relative_difference(output, expected)
                .map(|difference| (name, difference))
                .ok_or_else(|| bad("has outputs of another shape"))
        })
        .collect()
}

/// The four scales' logits on the host, by name, and on a GPU the finest as inference computes it.
#[cfg_attr(
    not(any(feature = "cuda", feature = "vulkan")),
    allow(unused_variables)
)] // a CPU has float32
fn logits_in<B: Kernels>(
    engine: Engine,
    net: &PctNet<B>,
    input: &HostTensor,
    precision: Precision,
    device: &B::Device,
) -> Result<Vec<(String, Tensor<Flex, 5>)>, ModelError> {
    match engine {
        Engine::Cpu if precision != Precision::F32 => {
            return Err(ModelError::Precision(
                "on a CPU the network is compared layer by layer, in f32".into(),
            ));
        }
        Engine::Cpu => {}
        #[cfg(any(feature = "cuda", feature = "vulkan"))]
        _ => {
            let fixed = super::precision::PrecisionChoice::Fixed(precision);
            super::infer::gpu_precision::<B>(fixed, device)?;
        }
    }
    let data = TensorData::new(input.values.clone(), input.shape.clone());
    let input = Tensor::<B, 5>::from_data(data, device);
    let outputs = match precision {
        Precision::F32 => net.forward(input.clone(), Mode::Eval),
        _ => net.forward_in(input.clone(), Mode::Eval, precision),
    };
    let outputs = outputs.into_iter().enumerate();
    let outputs = outputs.map(|(i, output)| (format!("logits{i}"), output));
    #[cfg(any(feature = "cuda", feature = "vulkan"))]
    let outputs = outputs.chain((engine != Engine::Cpu).then(|| {
        let [_, channels, d, h, w] = input.dims();
        let ready = super::pct_net::ReadyNet::new(net, channels, [d, h, w], precision);
        let logits = ready.forward(input).cast(burn::tensor::DType::F32);
        ("logits0 (as inferred)".to_owned(), logits)
    }));
    let read = outputs.map(|(name, output)| {
        let data = output
            .try_into_data()
            .map_err(|error| ModelError::Compute {
                device: engine.name(),
                reason: error.to_string(),
            })?;
        Ok((name, Tensor::from_data(data, &Default::default())))
    });
    read.collect()
}

/// `None` when the shapes do not fit.
pub(super) fn largest_difference(output: Tensor<Flex, 5>, expected: &HostTensor) -> Option<f32> {
    let mut worst = 0f32;
    compare(output, expected, |value, expected| {
        let difference = (value - expected).abs();
        // NaN must not look like agreement.
        worst = match difference.is_nan() {
            true => f32::INFINITY,
            false => worst.max(difference),
        };
    })?;
    Some(worst)
}

/// Norm of the difference by the norm of what is expected.
fn relative_difference(output: Tensor<Flex, 5>, expected: &HostTensor) -> Option<f32> {
    let (mut away, mut norm) = (0f64, 0f64);
    compare(output, expected, |value, expected| {
        away += f64::from(value - expected).powi(2);
        norm += f64::from(expected).powi(2);
    })?;
    let relative = (away / norm.max(f64::MIN_POSITIVE)).sqrt() as f32;
    Some(if relative.is_nan() {
        f32::INFINITY
    } else {
        relative
    })
}

/// Shows each value beside the expected one; `None` when the shapes do not fit.
fn compare(
    output: Tensor<Flex, 5>,
    expected: &HostTensor,
    mut seen: impl FnMut(f32, f32),
) -> Option<()> {
    let [b, c, d, h, w] = output.dims();
    let stride = d
        .checked_div(*expected.shape.get(2)?)
        .filter(|stride| *stride > 0)?;
    if expected.shape
        != [
            b,
            c,
            d.div_ceil(stride),
            h.div_ceil(stride),
            w.div_ceil(stride),
        ]
    {
        return None;
    }
    let values = to_f32(output.into_data());
    let mut expected = expected.values.iter();
    for outer in 0..b * c {
        for z in (0..d).step_by(stride) {
            for y in (0..h).step_by(stride) {
                for x in (0..w).step_by(stride) {
                    let value = values[((outer * d + z) * h + y) * w + x];
                    seen(value, *expected.next()?);
                }
            }
        }
    }
    Some(())
}
