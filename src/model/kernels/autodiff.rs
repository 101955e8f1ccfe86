//! Backward passes of [`Kernels`](super::Kernels) for burn's autodiff.

use burn::backend::autodiff::{
    Autodiff, NodeId,
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::tensor::{
    Shape,
    backend::{AutodiffBackend, Backend},
    ops::FloatTensor,
};

use super::{AttentionLayout, Keep, Kernels, RowIndex, VoxelLabels, plain, raw, wrap};
use crate::rng::Rng;

fn register<B: Backend>(grads: &mut Gradients, node: Option<NodeId>, value: FloatTensor<B>) {
    if let Some(node) = node {
        grads.register::<B>(node, value);
    }
}

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
        if weight_node.is_some() || bias_node.is_some() {
            let (weight_grad, bias_grad) =
                B::same_conv3d_weight_grad(x, weight.clone(), grad.clone());
            register::<B>(grads, weight_node.map(|n| n.id), weight_grad);
            register::<B>(grads, bias_node.map(|n| n.id), bias_grad);
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
        register::<B>(grads, x_node.map(|n| n.id), out.x);
        register::<B>(grads, gamma_node.map(|n| n.id), out.gamma);
        register::<B>(grads, beta_node.map(|n| n.id), out.beta);
        register::<B>(grads, slope_node.map(|n| n.id), out.slope);
    }
}

#[derive(Debug)]
struct BatchNormConv;

impl<B: Kernels> Backward<B, 6> for BatchNormConv {
    /// The normalisation's, and the weight.
    type State = (NormState<FloatTensor<B>>, NodeId);

    fn backward(
        self,
        ops: Ops<Self::State, 6>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let (state, weight) = ops.state;
        let out = B::batch_norm_conv3d_grad(
            checkpointer.retrieve_node_output(state.x),
            state.mean,
            state.variance,
            checkpointer.retrieve_node_output(state.gamma),
            checkpointer.retrieve_node_output(state.beta),
            checkpointer.retrieve_node_output(state.slope),
            checkpointer.retrieve_node_output(weight),
            grad,
        );
        let norm = out.norm;
        let values = [
            norm.x, norm.gamma, norm.beta, norm.slope, out.weight, out.bias,
        ];
        for (node, value) in ops.parents.into_iter().zip(values) {
            register::<B>(grads, node.map(|n| n.id), value);
        }
    }
}

#[derive(Debug)]
struct LayerNorm;

impl<B: Kernels> Backward<B, 3> for LayerNorm {
    /// The input and the scale.
    type State = (NodeId, NodeId);

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let x = checkpointer.retrieve_node_output(ops.state.0);
        let gamma = checkpointer.retrieve_node_output(ops.state.1);
        let values = B::row_norm_grad(x, gamma, grad);
        for (node, value) in ops.parents.into_iter().zip(values) {
            register::<B>(grads, node.map(|n| n.id), value);
        }
    }
}

/// Operations of one tensor whose gradient needs that tensor or the result.
macro_rules! unary {
    ($name:ident, $state:ty, |$kept:ident, $state_value:ident, $grad:ident| $backward:expr) => {
        #[derive(Debug)]
        struct $name;

        impl<B: Kernels> Backward<B, 1> for $name {
            type State = $state;

            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                grads: &mut Gradients,
                checkpointer: &mut Checkpointer,
            ) {
                let $grad = grads.consume::<B>(&ops.node);
                let [node] = ops.parents;
                let $state_value = ops.state;
                let mut $kept =
                    |id: NodeId| -> FloatTensor<B> { checkpointer.retrieve_node_output(id) };
                register::<B>(grads, node.map(|n| n.id), $backward);
            }
        }
    };
}

unary!(ExactGelu, NodeId, |kept, x, grad| B::exact_gelu_grad(
    kept(x),
    grad
));
unary!(MaxPool, (NodeId, bool), |kept, state, grad| {
    B::max_pool_grad(kept(state.0), state.1, grad)
});

#[derive(Debug)]
struct SwapRows;

impl<B: Kernels> Backward<B, 1> for SwapRows {
    type State = ();

    fn backward(self, ops: Ops<(), 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let [node] = ops.parents;
        register::<B>(grads, node.map(|n| n.id), B::swap_rows(grad));
    }
}

#[derive(Debug)]
struct GatherRows;

impl<B: Kernels> Backward<B, 1> for GatherRows {
    type State = RowIndex;

    fn backward(self, ops: Ops<RowIndex, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let [node] = ops.parents;
        register::<B>(
            grads,
            node.map(|n| n.id),
            B::gather_rows(grad, &ops.state.inverse()),
        );
    }
}

#[derive(Debug)]
struct Linear;

impl<B: Kernels> Backward<B, 3> for Linear {
    /// The input and the weight.
    type State = (NodeId, NodeId);

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let x = checkpointer.retrieve_node_output(ops.state.0);
        let weight = checkpointer.retrieve_node_output(ops.state.1);
        let values = B::row_linear_grad(x, weight, grad);
        for (node, value) in ops.parents.into_iter().zip(values) {
            register::<B>(grads, node.map(|n| n.id), value);
        }
    }
}

#[derive(Debug)]
struct WindowAttention;

impl<B: Kernels> Backward<B, 2> for WindowAttention {
    /// `qkv`, the bias, and the layout. The weights are computed again: they would be by far the largest tensor kept.
    type State = (NodeId, NodeId, AttentionLayout);

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let qkv = checkpointer.retrieve_node_output(ops.state.0);
        let bias = checkpointer.retrieve_node_output(ops.state.1);
        let values = B::window_attention_grad(qkv, bias, &ops.state.2, grad);
        for (node, value) in ops.parents.into_iter().zip(values) {
            register::<B>(grads, node.map(|n| n.id), value);
        }
    }
}

#[derive(Debug)]
struct BlocksToSpace;

impl<B: Kernels> Backward<B, 2> for BlocksToSpace {
    /// The kernel.
    type State = [usize; 3];

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let [x_node, bias_node] = ops.parents;
        register::<B>(grads, bias_node.map(|n| n.id), B::channel_sum(grad.clone()));
        register::<B>(
            grads,
            x_node.map(|n| n.id),
            B::blocks_to_space_grad(grad, ops.state),
        );
    }
}

#[derive(Debug)]
struct DiceCrossEntropy;

impl<B: Kernels> Backward<B, 1> for DiceCrossEntropy {
    /// The gradient of the logits for a gradient of 1.
    type State = FloatTensor<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = wrap::<B, 1>(grads.consume::<B>(&ops.node));
        let [node] = ops.parents;
        let logits_grad = wrap::<B, 5>(ops.state) * grad.reshape([1, 1, 1, 1, 1]);
        register::<B>(grads, node.map(|n| n.id), raw(logits_grad));
    }
}

impl<B: Kernels, C: CheckpointStrategy> Kernels for Autodiff<B, C> {
    fn keep_mask(rng: &Rng, shape: Shape, keep: Keep, device: &Self::Device) -> FloatTensor<Self> {
        Self::from_inner(B::keep_mask(rng, shape, keep, device))
    }

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
            OpsKind::UnTracked(prep) => prep.finish(B::same_conv3d(
                x.primitive,
                weight.primitive,
                bias.primitive,
            )),
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
        let y = match BatchNormPrelu
            .prepare::<C>(nodes)
            .compute_bound()
            .stateful()
        {
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

    fn batch_norm_conv3d(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        slope: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        use burn::tensor::backend::AutodiffBackend;
        let nodes = [&x, &gamma, &beta, &slope, &weight, &bias].map(|t| t.node.clone());
        let (y, mean, variance) = B::batch_norm_conv3d(
            x.primitive.clone(),
            gamma.primitive.clone(),
            beta.primitive.clone(),
            slope.primitive.clone(),
            weight.primitive.clone(),
            bias.primitive,
        );
        let prepared = BatchNormConv.prepare::<C>(nodes).compute_bound().stateful();
        let y = match prepared {
            OpsKind::Tracked(mut prep) => {
                let state = NormState {
                    x: prep.checkpoint(&x),
                    gamma: prep.checkpoint(&gamma),
                    beta: prep.checkpoint(&beta),
                    slope: prep.checkpoint(&slope),
                    mean: mean.clone(),
                    variance: variance.clone(),
                };
                let state = (state, prep.checkpoint(&weight));
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

    fn max_pool(x: FloatTensor<Self>, depth: bool) -> FloatTensor<Self> {
        match MaxPool
            .prepare::<C>([x.node.clone()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(mut prep) => {
                let state = (prep.checkpoint(&x), depth);
                prep.finish(state, B::max_pool(x.primitive, depth))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::max_pool(x.primitive, depth)),
        }
    }

    fn row_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let nodes = [x.node.clone(), gamma.node.clone(), beta.node.clone()];
        match LayerNorm.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let state = (prep.checkpoint(&x), prep.checkpoint(&gamma));
                let y = B::row_norm(x.primitive, gamma.primitive, beta.primitive);
                prep.finish(state, y)
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::row_norm(x.primitive, gamma.primitive, beta.primitive))
            }
        }
    }

    fn exact_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        match ExactGelu
            .prepare::<C>([x.node.clone()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(mut prep) => {
                let state = prep.checkpoint(&x);
                prep.finish(state, B::exact_gelu(x.primitive))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::exact_gelu(x.primitive)),
        }
    }

    fn row_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let nodes = [x.node.clone(), weight.node.clone(), bias.node.clone()];
        match Linear.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let state = (prep.checkpoint(&x), prep.checkpoint(&weight));
                prep.finish(
                    state,
                    B::row_linear(x.primitive, weight.primitive, bias.primitive),
                )
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::row_linear(x.primitive, weight.primitive, bias.primitive))
            }
        }
    }

    fn swap_rows(x: FloatTensor<Self>) -> FloatTensor<Self> {
        SwapRows
            .prepare::<C>([x.node.clone()])
            .compute_bound()
            .stateless(B::swap_rows(x.primitive))
    }

    fn gather_rows(x: FloatTensor<Self>, index: &RowIndex) -> FloatTensor<Self> {
        let y = B::gather_rows(x.primitive, index);
        match GatherRows.prepare::<C>([x.node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(index.clone(), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn window_attention(
        qkv: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        layout: &AttentionLayout,
    ) -> FloatTensor<Self> {
        let nodes = [qkv.node.clone(), bias.node.clone()];
        match WindowAttention
            .prepare::<C>(nodes)
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(mut prep) => {
                let state = (
                    prep.checkpoint(&qkv),
                    prep.checkpoint(&bias),
                    layout.clone(),
                );
                prep.finish(
                    state,
                    B::window_attention(qkv.primitive, bias.primitive, layout),
                )
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::window_attention(qkv.primitive, bias.primitive, layout))
            }
        }
    }

    fn blocks_to_space(
        x: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        kernel: [usize; 3],
    ) -> FloatTensor<Self> {
        let y = B::blocks_to_space(x.primitive, bias.primitive, kernel);
        match BlocksToSpace
            .prepare::<C>([x.node, bias.node])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => prep.finish(kernel, y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn dice_cross_entropy_loss(
        logits: FloatTensor<Self>,
        labels: &VoxelLabels,
    ) -> Option<FloatTensor<Self>> {
        let (loss, grad) = B::dice_cross_entropy(logits.primitive, labels)?;
        let prepared = DiceCrossEntropy
            .prepare::<C>([logits.node])
            .compute_bound()
            .stateful();
        Some(match prepared {
            OpsKind::Tracked(prep) => prep.finish(grad, loss),
            OpsKind::UnTracked(prep) => prep.finish(loss),
        })
    }
}
