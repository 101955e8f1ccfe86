//! With how many bits the network computes.

use std::str::FromStr;

use super::kernels::Kernels;

/// Number format of activations and products. Sums, statistics and the weights of training are float32 always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits; on NVIDIA's tensor units 10 of the 23 bits after the point (TF32).
    F32,
    /// 16 bits with the range of float32.
    Bf16,
    /// 16 bits with more digits and less range.
    F16,
}

impl Precision {
    /// What training computes in on a device: bfloat16 on GPUs that have it (activations and their gradients; weights, their
    /// gradients, moments, statistics and sums stay float32), float32 elsewhere.
    pub(super) fn of_training<B: Kernels>(device: &B::Device) -> Self {
        let on_gpu = B::patch_maker().is_some();
        if on_gpu && B::supports_dtype(device, Self::Bf16.dtype()) {
            Self::Bf16
        } else {
            Self::F32
        }
    }

    /// The type of tensors that hold it.
    pub(super) fn dtype(self) -> burn::tensor::DType {
        match self {
            Self::F32 => burn::tensor::DType::F32,
            Self::Bf16 => burn::tensor::DType::BF16,
            Self::F16 => burn::tensor::DType::F16,
        }
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "f16" => Ok(Self::F16),
            _ => Err(format!("{text:?} is not a precision; use f32, bf16 or f16")),
        }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        })
    }
}

/// The precision as the user names it: `auto`, `f32`, `bf16` or `f16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PrecisionChoice {
    /// What the device is best at without changing labels.
    #[default]
    Auto,
    /// This one.
    Fixed(Precision),
}

impl FromStr for PrecisionChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            _ => text
                .parse()
                .map(Self::Fixed)
                .map_err(|_| format!("{text:?} is not a precision; use auto, f32, bf16 or f16")),
        }
    }
}

impl std::fmt::Display for PrecisionChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Fixed(precision) => precision.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precisions_have_names() {
        for precision in [Precision::F32, Precision::Bf16, Precision::F16] {
            assert_eq!(precision.to_string().parse(), Ok(precision));
            let choice = PrecisionChoice::Fixed(precision);
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        assert_eq!("auto".parse(), Ok(PrecisionChoice::Auto));
        assert!("fp8".parse::<PrecisionChoice>().is_err());
        assert!("auto".parse::<Precision>().is_err());
    }
}
