//! Gradients of windowed attention on tensor units. Queries, and keys with values, are sides of one kernel: 16 own tokens of
//! a group against all others of the window, 32 at a time. The bias has its own: a block of 32 by 32 pairs over all windows.

use cubecl::prelude::*;

use super::super::tiles::{
    Block, GROUP, SHARE, SIDE, SUMS_STRIDE, multiply, no_sums, put_down, put_down_row, result,
    sync_group,
};
use super::tiled::{
    HALF, KEY, OTHERS, QUERY, Tiles, VALUE, load_grad, load_part, own_block, pair_terms,
    put_weights,
};

/// Gradient of the queries, or of keys and values where `keys`. `bias` is `[heads, own, other]`.
#[cube(launch_unchecked)]
pub fn tiled_side_grad_kernel<E: Float, S: Float, N: Size>(
    qkv: &Tensor<Vector<E, N>>,
    bias: &Tensor<f32>,
    regions: &Tensor<u32>,
    grad: &Tensor<Vector<E, N>>,
    log_sums: &Tensor<f32>,
    along: &Tensor<f32>,
    out: &mut Tensor<Vector<E, N>>,
    count: usize,
    per_sample: usize,
    scale: f32,
    #[comptime] tiles: Tiles,
    #[comptime] keys: bool,
    #[define(E, S)] _types: [StorageType; 2],
) {
    if CUBE_POS >= count {
        terminate!();
    }
    let by = comptime![tiles.by];
    let (window, head, first_own) = own_block(tiles);
    let at = (window, head);
    let unit = UNIT_POS as usize;
    let group = unit / GROUP;
    let row = unit % GROUP / 2;
    let half = unit % 2;
    let place = first_own + group * SIDE + row;
    let own = min(place, comptime![tiles.tokens - 1]);
    let head_width = comptime![tiles.heads * tiles.lanes()];
    let width = comptime![3 * head_width];
    let start = window * tiles.tokens * width + head * comptime![tiles.lanes()];

    let shared = comptime![tiles.stride() / tiles.vector];
    let own_count = comptime![tiles.groups * SIDE];
    let mut first_side =
        SharedMemory::<Vector<S, N>>::new_aligned(comptime![own_count * shared], 32usize);
    let mut second_side =
        SharedMemory::<Vector<S, N>>::new_aligned(comptime![own_count * shared], 32usize);
    let mut first_other =
        SharedMemory::<Vector<S, N>>::new_aligned(comptime![OTHERS * shared], 32usize);
    let mut second_other =
        SharedMemory::<Vector<S, N>>::new_aligned(comptime![OTHERS * shared], 32usize);
    let weight_row = comptime![tiles.weight_stride() / tiles.vector];
    let mut weights =
        SharedMemory::<Vector<S, N>>::new_aligned(comptime![own_count * weight_row], 32usize);
    let mut down =
        SharedMemory::<f32>::new_aligned(comptime![own_count * tiles.down_stride()], 32usize);
    if comptime![keys] {
        load_part::<E, S, N>(qkv, &mut first_side, at, first_own, KEY, own_count, tiles);
        load_part::<E, S, N>(
            qkv,
            &mut second_side,
            at,
            first_own,
            VALUE,
            own_count,
            tiles,
        );
    } else {
        load_part::<E, S, N>(qkv, &mut first_side, at, first_own, QUERY, own_count, tiles);
        load_grad::<E, S, N>(grad, &mut second_side, at, first_own, own_count, tiles);
    }

    let own_side = group * comptime![SIDE * shared];
    let own_down = group * comptime![SIDE * tiles.down_stride()];
    let own_weights = group * comptime![SIDE * weight_row];
    let weight_to = own_weights + row * weight_row + half * comptime![HALF / tiles.vector];
    let from = own_down + row * comptime![tiles.down_stride()] + half * HALF;
    let token_row = (window * tiles.heads + head) * tiles.tokens;
    let mut first_sums = no_sums(comptime![tiles.dim / SIDE], by);
    let mut second_sums = no_sums(comptime![if keys { tiles.dim / SIDE } else { 1usize }], by);
    for tile in 0..comptime![tiles.tokens.div_ceil(OTHERS)] {
        let first = tile * OTHERS;
        sync_cube();
        if comptime![keys] {
            load_part::<E, S, N>(qkv, &mut first_other, at, first, QUERY, OTHERS, tiles);
            load_grad::<E, S, N>(grad, &mut second_other, at, first, OTHERS, tiles);
        } else {
            load_part::<E, S, N>(qkv, &mut first_other, at, first, KEY, OTHERS, tiles);
            load_part::<E, S, N>(qkv, &mut second_other, at, first, VALUE, OTHERS, tiles);
        }
        sync_cube();

        let mut scores = no_sums(comptime![OTHERS / SIDE], by);
        multiply::<S, N, N>(
            &first_side,
            own_side,
            &first_other,
            0usize,
            &mut scores,
            comptime![tiles.scores()],
            by,
        );
        put_down_row(
            &scores,
            &mut down,
            own_down,
            comptime![OTHERS / SIDE],
            comptime![tiles.down_stride()],
            by,
        );
        sync_group(by);
        let mut p = Array::<f32>::new(HALF);
        #[unroll]
        for j in 0..HALF {
            let other = first + half * HALF + j;
            let seen = min(other, comptime![tiles.tokens - 1]);
            let terms = pair_terms(bias, regions, head, window % per_sample, own, seen, tiles);
            let mut query = own;
            if comptime![keys] {
                query = seen;
            }
            let value = (down[from + j] * scale + terms - log_sums[token_row + query]).exp();
            p[j] = select(other < tiles.tokens, value, 0.0f32);
        }
        if comptime![keys] {
            put_weights::<S, N>(&p, &mut weights, weight_to, by);
        }
        sync_group(by);
        if comptime![keys] {
            multiply::<S, N, N>(
                &weights,
                own_weights,
                &second_other,
                0usize,
                &mut second_sums,
                comptime![tiles.weighted()],
                by,
            );
        }
        let mut back = no_sums(comptime![OTHERS / SIDE], by);
        multiply::<S, N, N>(
            &second_side,
            own_side,
            &second_other,
            0usize,
            &mut back,
            comptime![tiles.scores()],
            by,
        );
        put_down_row(
            &back,
            &mut down,
            own_down,
            comptime![OTHERS / SIDE],
            comptime![tiles.down_stride()],
            by,
        );
        sync_group(by);
        #[unroll]
        for j in 0..HALF {
            let other = first + half * HALF + j;
            let seen = min(other, comptime![tiles.tokens - 1]);
            let mut query = own;
            if comptime![keys] {
                query = seen;
            }
            p[j] = p[j] * (down[from + j] - along[token_row + query]);
        }
        put_weights::<S, N>(&p, &mut weights, weight_to, by);
        sync_group(by);
        multiply::<S, N, N>(
            &weights,
            own_weights,
            &first_other,
            0usize,
            &mut first_sums,
            comptime![tiles.weighted()],
            by,
        );
    }

    let to = start + own * width + half * comptime![tiles.lanes() / 2];
    let half_dim = comptime![tiles.dim / 2];
    let from = own_down + row * comptime![tiles.down_stride()] + half * half_dim;
    let kinds = comptime![if keys { 2usize } else { 1usize }];
    #[unroll]
    for kind in 0..kinds {
        sync_group(by);
        let across = comptime![tiles.dim / SIDE];
        let stride = comptime![tiles.down_stride()];
        if comptime![kind == 0] {
            put_down_row(&first_sums, &mut down, own_down, across, stride, by);
        } else {
            put_down_row(&second_sums, &mut down, own_down, across, stride, by);
        }
        sync_group(by);
        let mut share = 1.0f32;
        if comptime![kind == 0] {
            share = scale;
        }
        let to = to + comptime![(kinds - 1 + kind) * head_width];
        if place < tiles.tokens {
            #[unroll]
            for part in 0..comptime![half_dim / tiles.vector] {
                let mut vector = Vector::<f32, N>::new(0.0f32);
                #[unroll]
                for e in 0..N::value() {
                    vector[e] = down[from + part * N::value() + e] * share;
                }
                out[to + part] = Vector::cast_from(result::<N>(vector, by));
            }
        }
    }
}

/// Gradient of the bias: four groups share a block of 32 queries by 32 keys, over all windows in order. `bias` is
/// `[heads, query, key]`.
#[cube(launch_unchecked)]
pub fn tiled_bias_grad_kernel<E: Float, S: Float, N: Size>(
    qkv: &Tensor<Vector<E, N>>,
    bias: &Tensor<f32>,
    regions: &Tensor<u32>,
    grad: &Tensor<Vector<E, N>>,
    log_sums: &Tensor<f32>,
    along: &Tensor<f32>,
    out: &mut Tensor<f32>,
    count: usize,
    windows: usize,
    per_sample: usize,
    scale: f32,
    #[comptime] tiles: Tiles,
    #[define(E, S)] _types: [StorageType; 2],
) {
    if CUBE_POS >= count {
        terminate!();
    }
    let by = comptime![tiles.by];
    let sides = comptime![tiles.tokens.div_ceil(OTHERS)];
    let head = CUBE_POS / comptime![sides * sides];
    let first_query = CUBE_POS / sides % sides * OTHERS;
    let first_key = CUBE_POS % sides * OTHERS;
    let unit = UNIT_POS as usize;
    let group = unit / GROUP;
    let row = group / 2 * SIDE + unit % GROUP / 2;
    let column = group % 2 * SIDE + unit % 2 * SHARE;

    let shared = comptime![tiles.stride() / tiles.vector];
    let mut queries =
        SharedMemory::<Vector<S, N>>::new_aligned(comptime![OTHERS * shared], 32usize);
    let mut keys = SharedMemory::<Vector<S, N>>::new_aligned(comptime![OTHERS * shared], 32usize);
    let mut values = SharedMemory::<Vector<S, N>>::new_aligned(comptime![OTHERS * shared], 32usize);
    let mut grads = SharedMemory::<Vector<S, N>>::new_aligned(comptime![OTHERS * shared], 32usize);
    let mut down =
        SharedMemory::<f32>::new_aligned(comptime![2 * tiles.groups * SIDE * SUMS_STRIDE], 32usize);
    let product = comptime![Block {
        across: 1,
        ..tiles.scores()
    }];
    let left_start = group / 2 * comptime![SIDE * shared];
    let right_start = group % 2 * comptime![SIDE * shared];
    let place = group * comptime![2 * SIDE * SUMS_STRIDE];
    let from = place + unit % GROUP / 2 * SUMS_STRIDE + unit % 2 * SHARE;
    let query = min(first_query + row, comptime![tiles.tokens - 1]);

    let mut totals = Array::<f32>::new(SHARE);
    #[unroll]
    for e in 0..SHARE {
        totals[e] = 0.0f32;
    }
    for window in 0..windows {
        let at = (window, head);
        sync_cube();
        load_part::<E, S, N>(qkv, &mut queries, at, first_query, QUERY, OTHERS, tiles);
        load_part::<E, S, N>(qkv, &mut keys, at, first_key, KEY, OTHERS, tiles);
        load_part::<E, S, N>(qkv, &mut values, at, first_key, VALUE, OTHERS, tiles);
        load_grad::<E, S, N>(grad, &mut grads, at, first_query, OTHERS, tiles);
        sync_cube();
        let mut scores = no_sums(1usize, by);
        multiply::<S, N, N>(
            &queries,
            left_start,
            &keys,
            right_start,
            &mut scores,
            product,
            by,
        );
        put_down(&scores, 0usize, &mut down, place, by);
        let mut back = no_sums(1usize, by);
        multiply::<S, N, N>(
            &grads,
            left_start,
            &values,
            right_start,
            &mut back,
            product,
            by,
        );
        put_down(
            &back,
            0usize,
            &mut down,
            place + comptime![SIDE * SUMS_STRIDE],
            by,
        );
        sync_group(by);
        let token_row = (window * tiles.heads + head) * tiles.tokens + query;
        let log_sum = log_sums[token_row];
        let own_along = along[token_row];
        #[unroll]
        for e in 0..SHARE {
            let key = min(first_key + column + e, comptime![tiles.tokens - 1]);
            let terms = pair_terms(bias, regions, head, window % per_sample, query, key, tiles);
            let p = (down[from + e] * scale + terms - log_sum).exp();
            totals[e] += p * (down[from + comptime![SIDE * SUMS_STRIDE] + e] - own_along);
        }
    }
    if first_query + row < tiles.tokens {
        #[unroll]
        for e in 0..SHARE {
            let key = first_key + column + e;
            if key < tiles.tokens {
                out[(head * tiles.tokens + query) * tiles.tokens + key] = totals[e];
            }
        }
    }
}
