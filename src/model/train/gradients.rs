//! What is done to gradients before a step and to weights after it.

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, backend::Backend};

use super::passes::scalar;
use crate::model::kernels::Kernels;
use crate::model::pct_net::PctNet;
use crate::model::weights::{is_encoder, published_name};

/// Euclidean norm of all gradients together.
pub fn norm<B: Kernels>(net: &PctNet<Autodiff<B>>, grads: &GradientsParams) -> f32 {
    let mut squares = Squares::<B> {
        grads,
        parts: Vec::new(),
    };
    net.visit(&mut squares);
    if squares.parts.is_empty() {
        return 0.0;
    }
    // One number leaves the device, whatever the number of parameters.
    scalar(&Tensor::cat(squares.parts, 0).sum()).sqrt()
}

struct Squares<'a, B: Backend> {
    grads: &'a GradientsParams,
    parts: Vec<Tensor<B, 1>>,
}

impl<B: Kernels> ModuleVisitor<Autodiff<B>> for Squares<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Autodiff<B>, D>>) {
        if let Some(grad) = self.grads.get::<B, D>(param.id) {
            self.parts.push((grad.clone() * grad).sum());
        }
    }
}

/// Multiplies every gradient by `factor`.
pub fn scale<B: Kernels>(net: &PctNet<Autodiff<B>>, grads: &mut GradientsParams, factor: f32) {
    struct Scale<'a>(&'a mut GradientsParams, f32);
    impl<B: Kernels> ModuleVisitor<Autodiff<B>> for Scale<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Autodiff<B>, D>>) {
            if let Some(grad) = self.0.remove::<B, D>(param.id) {
                self.0.register::<B, D>(param.id, grad * self.1);
            }
        }
    }
    net.visit(&mut Scale(grads, factor));
}

/// Takes the encoder's gradients out, so that the optimiser leaves its weights and moments alone.
pub fn freeze_encoder<B: Kernels>(
    net: &PctNet<Autodiff<B>>,
    grads: &mut GradientsParams,
    resolution_mode: u8,
) {
    struct Freeze<'a> {
        path: Vec<String>,
        resolution_mode: u8,
        grads: &'a mut GradientsParams,
    }
    impl<B: Kernels> ModuleVisitor<Autodiff<B>> for Freeze<'_> {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.path.push(name.to_owned());
        }

        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.pop();
        }

        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Autodiff<B>, D>>) {
            if is_encoder(&published_name(&self.path, self.resolution_mode)) {
                self.grads.remove::<B, D>(param.id);
            }
        }
    }
    net.visit(&mut Freeze {
        path: Vec::new(),
        resolution_mode,
        grads,
    });
}

/// Moves the running average of the weights towards those of `net`. `made` steps were made before; the decay is smaller in
/// the first ones, so that the average forgets the random start.
pub fn follow<B: Kernels>(
    average: PctNet<B>,
    net: &PctNet<Autodiff<B>>,
    decay: f64,
    made: usize,
) -> PctNet<B> {
    // The container of gradients holds any tensors by parameter.
    let mut newest = Collect(GradientsParams::new());
    net.valid().visit(&mut newest);
    let early = (1.0 + made as f64) / (10.0 + made as f64);
    average.map(&mut Follow {
        newest: newest.0,
        decay: decay.min(early),
    })
}

struct Collect(GradientsParams);

impl<B: Backend> ModuleVisitor<B> for Collect {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.0.register::<B, D>(param.id, param.val());
    }
}

struct Follow {
    newest: GradientsParams,
    decay: f64,
}

impl<B: Backend> ModuleMapper<B> for Follow {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let newest = self.newest.remove::<B, D>(param.id);
        param.map(|average| match newest {
            Some(newest) => average * self.decay + newest * (1.0 - self.decay),
            None => average,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::pct_net::{DropoutStream, Mode, PctNetConfig};
    use crate::model::weights::export;
    use crate::rng::Rng;
    use burn_flex::Flex;

    fn net_and_gradients() -> (PctNet<Autodiff<Flex>>, GradientsParams) {
        let config = PctNetConfig::pct_net_s(2, [16, 32, 32], 1);
        let device = Default::default();
        let net = PctNet::<Autodiff<Flex>>::new(&config, 1, &device).unwrap();
        let input = Tensor::ones([1, 1, 16, 32, 32], &device);
        let masks = DropoutStream::new(1);
        let [finest, ..] = net.forward(input, Mode::Train(&masks));
        let finest = finest.clone() * finest;
        let grads = GradientsParams::from_grads(finest.mean().backward(), &net);
        (net, grads)
    }

    #[test]
    fn scaling_scales_the_norm_and_freezing_leaves_the_decoder() {
        let (net, mut grads) = net_and_gradients();
        let before = norm(&net, &grads);
        assert!(before.is_finite() && before > 0.0);
        scale(&net, &mut grads, 0.5);
        assert!((norm(&net, &grads) - before / 2.0).abs() < 1e-4 * before);
        let (count, all) = (grads.len(), norm(&net, &grads));
        freeze_encoder(&net, &mut grads, 1);
        assert!(grads.len() < count && !grads.is_empty());
        let decoder = norm(&net, &grads);
        assert!(decoder > 0.0 && decoder < all);
    }

    #[test]
    fn the_average_moves_by_its_share() {
        let (net, _) = net_and_gradients();
        let config = PctNetConfig::pct_net_s(2, [16, 32, 32], 1);
        let other = PctNet::<Autodiff<Flex>>::new(&config, 2, &Default::default()).unwrap();
        // The same parameters with other values, as after some steps.
        let (moved, _) = crate::model::weights::import(net.valid(), &export(&other.valid(), 1), 1);
        let from = export(&moved, 1);
        let to = export(&net.valid(), 1);
        let average = export(&follow(moved, &net, 0.75, 1_000_000), 1);
        let mut rng = Rng::new(1);
        for (name, tensor) in &average {
            let n = rng.below(tensor.values.len());
            let expected = 0.75 * from[name].values[n] + 0.25 * to[name].values[n];
            assert!((tensor.values[n] - expected).abs() < 1e-5, "{name}");
        }
        // At the start the average is the newest weights for the most part.
        let (fresh, _) = crate::model::weights::import(net.valid(), &from, 1);
        let early = export(&follow(fresh, &net, 0.999, 0), 1);
        let name = early.keys().next().unwrap();
        let expected = 0.1 * from[name].values[0] + 0.9 * to[name].values[0];
        assert!((early[name].values[0] - expected).abs() < 1e-5);
    }
}
