//! Parameters of a network by their published names.
//!
//! The names and layouts are those of the MIS-FM code's `state_dict`, so that a file written here loads there (as a
//! partial state: the two unused resolution modes are absent) and the other way round.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Tensor, TensorData, backend::Backend};

use crate::model::kernels::Kernels;
use crate::model::pct_net::PctNet;

/// A float32 array in host memory, C order.
#[derive(Debug, Clone, PartialEq)]
pub struct HostTensor {
    /// Lengths of the axes, slowest first.
    pub shape: Vec<usize>,
    /// The values.
    pub values: Vec<f32>,
}

/// Arrays by published name.
pub type State = BTreeMap<String, HostTensor>;

/// What became of each parameter of a network and of each tensor of a file.
#[derive(Debug, Default, Clone, serde::Serialize)]
pub struct LoadReport {
    /// Taken from the file.
    pub loaded: Vec<String>,
    /// Not in the file: the network keeps its initial value.
    pub missing: Vec<String>,
    /// In the file with another shape: the network keeps its initial value.
    pub reshaped: Vec<Reshaped>,
    /// In the file but of no use to this network.
    pub unused: Vec<String>,
    /// Loaded parameters of the encoder (embedding, down and encoding stages), by value count, 0 to 1.
    pub encoder_coverage: f64,
}

/// A tensor whose shape in the file is not the network's.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Reshaped {
    /// Published name.
    pub name: String,
    /// Shape in the file.
    pub file: Vec<usize>,
    /// Shape in the network.
    pub network: Vec<usize>,
}

/// Published name of a parameter from the path of fields that leads to it.
pub(crate) fn published_name(path: &[String], resolution_mode: u8) -> String {
    let mut name = String::new();
    for field in path {
        let part = match field.as_str() {
            "embedding" => &format!("embeddings.{resolution_mode}"),
            "pyramid" => "pyramid_ct",
            "head" => &format!("pred_heads.{resolution_mode}"),
            "first_norm" => "conv_conv.0",
            "first_act" => "conv_conv.1",
            "first_conv" => "conv_conv.2",
            "second_norm" => "conv_conv.3",
            "second_act" => "conv_conv.4",
            "second_conv" => "conv_conv.6",
            "pre_norm" => "0",
            "pre_act" => "1",
            "pre_conv" | "pre_up" => "2",
            "out_conv0" | "out_conv1" | "out_conv2" | "out_conv3" => &format!("{field}.conv"),
            other => other,
        };
        if !name.is_empty() {
            name.push('.');
        }
        name.push_str(part);
    }
    name
}

/// Whether a published name belongs to the encoder.
pub(crate) fn is_encoder(name: &str) -> bool {
    name.starts_with("embeddings.")
        || ["down3", "down4", "convtrans_e"]
            .iter()
            .any(|part| name.starts_with(&format!("pyramid_ct.{part}")))
}

/// Whether a published name belongs to a prediction layer, whose outputs mean the classes of one label schema.
pub(crate) fn is_head(name: &str) -> bool {
    name.contains(".out_conv")
}

/// Makes the first convolution of a file's tensors take `channels` inputs: those of the first `kept` stay, further ones
/// have weights of zero, so that the network answers as before whatever they hold.
pub(crate) fn fit_inputs(state: &mut State, kept: usize, channels: usize) {
    let first = state.iter_mut().filter(|(name, tensor)| {
        name.starts_with("embeddings.") && name.ends_with(".proj.weight") && tensor.shape.len() == 5
    });
    for (_, tensor) in first {
        let [outputs, inputs] = [tensor.shape[0], tensor.shape[1]];
        let kernel = tensor.values.len() / (outputs * inputs).max(1);
        let mut values = vec![0.0; outputs * channels * kernel];
        let taken = kept.min(inputs).min(channels) * kernel;
        for output in 0..outputs {
            values[output * channels * kernel..][..taken]
                .copy_from_slice(&tensor.values[output * inputs * kernel..][..taken]);
        }
        tensor.values = values;
        tensor.shape[1] = channels;
    }
}

/// All parameters and running statistics of a network.
pub fn export<B: Kernels>(net: &PctNet<B>, resolution_mode: u8) -> State {
    let mut exporter = Exporter {
        path: Vec::new(),
        resolution_mode,
        state: State::new(),
    };
    net.visit(&mut exporter);
    exporter.state
}

struct Exporter {
    path: Vec<String>,
    resolution_mode: u8,
    state: State,
}

impl<B: Backend> ModuleVisitor<B> for Exporter {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let tensor = param.val();
        let shape = tensor.dims().to_vec();
        let values = to_f32(tensor.into_data());
        let name = published_name(&self.path, self.resolution_mode);
        self.state.insert(name, HostTensor { shape, values });
    }
}

/// The values of a tensor as float32.
pub(crate) fn to_f32(data: TensorData) -> Vec<f32> {
    data.convert::<f32>().into_vec().unwrap_or_default()
}

/// Puts the tensors of `state` into a network; what does not fit is reported and left as it was.
pub fn import<B: Kernels>(
    net: PctNet<B>,
    state: &State,
    resolution_mode: u8,
) -> (PctNet<B>, LoadReport) {
    let mut importer = Importer {
        path: Vec::new(),
        resolution_mode,
        state,
        report: LoadReport::default(),
        encoder: (0, 0),
    };
    let net = net.map(&mut importer);
    let mut report = importer.report;
    let (loaded, total) = importer.encoder;
    report.encoder_coverage = loaded as f64 / total.max(1) as f64;
    let used = |name: &String| {
        report.loaded.contains(name) || report.reshaped.iter().any(|r| &r.name == name)
    };
    report.unused = state.keys().filter(|name| !used(name)).cloned().collect();
    (net, report)
}

struct Importer<'a> {
    path: Vec<String>,
    resolution_mode: u8,
    state: &'a State,
    report: LoadReport,
    /// Loaded and all values of the encoder.
    encoder: (usize, usize),
}

impl<B: Backend> ModuleMapper<B> for Importer<'_> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let name = published_name(&self.path, self.resolution_mode);
        let (id, tensor, mapper) = param.consume();
        let shape = tensor.dims();
        let count = shape.iter().product::<usize>();
        let encoder = is_encoder(&name);
        if encoder {
            self.encoder.1 += count;
        }
        let tensor = match self.state.get(&name) {
            None => {
                self.report.missing.push(name);
                tensor
            }
            Some(found) if found.shape != shape => {
                let network = shape.to_vec();
                self.report.reshaped.push(Reshaped {
                    name,
                    file: found.shape.clone(),
                    network,
                });
                tensor
            }
            Some(found) => {
                if encoder {
                    self.encoder.0 += count;
                }
                self.report.loaded.push(name);
                let tracked = tensor.is_require_grad();
                let data = TensorData::new(found.values.clone(), shape);
                Tensor::from_data(data, &tensor.device()).set_require_grad(tracked)
            }
        };
        Param::from_mapped_value(id, tensor, mapper)
    }
}
