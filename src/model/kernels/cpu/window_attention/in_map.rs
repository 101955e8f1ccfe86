//! Attention that reads queries, keys and values out of feature maps and writes the result into one, window by window in cache.

use super::super::Isa;
use super::super::micro::transpose;
use super::super::simd::{Output, ranges, with_scratch};
use super::super::tokens::EMPTY;
use super::{AttentionBias, AttentionShape, One, exponentials, scale, top};
use rayon::prelude::*;

/// Queries, keys and values as channels of one map.
#[derive(Clone, Copy, Debug)]
pub struct AttentionMap<'a> {
    /// `[3 * heads * dim, voxels]`: queries, keys, values, each by head.
    pub qkv: &'a [f32],
    /// What each channel of `qkv` is for tokens outside the map, `[3 * heads * dim]`.
    pub outside: &'a [f32],
    /// Voxel of each token of each window, `[windows, tokens]`, or [`EMPTY`]. No voxel stands twice.
    pub index: &'a [u32],
}

/// Window attention of a map, `[heads * dim, voxels]` into `y`. Every voxel must be in a window.
pub fn window_attention_in_map(
    map: AttentionMap<'_>,
    bias: AttentionBias<'_>,
    shape: AttentionShape,
    y: &mut [f32],
) {
    window_attention_in_map_on(Isa::best(), map, bias, shape, y)
}

pub(super) fn window_attention_in_map_on(
    isa: Isa,
    map: AttentionMap<'_>,
    bias: AttentionBias<'_>,
    shape: AttentionShape,
    y: &mut [f32],
) {
    let channels = shape.heads * shape.dim;
    let voxels = y.len() / channels.max(1);
    assert_eq!(
        [y.len(), map.qkv.len(), map.outside.len(), map.index.len()],
        [
            channels * voxels,
            3 * channels * voxels,
            3 * channels,
            shape.windows * shape.tokens
        ],
        "attention in a map: lengths of result, qkv, outside and index"
    );
    bias.check(shape);
    let y = Output::over(y);
    let groups: Vec<_> = ranges(shape.windows, GROUP).collect();
    (0..groups.len() * shape.heads)
        .into_par_iter()
        .for_each(|task| {
            let (windows, head) = (groups[task / shape.heads].clone(), task % shape.heads);
            let windows: Vec<Window<'_>> = windows
                .map(|window| {
                    let one = One::new(isa, bias, shape, window * shape.heads + head);
                    Window::new(one, &map.index[window * shape.tokens..][..shape.tokens])
                })
                .collect();
            let channels = Channels {
                map,
                all: channels,
                first: head * shape.dim,
                voxels,
            };
            in_map(&windows, channels, &y);
        });
}

/// Windows of a task. They are neighbours along x, and share the cache lines of the map: each channel is read for all of them before the next
/// one, because channels often lie a power of two apart and push each other out of the few sets of a cache that they share.
const GROUP: usize = 6;

struct Window<'a> {
    one: One<'a>,
    /// All tokens.
    runs: Vec<Run>,
    /// Those in the map. Nobody reads what the others would have asked: where a map is little wider than a window they are
    /// most of all.
    inside: Vec<Run>,
    /// Number of each token in the map.
    asking: Vec<usize>,
}

impl<'a> Window<'a> {
    /// `index`: the voxel of each token, or [`EMPTY`].
    fn new(one: One<'a>, index: &[u32]) -> Self {
        let runs = runs(index);
        let inside = runs.iter().filter(|run| run.voxel.is_some()).copied();
        let tokens = index.iter().enumerate();
        Self {
            one,
            inside: inside.collect(),
            asking: tokens
                .filter(|(_, voxel)| **voxel != EMPTY)
                .map(|(token, _)| token)
                .collect(),
            runs,
        }
    }
}

/// The channels of a head.
#[derive(Clone, Copy)]
struct Channels<'a> {
    map: AttentionMap<'a>,
    /// Channels of all heads together.
    all: usize,
    /// First channel of this head.
    first: usize,
    voxels: usize,
}

impl<'a> Channels<'a> {
    /// Channel `d` of the queries (0), keys (1) or values (2), and its value outside of the map.
    fn get(&self, part: usize, d: usize) -> (&'a [f32], f32) {
        let channel = part * self.all + self.first + d;
        let values = &self.map.qkv[channel * self.voxels..][..self.voxels];
        (values, self.map.outside[channel])
    }
}

fn in_map(windows: &[Window<'_>], channels: Channels<'_>, y: &Output<'_>) {
    let Some(Window { one, .. }) = windows.first() else {
        return;
    };
    let (rows, tokens, dim) = (one.micro.rows, one.tokens, one.dim);
    // Rows of channels, with room for the move by which a run goes too far.
    let (step, wide) = (tokens + MOVE, one.wide);
    let (part, k_part) = (dim * step, dim * wide + MOVE);
    let lens = [
        windows.len() * part,
        windows.len() * k_part,
        windows.len() * part,
        tokens * one.narrow,
        rows * dim,
        rows * wide,
        rows * tokens,
        rows * one.narrow,
    ];
    with_scratch(lens, |[q, k, v, v_wide, queries, scores, weights, sums]| {
        for d in 0..dim {
            let values = [0, 1, 2].map(|part| channels.get(part, d));
            for (i, window) in windows.iter().enumerate() {
                gather(values[0], &window.inside, &mut q[i * part + d * step..]);
                gather(values[1], &window.runs, &mut k[i * k_part + d * wide..]);
                gather(values[2], &window.runs, &mut v[i * part + d * step..]);
            }
        }
        let each = q
            .chunks_exact_mut(part)
            .zip(k.chunks_exact(k_part))
            .zip(v.chunks_exact(part));
        for (Window { one, asking, .. }, ((q, k), v)) in windows.iter().zip(each) {
            transpose(one.isa, v, step, dim, tokens, v_wide, one.narrow);
            for block in ranges(asking.len(), rows) {
                for (d, queries) in queries.chunks_exact_mut(rows).take(dim).enumerate() {
                    let (to, rest) = queries.split_at_mut(block.len());
                    to.copy_from_slice(&q[d * step + block.start..][..block.len()]);
                    rest.fill(0.0);
                }
                one.multiply(queries, dim, k, wide, scores);
                // The weights of a query are divided by their sum after they were used: that is shorter.
                let mut divisors = [1.0; MOST_ROWS];
                for ((&row, scores), divisor) in asking[block.clone()]
                    .iter()
                    .zip(scores.chunks_exact_mut(wide))
                    .zip(&mut divisors)
                {
                    let scores = &mut scores[..tokens];
                    one.add_bias(row, scores);
                    let top = top(one.isa, scores);
                    *divisor = exponentials(one.isa, scores, top);
                }
                one.pack(scores, wide, block.len(), tokens, weights);
                one.multiply(weights, tokens, v_wide, one.narrow, sums);
                for (sums, divisor) in sums.chunks_exact_mut(one.narrow).zip(divisors) {
                    scale(one.isa, &mut sums[..dim], (1.0 / divisor) as f32);
                }
                // The queries of these tokens are no longer needed: their place is the result's.
                let to = &mut q[block.start..];
                transpose(one.isa, sums, one.narrow, block.len(), dim, to, step);
            }
        }
        for d in 0..dim {
            let channel = (channels.first + d) * channels.voxels;
            for (window, q) in windows.iter().zip(q.chunks_exact(part)) {
                let mut from = &q[d * step..];
                for run in &window.inside {
                    let (now, next) = from.split_at(run.len);
                    if let Some(voxel) = run.voxel {
                        // SAFETY: no other task has these voxels of this channel.
                        let to = unsafe { y.slice(channel + voxel, run.len) };
                        to.iter_mut().zip(now).for_each(|(to, &from)| *to = from);
                    }
                    from = next;
                }
            }
        }
    });
}

/// Values that are moved at a time where only some of them are wanted, because one long move is faster than few short ones.
const MOVE: usize = 8;
/// No inner kernel has more rows.
const MOST_ROWS: usize = 16;

/// Tokens that are neighbours in the map, or outside of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    /// The first one's voxel.
    voxel: Option<usize>,
    len: usize,
}

fn runs(index: &[u32]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for &token in index {
        let voxel = (token != EMPTY).then_some(token as usize);
        match runs.last_mut() {
            Some(last) if last.voxel.map(|first| first + last.len) == voxel => last.len += 1,
            _ => runs.push(Run { voxel, len: 1 }),
        }
    }
    runs
}

/// The tokens of a channel one behind the other; up to `MOVE` values behind the last one are overwritten.
#[inline(always)]
fn gather((from, outside): (&[f32], f32), runs: &[Run], to: &mut [f32]) {
    let mut at = 0;
    for run in runs {
        let end = at + run.len;
        match run.voxel {
            None => to[at..end].fill(outside),
            Some(voxel) => {
                let mut done = 0;
                while done < run.len {
                    let (from, to) = (&from[voxel + done..], &mut to[at + done..]);
                    match (from.first_chunk::<MOVE>(), to.first_chunk_mut::<MOVE>()) {
                        (Some(from), Some(to)) => *to = *from,
                        _ => to[..run.len - done].copy_from_slice(&from[..run.len - done]),
                    }
                    done += MOVE;
                }
            }
        }
        at = end;
    }
}
