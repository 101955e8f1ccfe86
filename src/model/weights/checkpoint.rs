//! PyTorch checkpoints. No pickle is executed: the reader interprets the few opcodes that tensors need. It may still
//! abort the process on hostile nesting, so callers run it in a child process (`cli/convert.rs`).

use std::path::Path;

use pytorch_reader::{DType, PytorchReader};

use super::{HostTensor, State};

/// Keys under which training code keeps the network's tensors, tried in this order.
const STATE_KEYS: [&str; 3] = ["model_state_dict", "state_dict", "model"];

/// Float tensors of a checkpoint: a PyMIC dictionary, another dictionary with a known key, or a bare state dict.
/// `module.` prefixes of multi-GPU training are removed; integer tensors (counters, index buffers) are left out.
pub fn read_checkpoint(path: &Path) -> Result<State, String> {
    let reader = STATE_KEYS
        .iter()
        .find_map(|key| {
            PytorchReader::with_top_level_key(path, key)
                .ok()
                .filter(|r| !r.is_empty())
        })
        .map_or_else(|| PytorchReader::new(path), Ok)
        .map_err(|e| format!("not a PyTorch checkpoint that can be read: {e}"))?;
    let mut state = State::new();
    for (name, tensor) in reader.tensors() {
        let decode: fn(&[u8]) -> Vec<f32> = match tensor.dtype() {
            DType::F32 => |b| floats(b, f32::from_le_bytes),
            DType::F64 => |b| floats(b, |v| f64::from_le_bytes(v) as f32),
            DType::F16 => |b| floats(b, |v| half::f16::from_le_bytes(v).to_f32()),
            DType::BF16 => |b| floats(b, |v| half::bf16::from_le_bytes(v).to_f32()),
            _ => continue,
        };
        let bytes = tensor.read().map_err(|e| format!("tensor {name}: {e}"))?;
        let values = decode(&bytes);
        if values.len() != tensor.shape().iter().product::<usize>() {
            return Err(format!(
                "tensor {name}: its data do not fill its shape {:?}",
                tensor.shape()
            ));
        }
        let name = name.strip_prefix("module.").unwrap_or(name).to_owned();
        state.insert(
            name,
            HostTensor {
                shape: tensor.shape().to_vec(),
                values,
            },
        );
    }
    if state.is_empty() {
        return Err("the checkpoint holds no float tensors".into());
    }
    Ok(state)
}

fn floats<const N: usize>(bytes: &[u8], decode: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes
        .as_chunks::<N>()
        .0
        .iter()
        .map(|chunk| decode(*chunk))
        .collect()
}
