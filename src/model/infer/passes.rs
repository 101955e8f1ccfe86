//! How a network is asked more than once about the same patch, so that its answers can disagree.

use std::str::FromStr;

use burn::tensor::{Tensor, TensorData, backend::Backend};
use serde::{Deserialize, Serialize};

use super::mirrored::mirrored_logits;
use super::network::Forward;
use crate::model::error::ModelError;
use crate::model::kernels::Kernels;
use crate::model::manifest::ModelDescription;
use crate::model::pct_net::{DropoutStream, Mode, PctNet};
use crate::model::schema::ONE_SIDED;
use crate::model::weights::to_f32;
use crate::rng::Rng;

/// Passes of Monte Carlo dropout that are enough to rank images by.
const DRAWS: usize = 4;

/// How often, and how, each network is asked about a patch. Several model versions asked together are an ensemble of
/// checkpoints; each of them is asked like this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Passes {
    /// Dropout where the network has any, else flips where the labels allow them, else once.
    #[default]
    Auto,
    /// Once: no disagreement within one version.
    Single,
    /// As it is, and with left and right exchanged.
    Flips,
    /// So many draws of the network's dropout (Gal and Ghahramani, ICML 2016).
    Dropout(usize),
}

impl Passes {
    /// What [`Passes::Auto`] means for a model.
    ///
    /// # Errors
    /// Dropout of a network without any, flips of labels of which one side is missing.
    pub(super) fn of(self, model: &ModelDescription) -> Result<Self, ModelError> {
        let network = &model.network;
        let drops = network.dropout.iter().any(|p| *p > 0.0) || network.drop_path > 0.0;
        let mirror = model.labels.mirrored().is_some();
        let refuse = |reason: &str| Err(ModelError::Request(reason.to_owned()));
        match self {
            Self::Auto if drops => Ok(Self::Dropout(DRAWS)),
            Self::Auto if mirror => Ok(Self::Flips),
            Self::Auto => Ok(Self::Single),
            Self::Dropout(_) if !drops => refuse(
                "this network drops nothing out, so that all passes would be the same; use flips or single",
            ),
            Self::Flips if !mirror => refuse(&format!("{ONE_SIDED}; use single")),
            given => Ok(given),
        }
    }
}

impl FromStr for Passes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let draws = |count: &str| count.parse().ok().filter(|n| (2..=64).contains(n));
        match text {
            "auto" => Ok(Self::Auto),
            "single" => Ok(Self::Single),
            "flips" => Ok(Self::Flips),
            _ => text
                .strip_prefix("dropout:")
                .and_then(draws)
                .map(Self::Dropout)
                .ok_or_else(|| {
                    format!("{text:?} is no way to ask; use auto, single, flips or dropout:N with N from 2 to 64")
                }),
        }
    }
}

impl std::fmt::Display for Passes {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Single => f.write_str("single"),
            Self::Flips => f.write_str("flips"),
            Self::Dropout(draws) => write!(f, "dropout:{draws}"),
        }
    }
}

impl TryFrom<String> for Passes {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Passes> for String {
    fn from(passes: Passes) -> Self {
        passes.to_string()
    }
}

/// One model version that is asked.
pub(super) trait Member: Send {
    /// How many answers it gives to a patch.
    fn answers(&self) -> usize;
    /// Hands over the logits `[classes, d, h, w]` of each answer to a patch `[channels, d, h, w]`; what is random depends on
    /// `seed` alone.
    fn ask(&self, patch: &[f32], seed: u64, each: &mut dyn FnMut(Vec<f32>));
}

/// One answer.
pub(super) struct Once(pub Box<dyn Forward + Send>);

impl Member for Once {
    fn answers(&self) -> usize {
        1
    }

    fn ask(&self, patch: &[f32], _: u64, each: &mut dyn FnMut(Vec<f32>)) {
        each(self.0.logits(patch.to_vec()));
    }
}

/// Two answers, the second about the mirrored patch, mirrored back.
pub(super) struct BothSides {
    pub net: Box<dyn Forward + Send>,
    /// For each class the one on the other side of the body.
    pub mirror: Vec<u8>,
    /// `[d, h, w]`.
    pub patch: [usize; 3],
}

impl Member for BothSides {
    fn answers(&self) -> usize {
        2
    }

    fn ask(&self, patch: &[f32], _: u64, each: &mut dyn FnMut(Vec<f32>)) {
        each(self.net.logits(patch.to_vec()));
        each(mirrored_logits(&*self.net, patch, &self.mirror, self.patch));
    }
}

/// Draws of dropout.
pub(super) struct Dropped<B: Backend> {
    pub net: PctNet<B>,
    pub device: B::Device,
    /// `[d, h, w]`.
    pub patch: [usize; 3],
    pub draws: usize,
}

impl<B: Kernels> Member for Dropped<B> {
    fn answers(&self) -> usize {
        self.draws
    }

    fn ask(&self, patch: &[f32], seed: u64, each: &mut dyn FnMut(Vec<f32>)) {
        let [d, h, w] = self.patch;
        let channels = patch.len() / (d * h * w);
        let data = TensorData::new(patch.to_vec(), [1, channels, d, h, w]);
        let input = Tensor::<B, 5>::from_data(data, &self.device);
        for draw in 0..self.draws {
            let masks = DropoutStream::new(Rng::new(seed).named("pass").at(draw as u64));
            let logits = self.net.forward_finest(input.clone(), Mode::Sample(&masks));
            each(to_f32(logits.into_data()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{LabelSchema, Lineage, PctNetConfig, Preprocessing};

    fn model(labels: &[&str], network: PctNetConfig) -> ModelDescription {
        ModelDescription {
            name: "m".to_owned(),
            patch: network.input_size,
            network,
            labels: LabelSchema::new(labels.iter().map(|l| (*l).to_owned()).collect()).unwrap(),
            preprocessing: Preprocessing::default(),
            clicks: None,
            trained: true,
            lineage: Lineage::default(),
        }
    }

    #[test]
    fn what_a_network_can_do_decides() {
        let patch = PctNetConfig::SMALL_PATCH;
        let small = || PctNetConfig::pct_net_s(3, patch, 1);
        let pair = ["kidney_left", "kidney_right"];
        let auto = |model: ModelDescription| Passes::Auto.of(&model).unwrap();
        assert_eq!(auto(model(&pair, small())), Passes::Flips);
        assert_eq!(
            auto(model(&["kidney_left", "liver"], small())),
            Passes::Single
        );
        let large = PctNetConfig::pct_net(3, patch, 1);
        assert_eq!(auto(model(&pair, large)), Passes::Dropout(DRAWS));
        assert!(Passes::Dropout(2).of(&model(&pair, small())).is_err());
        let one_side = model(&["kidney_left", "liver"], small());
        assert!(Passes::Flips.of(&one_side).is_err());
    }

    #[test]
    fn passes_have_names() {
        for passes in ["auto", "single", "flips", "dropout:8"] {
            assert_eq!(passes.parse::<Passes>().unwrap().to_string(), passes);
        }
        for wrong in ["", "dropout", "dropout:1", "dropout:x"] {
            assert!(wrong.parse::<Passes>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn draws_of_dropout_differ_and_repeat() {
        let config = PctNetConfig {
            feature_chns: [4, 8, 16, 16, 16],
            num_heads: [2, 2, 2],
            ..PctNetConfig::pct_net(2, [16, 32, 32], 1)
        };
        let device = Default::default();
        let member = Dropped {
            net: PctNet::<burn_flex::Flex>::new(&config, 1, &device).unwrap(),
            device,
            patch: [16, 32, 32],
            draws: 2,
        };
        let patch: Vec<f32> = (0..16 * 32 * 32).map(|n| (n % 7) as f32 / 7.0).collect();
        let answers = |seed| {
            let mut answers = Vec::new();
            member.ask(&patch, seed, &mut |logits| answers.push(logits));
            answers
        };
        let first = answers(1);
        assert_eq!(first.len(), 2);
        assert_ne!(first[0], first[1]);
        assert_eq!(first, answers(1));
        assert_ne!(first, answers(2));
    }
}
