//! Attention inside windows on tensor units: one cube per window, head and block of queries, a group per 16 queries, keys and
//! values streamed through shared memory, 32 at a time. Scores leave the product's sums through shared memory, where each
//! unit adds bias and mask to half a row of them; the running maximum, sum and result of that row stay in its registers.

use burn::tensor::DType;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::super::layout::{cubes, empty, sides};
use super::super::tiles::{
    Block, GROUP, Multiplier, SIDE, factor, load_vector, multiplier, multiply, no_sums,
    put_down_row, result, sync_group,
};
use super::{Call, LOWEST, score_terms};
use crate::model::kernels::{AttentionLayout, NO_ROW};

/// Tokens of the other side that are in shared memory at a time.
pub const OTHERS: usize = 32;
/// The parts of a token, in the order in which they lie in memory.
pub const QUERY: usize = 0;
pub const KEY: usize = 1;
pub const VALUE: usize = 2;
/// Scores of a row that one unit handles.
pub const HALF: usize = OTHERS / 2;

/// Sizes that the kernels are compiled for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Tiles {
    pub heads: usize,
    /// Tokens of a window.
    pub tokens: usize,
    /// Channels of a head.
    pub dim: usize,
    /// Values that are read at once.
    pub vector: usize,
    /// Groups of a cube.
    pub groups: usize,
    /// Cubes of a window and head.
    pub blocks: usize,
    /// Tokens of different regions are masked.
    pub masked: bool,
    pub by: Multiplier,
}

impl Tiles {
    /// For maps like `like` of heads with `dim` channels, when those are whole tiles; `operands` tiles of tokens by
    /// channels are kept by each group.
    pub fn new<R: CubeRuntime>(
        like: &CubeTensor<R>,
        layout: &AttentionLayout,
        tokens: usize,
        dim: usize,
        operands: usize,
    ) -> Option<Self> {
        let by = multiplier(like).filter(|_| dim.is_multiple_of(SIDE) && dim <= 128)?;
        let rows = tokens.div_ceil(SIDE);
        let limit = like.client.properties().hardware.max_shared_memory_size;
        let vector = load_vector(like);
        (1..=8usize).rev().find_map(|most| {
            let blocks = rows.div_ceil(most);
            let tiles = Self {
                heads: layout.heads,
                tokens,
                dim,
                vector,
                groups: rows.div_ceil(blocks),
                blocks,
                masked: layout.regions.is_some(),
                by,
            };
            (tiles.shared_bytes(operands) <= limit).then_some(tiles)
        })
    }

    fn shared_bytes(&self, operands: usize) -> usize {
        let factors = 2 * OTHERS * self.stride()
            + self.groups * SIDE * (operands * self.stride() + self.weight_stride());
        let sums = self.groups * (SIDE * self.down_stride() + GROUP);
        factors * self.by.storage().size() + sums * 4
    }

    pub fn units(&self) -> usize {
        self.groups * GROUP
    }

    /// Distance of tokens in shared memory.
    pub fn stride(&self) -> usize {
        self.dim + self.vector
    }

    /// Distance of the rows of attention weights.
    pub fn weight_stride(&self) -> usize {
        OTHERS + self.vector
    }

    /// Distance of rows of sums.
    pub fn down_stride(&self) -> usize {
        self.dim.max(OTHERS) + 4
    }

    /// Vectors of a head.
    pub fn lanes(&self) -> usize {
        self.dim / self.vector
    }

    /// Cubes of a call.
    pub fn cubes(&self, windows: usize) -> usize {
        windows * self.heads * self.blocks
    }

    /// Scores of 16 own tokens with the others.
    pub fn scores(&self) -> Block {
        Block {
            down: 1,
            across: OTHERS / SIDE,
            terms: self.dim,
            left_stride: self.stride(),
            right_stride: self.stride(),
            left_by_term: false,
            right_by_term: false,
        }
    }

    /// Weights of 16 own tokens times the others' channels.
    pub fn weighted(&self) -> Block {
        Block {
            down: 1,
            across: self.dim / SIDE,
            terms: OTHERS,
            left_stride: self.weight_stride(),
            right_stride: self.stride(),
            left_by_term: false,
            right_by_term: true,
        }
    }
}

/// Window, head and first own token of this cube.
#[cube]
pub fn own_block(#[comptime] tiles: Tiles) -> (usize, usize, usize) {
    let block = CUBE_POS % tiles.blocks;
    let head = CUBE_POS / tiles.blocks % tiles.heads;
    let window = CUBE_POS / comptime![tiles.blocks * tiles.heads];
    (window, head, block * comptime![tiles.groups * SIDE])
}

/// Tokens `first..first + count` of a head into shared memory as factors, zeros behind the last. `width` vectors lie
/// between one token and the next in memory; the head's begin at `start` in the first token of the window.
#[cube]
fn load_tokens<E: Float, S: Float, N: Size>(
    from: &Tensor<Vector<E, N>>,
    tile: &mut SharedMemory<Vector<S, N>>,
    start: usize,
    width: usize,
    first: usize,
    #[comptime] count: usize,
    #[comptime] tiles: Tiles,
) {
    for i in range_stepped(
        UNIT_POS as usize,
        comptime![count * tiles.lanes()],
        comptime![tiles.units()],
    ) {
        let token = i / comptime![tiles.lanes()];
        let lane = i % comptime![tiles.lanes()];
        let mut value = Vector::<f32, N>::new(0.0f32);
        if first + token < tiles.tokens {
            value = Vector::cast_from(from[start + (first + token) * width + lane]);
        }
        tile[token * comptime![tiles.stride() / tiles.vector] + lane] =
            factor::<S, N>(value, tiles.by);
    }
}

/// [`load_tokens`] of a whole map's tokens: `rows` says which one each token of the window is (they begin at `window_start`
/// there), and `outside` what tokens beyond the map have. `column` is the first vector in the row of a token.
#[cube]
fn load_indexed<E: Float, S: Float, N: Size>(
    from: &Tensor<Vector<E, N>>,
    tile: &mut SharedMemory<Vector<S, N>>,
    rows: &Tensor<u32>,
    outside: &Tensor<Vector<f32, N>>,
    window_start: usize,
    first_row: usize,
    column: usize,
    first: usize,
    #[comptime] count: usize,
    #[comptime] tiles: Tiles,
) {
    for i in range_stepped(
        UNIT_POS as usize,
        comptime![count * tiles.lanes()],
        comptime![tiles.units()],
    ) {
        let token = i / comptime![tiles.lanes()];
        let lane = i % comptime![tiles.lanes()];
        let mut value = Vector::<f32, N>::new(0.0f32);
        if first + token < tiles.tokens {
            let row = rows[window_start + first + token];
            if row == NO_ROW {
                value = outside[column + lane];
            } else {
                let width = comptime![3 * tiles.heads * tiles.lanes()];
                value = Vector::cast_from(from[(first_row + row as usize) * width + column + lane]);
            }
        }
        tile[token * comptime![tiles.stride() / tiles.vector] + lane] =
            factor::<S, N>(value, tiles.by);
    }
}

/// Queries ([`QUERY`]), keys or values of tokens of a window and a head, the two of `own`.
#[cube]
pub fn load_part<E: Float, S: Float, N: Size>(
    qkv: &Tensor<Vector<E, N>>,
    tile: &mut SharedMemory<Vector<S, N>>,
    own: (usize, usize),
    first: usize,
    #[comptime] part: usize,
    #[comptime] count: usize,
    #[comptime] tiles: Tiles,
) {
    let (window, head) = own;
    let width = comptime![3 * tiles.heads * tiles.lanes()];
    let column = (comptime![part * tiles.heads] + head) * comptime![tiles.lanes()];
    let start = window * tiles.tokens * width + column;
    load_tokens::<E, S, N>(qkv, tile, start, width, first, count, tiles);
}

/// The gradient of the results, of tokens of a window and a head.
#[cube]
pub fn load_grad<E: Float, S: Float, N: Size>(
    grad: &Tensor<Vector<E, N>>,
    tile: &mut SharedMemory<Vector<S, N>>,
    own: (usize, usize),
    first: usize,
    #[comptime] count: usize,
    #[comptime] tiles: Tiles,
) {
    let (window, head) = own;
    let width = comptime![tiles.heads * tiles.lanes()];
    let start = window * tiles.tokens * width + head * comptime![tiles.lanes()];
    load_tokens::<E, S, N>(grad, tile, start, width, first, count, tiles);
}

/// [`load_part`] of a window or, where `indexed`, of the map.
#[cube]
fn load_kind<E: Float, S: Float, N: Size>(
    from: &Tensor<Vector<E, N>>,
    tile: &mut SharedMemory<Vector<S, N>>,
    rows: &Tensor<u32>,
    outside: &Tensor<Vector<f32, N>>,
    window: usize,
    map: (usize, usize),
    head: usize,
    first: usize,
    #[comptime] kind: usize,
    #[comptime] count: usize,
    #[comptime] indexed: bool,
    #[comptime] tiles: Tiles,
) {
    if comptime![indexed] {
        let column = (comptime![kind * tiles.heads] + head) * comptime![tiles.lanes()];
        let (windows, map_tokens) = map;
        let window_start = window % windows * tiles.tokens;
        let first_row = window / windows * map_tokens;
        load_indexed::<E, S, N>(
            from,
            tile,
            rows,
            outside,
            window_start,
            first_row,
            column,
            first,
            count,
            tiles,
        );
    } else {
        load_part::<E, S, N>(from, tile, (window, head), first, kind, count, tiles);
    }
}

/// What is added to the score of an own token with another.
#[cube]
pub fn pair_terms(
    bias: &Tensor<f32>,
    regions: &Tensor<u32>,
    head: usize,
    in_sample: usize,
    own: usize,
    other: usize,
    #[comptime] tiles: Tiles,
) -> f32 {
    let add = bias[(head * tiles.tokens + own) * tiles.tokens + other];
    score_terms(
        add,
        regions,
        in_sample,
        own,
        other,
        tiles.tokens,
        tiles.masked,
    )
}

/// Half a row of attention weights into shared memory as factors.
#[cube]
pub fn put_weights<S: Float, N: Size>(
    values: &Array<f32>,
    shared: &mut SharedMemory<Vector<S, N>>,
    to: usize,
    #[comptime] by: Multiplier,
) {
    let size = N::value().comptime();
    #[unroll]
    for part in 0..comptime![HALF / size] {
        let mut vector = Vector::<f32, N>::new(0.0f32);
        #[unroll]
        for e in 0..N::value() {
            vector[e] = values[part * N::value() + e];
        }
        shared[to + part] = factor::<S, N>(vector, by);
    }
}

#[cube(launch_unchecked)]
pub fn tiled_attention_kernel<E: Float, S: Float, N: Size>(
    qkv: &Tensor<Vector<E, N>>,
    bias: &Tensor<f32>,
    regions: &Tensor<u32>,
    rows: &Tensor<u32>,
    outside: &Tensor<Vector<f32, N>>,
    out: &mut Tensor<Vector<E, N>>,
    log_sums: &mut Tensor<f32>,
    count: usize,
    per_sample: usize,
    map_windows: usize,
    map_tokens: usize,
    scale: f32,
    #[comptime] tiles: Tiles,
    #[comptime] keep: bool,
    #[comptime] indexed: bool,
    #[define(E, S)] _types: [StorageType; 2],
) {
    if CUBE_POS >= count {
        terminate!();
    }
    let by = comptime![tiles.by];
    let (window, head, first_query) = own_block(tiles);
    let unit = UNIT_POS as usize;
    let group = unit / GROUP;
    let row = unit % GROUP / 2;
    let half = unit % 2;
    let own = first_query + group * SIDE + row;
    let query = min(own, comptime![tiles.tokens - 1]);
    let map = (map_windows, map_tokens);

    let shared = comptime![tiles.stride() / tiles.vector];
    let mut queries =
        SharedMemory::<Vector<S, N>>::new_aligned(comptime![tiles.groups * SIDE * shared], 32usize);
    let mut keys = SharedMemory::<Vector<S, N>>::new_aligned(comptime![OTHERS * shared], 32usize);
    let mut values = SharedMemory::<Vector<S, N>>::new_aligned(comptime![OTHERS * shared], 32usize);
    let weight_row = comptime![tiles.weight_stride() / tiles.vector];
    let mut weights = SharedMemory::<Vector<S, N>>::new_aligned(
        comptime![tiles.groups * SIDE * weight_row],
        32usize,
    );
    let mut down = SharedMemory::<f32>::new_aligned(
        comptime![tiles.groups * SIDE * tiles.down_stride()],
        32usize,
    );
    let mut pairs = SharedMemory::<f32>::new(comptime![tiles.units()]);
    let query_count = comptime![tiles.groups * SIDE];
    load_kind::<E, S, N>(
        qkv,
        &mut queries,
        rows,
        outside,
        window,
        map,
        head,
        first_query,
        QUERY,
        query_count,
        indexed,
        tiles,
    );

    let own_down = group * comptime![SIDE * tiles.down_stride()];
    let own_weights = group * comptime![SIDE * weight_row];
    let half_dim = comptime![tiles.dim / 2];
    let mut o = Array::<f32>::new(half_dim);
    #[unroll]
    for d in 0..half_dim {
        o[d] = 0.0f32;
    }
    let mut largest = f32::new(LOWEST);
    let mut sum = 0.0f32;
    for tile in 0..comptime![tiles.tokens.div_ceil(OTHERS)] {
        let first = tile * OTHERS;
        sync_cube();
        load_kind::<E, S, N>(
            qkv, &mut keys, rows, outside, window, map, head, first, KEY, OTHERS, indexed, tiles,
        );
        load_kind::<E, S, N>(
            qkv,
            &mut values,
            rows,
            outside,
            window,
            map,
            head,
            first,
            VALUE,
            OTHERS,
            indexed,
            tiles,
        );
        sync_cube();

        let mut products = no_sums(comptime![OTHERS / SIDE], by);
        multiply::<S, N, N>(
            &queries,
            group * comptime![SIDE * shared],
            &keys,
            0usize,
            &mut products,
            comptime![tiles.scores()],
            by,
        );
        put_down_row(
            &products,
            &mut down,
            own_down,
            comptime![OTHERS / SIDE],
            comptime![tiles.down_stride()],
            by,
        );
        sync_group(by);
        let mut scores = Array::<f32>::new(HALF);
        let mut top = f32::new(LOWEST);
        #[unroll]
        for j in 0..HALF {
            let key = first + half * HALF + j;
            let seen = min(key, comptime![tiles.tokens - 1]);
            let from = own_down + row * comptime![tiles.down_stride()] + half * HALF + j;
            let terms = pair_terms(bias, regions, head, window % per_sample, query, seen, tiles);
            let score = down[from] * scale + terms;
            scores[j] = select(key < tiles.tokens, score, f32::new(LOWEST));
            top = max(top, scores[j]);
        }
        pairs[unit] = top;
        sync_group(by);
        // The other half of the row is the neighbour's.
        let top = max(largest, max(top, pairs[unit + 1 - half * 2]));
        let shrink = (largest - top).exp();
        sum *= shrink;
        #[unroll]
        for j in 0..HALF {
            scores[j] = (scores[j] - top).exp();
            sum += scores[j];
        }
        let to = own_weights + row * weight_row + half * comptime![HALF / tiles.vector];
        put_weights::<S, N>(&scores, &mut weights, to, by);
        largest = top;
        sync_group(by);
        let mut products = no_sums(comptime![tiles.dim / SIDE], by);
        multiply::<S, N, N>(
            &weights,
            own_weights,
            &values,
            0usize,
            &mut products,
            comptime![tiles.weighted()],
            by,
        );
        put_down_row(
            &products,
            &mut down,
            own_down,
            comptime![tiles.dim / SIDE],
            comptime![tiles.down_stride()],
            by,
        );
        sync_group(by);
        let from = own_down + row * comptime![tiles.down_stride()] + half * half_dim;
        #[unroll]
        for d in 0..half_dim {
            o[d] = o[d] * shrink + down[from + d];
        }
    }
    sync_group(by);
    pairs[unit] = sum;
    sync_group(by);
    sum += pairs[unit + 1 - half * 2];
    let mut token = window * tiles.tokens + query;
    let mut there = own < tiles.tokens;
    if comptime![indexed] {
        let row = rows[window % map_windows * tiles.tokens + query];
        there = there && row != NO_ROW;
        token = window / map_windows * map_tokens + row as usize;
    }
    if there {
        let to = (token * tiles.heads + head) * comptime![tiles.lanes()]
            + half * comptime![tiles.lanes() / 2];
        #[unroll]
        for part in 0..comptime![half_dim / tiles.vector] {
            let mut vector = Vector::<f32, N>::new(0.0f32);
            #[unroll]
            for e in 0..N::value() {
                vector[e] = o[part * N::value() + e];
            }
            let value = vector * Vector::new(1.0f32 / sum);
            out[to + part] = Vector::cast_from(result::<N>(value, by));
        }
        if keep && half == 0 {
            log_sums[(window * tiles.heads + head) * tiles.tokens + query] = largest + sum.ln();
        }
    }
}

/// The result, and the logarithm of each token's sum of exponentials when it is to be kept. `bias` is
/// `[heads, query, key]`.
pub fn forward<R: CubeRuntime>(
    call: &Call<R>,
    bias: CubeTensor<R>,
    keep: bool,
    tiles: Tiles,
) -> (CubeTensor<R>, CubeTensor<R>) {
    let [windows, tokens, _] = sides(&call.qkv);
    let out = empty(
        &call.qkv,
        [windows, tokens, tiles.heads * tiles.dim],
        call.qkv.dtype,
    );
    let kept = if keep {
        windows * tiles.heads * tokens
    } else {
        1
    };
    let log_sums = empty(&call.qkv, [kept], DType::F32);
    let nothing = |dtype| empty(&call.qkv, [8], dtype);
    let dim = CubeDim::new_1d(tiles.units() as u32);
    let count = tiles.cubes(windows);
    // SAFETY: cubes behind the last return at once; tokens are clamped to the window or replaced by zeros before they index,
    // and only units of a token of the window write.
    unsafe {
        tiled_attention_kernel::launch_unchecked(
            &out.client,
            cubes(&out, count, dim),
            dim,
            tiles.vector,
            call.qkv.clone().into_tensor_arg(),
            bias.into_tensor_arg(),
            call.regions.clone().into_tensor_arg(),
            nothing(DType::U32).into_tensor_arg(),
            nothing(DType::F32).into_tensor_arg(),
            out.clone().into_tensor_arg(),
            log_sums.clone().into_tensor_arg(),
            count,
            call.per_sample,
            1,
            1,
            call.scale,
            tiles,
            keep,
            false,
            [call.qkv.dtype.into(), tiles.by.storage()],
        );
    }
    (out, log_sums)
}
