//! Safetensors files.

use std::collections::HashMap;

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use sha2::{Digest, Sha256};

use super::{HostTensor, State};

/// Text kept in the header of a safetensors file, by key.
pub type Notes = HashMap<String, String>;

/// Bytes of a safetensors file with every tensor as float32.
pub fn serialise(state: &State) -> Result<Vec<u8>, String> {
    serialise_with(state, None)
}

/// [`serialise`], with notes in the header.
pub(crate) fn serialise_with(state: &State, notes: Option<Notes>) -> Result<Vec<u8>, String> {
    let bytes: Vec<(&String, Vec<u8>, &HostTensor)> = state
        .iter()
        .map(|(name, tensor)| {
            let bytes = tensor.values.iter().flat_map(|v| v.to_le_bytes()).collect();
            (name, bytes, tensor)
        })
        .collect();
    let views: Result<Vec<_>, _> = bytes
        .iter()
        .map(|(name, bytes, tensor)| {
            TensorView::new(Dtype::F32, tensor.shape.clone(), bytes)
                .map(|view| (name.as_str(), view))
        })
        .collect();
    let views = views.map_err(|e| e.to_string())?;
    safetensors::serialize(views, notes).map_err(|e| e.to_string())
}

/// The notes in the header of a safetensors file.
pub(crate) fn parse_notes(bytes: &[u8]) -> Result<Notes, String> {
    let (_, header) =
        SafeTensors::read_metadata(bytes).map_err(|e| format!("not a safetensors file: {e}"))?;
    Ok(header.metadata().clone().unwrap_or_default())
}

/// Tensors of a safetensors file; float16, bfloat16, float64 and 8-bit unsigned integers become float32.
pub fn parse(bytes: &[u8]) -> Result<State, String> {
    let file =
        SafeTensors::deserialize(bytes).map_err(|e| format!("not a safetensors file: {e}"))?;
    file.iter()
        .map(|(name, view)| {
            let values =
                decode(view.dtype(), view.data()).map_err(|e| format!("tensor {name}: {e}"))?;
            Ok((
                name.to_owned(),
                HostTensor {
                    shape: view.shape().to_vec(),
                    values,
                },
            ))
        })
        .collect()
}

fn decode(dtype: Dtype, data: &[u8]) -> Result<Vec<f32>, String> {
    Ok(match dtype {
        Dtype::F32 => chunks(data).map(f32::from_le_bytes).collect(),
        Dtype::F64 => chunks(data).map(|b| f64::from_le_bytes(b) as f32).collect(),
        Dtype::F16 => chunks(data)
            .map(|b| half::f16::from_le_bytes(b).to_f32())
            .collect(),
        Dtype::BF16 => chunks(data)
            .map(|b| half::bf16::from_le_bytes(b).to_f32())
            .collect(),
        Dtype::U8 => data.iter().map(|&b| f32::from(b)).collect(),
        other => return Err(format!("element type {other:?} is not a float")),
    })
}

fn chunks<const N: usize>(data: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    data.as_chunks::<N>().0.iter().copied()
}

/// SHA-256 in hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_survives_the_file() {
        let tensor = HostTensor {
            shape: vec![2, 3],
            values: vec![0.0, -1.5, 2.0, 3.0, 4.0, f32::MIN],
        };
        let state = State::from([("a.weight".to_owned(), tensor)]);
        let bytes = serialise(&state).unwrap();
        assert_eq!(parse(&bytes).unwrap(), state);
        assert!(parse_notes(&bytes).unwrap().is_empty());
        let notes = Notes::from([("step".to_owned(), "7".to_owned())]);
        let bytes = serialise_with(&state, Some(notes.clone())).unwrap();
        assert_eq!(parse(&bytes).unwrap(), state);
        assert_eq!(parse_notes(&bytes).unwrap(), notes);
    }

    #[test]
    fn damaged_files_are_refused() {
        let tensor = HostTensor {
            shape: vec![4],
            values: vec![1.0; 4],
        };
        let bytes = serialise(&State::from([("a".to_owned(), tensor)])).unwrap();
        for cut in 0..bytes.len() {
            assert!(parse(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        assert!(parse(b"PK\x03\x04 a zip").is_err());
    }

    #[test]
    fn the_hash_is_the_standard_one() {
        assert!(sha256_hex(b"").starts_with("e3b0c44298fc1c14"));
    }
}
