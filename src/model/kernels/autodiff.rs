//! Backward passes of [`Kernels`](super::Kernels) for burn's autodiff.

use burn::backend::autodiff::{
    Autodiff, NodeId,
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::tensor::ops::FloatTensor;

use super::{Kernels, plain};

#[derive(Debug)]
struct Conv3d;

impl<B: Kernels> Backward<B, 3> for Conv3d {
    /// The input and the weight, kept for the backward pass.
    type State = (NodeId, NodeId);

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let [x_node, weight_node, bias_node] = ops.parents;
        let grad = grads.consume::<B>(&ops.node);
        let x: FloatTensor<B> = checkpointer.retrieve_node_output(ops.state.0);
        let weight: FloatTensor<B> = checkpointer.retrieve_node_output(ops.state.1);
        if let Some(node) = weight_node {
            let weight_grad = B::same_conv3d_weight_grad(x, weight.clone(), grad.clone());
            grads.register::<B>(node.id, weight_grad);
        }
        if let Some(node) = bias_node {
            grads.register::<B>(node.id, B::channel_sum(grad.clone()));
        }
        if let Some(node) = x_node {
            grads.register::<B>(node.id, B::same_conv3d_input_grad(weight, grad));
        }
    }
}

#[derive(Debug)]
struct BatchNormPrelu;

/// What the backward pass of batch normalisation with PReLU needs.
#[derive(Debug, Clone)]
struct NormState<F> {
    x: NodeId,
    gamma: NodeId,
    beta: NodeId,
    slope: NodeId,
    mean: F,
    variance: F,
}

impl<B: Kernels> Backward<B, 4> for BatchNormPrelu {
    type State = NormState<FloatTensor<B>>;

    fn backward(
        self,
        ops: Ops<Self::State, 4>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let [x_node, gamma_node, beta_node, slope_node] = ops.parents;
        let grad = grads.consume::<B>(&ops.node);
        let state = ops.state;
        let out = B::batch_norm_prelu_grad(
            checkpointer.retrieve_node_output(state.x),
            state.mean,
            state.variance,
            checkpointer.retrieve_node_output(state.gamma),
            checkpointer.retrieve_node_output(state.beta),
            checkpointer.retrieve_node_output(state.slope),
            grad,
        );
        for (node, value) in [
            (x_node, out.x),
            (gamma_node, out.gamma),
            (beta_node, out.beta),
            (slope_node, out.slope),
        ] {
            if let Some(node) = node {
                grads.register::<B>(node.id, value);
            }
        }
    }
}

impl<B: Kernels, C: CheckpointStrategy> Kernels for Autodiff<B, C> {
    fn same_conv3d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let nodes = [x.node.clone(), weight.node.clone(), bias.node.clone()];
        match Conv3d.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let state = (prep.checkpoint(&x), prep.checkpoint(&weight));
                let y = B::same_conv3d(x.primitive, weight.primitive, bias.primitive);
                prep.finish(state, y)
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::same_conv3d(x.primitive, weight.primitive, bias.primitive))
            }
        }
    }

    fn batch_norm_prelu(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        slope: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        use burn::tensor::backend::AutodiffBackend;
        let nodes = [
            x.node.clone(),
            gamma.node.clone(),
            beta.node.clone(),
            slope.node.clone(),
        ];
        let (y, mean, variance) = B::batch_norm_prelu(
            x.primitive.clone(),
            gamma.primitive.clone(),
            beta.primitive.clone(),
            slope.primitive.clone(),
        );
        let y = match BatchNormPrelu.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let state = NormState {
                    x: prep.checkpoint(&x),
                    gamma: prep.checkpoint(&gamma),
                    beta: prep.checkpoint(&beta),
                    slope: prep.checkpoint(&slope),
                    mean: mean.clone(),
                    variance: variance.clone(),
                };
                prep.finish(state, y)
            }
            OpsKind::UnTracked(prep) => prep.finish(y),
        };
        (y, Self::from_inner(mean), Self::from_inner(variance))
    }

    fn scale_prelu(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        slope: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        plain::scale_prelu::<Self>(x, scale, shift, slope)
    }
}
