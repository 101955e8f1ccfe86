use super::super::testing::{noise, relative_error};
use super::super::tokens::EMPTY;
use super::*;
use proptest::prelude::*;

fn check(isa: Isa, s: AttentionShape, masked: bool, seed: u64) {
    let [q, k, v, dy] = [0, 1, 2, 3].map(|i| noise(seed + i, s.len()));
    let bias = noise(seed + 4, s.heads * s.tokens * s.tokens);
    let regions: Vec<u8> = (0..2 * s.tokens).map(|i| (i % 3) as u8).collect();
    let terms = AttentionBias {
        scale: 0.7,
        bias: &bias,
        regions: masked.then_some(&regions),
        masked: -3.0,
    };
    let f = f64::from;
    let [mut y, mut dq, mut dk, mut dv] = [(); 4].map(|()| vec![0.0f64; s.len()]);
    let mut dbias = vec![0.0f64; bias.len()];
    for index in 0..s.windows * s.heads {
        let at = |token: usize, i: usize| index * s.matrix() + token * s.dim + i;
        let of_bias = |a: usize, b: usize| (index % s.heads * s.tokens + a) * s.tokens + b;
        let region = |token: usize| regions[index / s.heads % 2 * s.tokens + token];
        for a in 0..s.tokens {
            let scores: Vec<f64> = (0..s.tokens)
                .map(|b| {
                    let product: f64 = (0..s.dim).map(|i| f(q[at(a, i)]) * f(k[at(b, i)])).sum();
                    let mask = if masked && region(a) != region(b) {
                        -3.0
                    } else {
                        0.0
                    };
                    product * f(terms.scale) + f(bias[of_bias(a, b)]) + mask
                })
                .collect();
            let sum: f64 = scores.iter().map(|s| s.exp()).sum();
            let p: Vec<f64> = scores.iter().map(|s| s.exp() / sum).collect();
            let dp: Vec<f64> = (0..s.tokens)
                .map(|b| (0..s.dim).map(|i| f(dy[at(a, i)]) * f(v[at(b, i)])).sum())
                .collect();
            let dot: f64 = p.iter().zip(&dp).map(|(p, d)| p * d).sum();
            for b in 0..s.tokens {
                let ds = p[b] * (dp[b] - dot);
                dbias[of_bias(a, b)] += ds;
                for i in 0..s.dim {
                    y[at(a, i)] += p[b] * f(v[at(b, i)]);
                    dv[at(b, i)] += p[b] * f(dy[at(a, i)]);
                    dq[at(a, i)] += ds * f(terms.scale) * f(k[at(b, i)]);
                    dk[at(b, i)] += ds * f(terms.scale) * f(q[at(a, i)]);
                }
            }
        }
    }
    let (got, logs) = window_attention_on(isa, &q, &k, &v, terms, s);
    assert!(relative_error(&got, &y, 0.3) < 1e-5, "{isa:?} {s:?}");
    let g = backward_on(isa, [&q, &k, &v, &got, &dy], &logs, terms, s);
    for (name, got, want) in [
        ("dq", &g.dq, dq),
        ("dk", &g.dk, dk),
        ("dv", &g.dv, dv),
        ("dbias", &g.dbias, dbias),
    ] {
        // Of a few tokens little but dv is left: judged by the size of what cancels.
        let usual = ((s.windows * s.dim) as f64).sqrt() / s.tokens as f64;
        let scale = want.iter().fold(usual.max(0.3), |m, v| m.max(v.abs()));
        let error = got
            .iter()
            .zip(&want)
            .fold(0.0f64, |m, (&a, b)| m.max((f(a) - b).abs()));
        assert!(error < 1e-5 * scale, "{name} {isa:?} {s:?}: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn matches_the_definition(windows in 1usize..20, heads in 1usize..4, tokens in 1usize..40, dim in 1usize..40, masked: bool, seed in 0u64..1000) {
        for isa in Isa::available() {
            check(isa, AttentionShape { windows, heads, tokens, dim }, masked, seed);
        }
    }
}

#[test]
fn matches_the_definition_in_a_window_of_216() {
    for isa in Isa::available() {
        check(
            isa,
            AttentionShape {
                windows: 2,
                heads: 2,
                tokens: 216,
                dim: 32,
            },
            true,
            3,
        );
    }
}

/// From maps: the same as from rows, where tokens outside the map have one fixed value.
#[test]
fn attention_in_a_map() {
    for (isa, (windows, heads, tokens, dim)) in Isa::available().into_iter().flat_map(|isa| {
        [(3, 2, 27, 5), (1, 1, 8, 16), (4, 3, 64, 7), (2, 4, 216, 12)].map(|s| (isa, s))
    }) {
        let shape = AttentionShape {
            windows,
            heads,
            tokens,
            dim,
        };
        let slots = windows * tokens;
        // Every fourth token lies outside; the others are voxels in another order.
        let inside = slots - slots.div_ceil(4);
        let mut next = 0;
        let index: Vec<u32> = (0..slots)
            .map(|slot| {
                if slot % 4 == 0 {
                    return EMPTY;
                }
                next += 1;
                (inside - next) as u32
            })
            .collect();
        let channels = heads * dim;
        let (qkv, outside) = (noise(1, 3 * channels * inside), noise(2, 3 * channels));
        let regions: Vec<u8> = (0..slots).map(|i| (i % 3) as u8).collect();
        let bias = noise(3, heads * tokens * tokens);
        let terms = AttentionBias {
            scale: 0.4,
            bias: &bias,
            regions: Some(&regions),
            masked: -3.0,
        };
        let at = |window: usize, head: usize, token: usize, i: usize| {
            ((window * heads + head) * tokens + token) * dim + i
        };
        let mut parts = [(); 3].map(|()| vec![0.0; shape.len()]);
        let each = || {
            (0..windows).flat_map(move |w| {
                (0..heads).flat_map(move |h| {
                    (0..tokens).flat_map(move |t| (0..dim).map(move |i| (w, h, t, i)))
                })
            })
        };
        for (part, to) in parts.iter_mut().enumerate() {
            for (w, h, t, i) in each() {
                let channel = part * channels + h * dim + i;
                to[at(w, h, t, i)] = match index[w * tokens + t] {
                    EMPTY => outside[channel],
                    voxel => qkv[channel * inside + voxel as usize],
                };
            }
        }
        let [q, k, v] = &parts;
        let (want, _) = window_attention_on(isa, q, k, v, terms, shape);
        let mut got = vec![f32::NAN; channels * inside];
        let map = AttentionMap {
            qkv: &qkv,
            outside: &outside,
            index: &index,
        };
        in_map::window_attention_in_map_on(isa, map, terms, shape, &mut got);
        for (w, h, t, i) in each() {
            let voxel = index[w * tokens + t];
            if voxel != EMPTY {
                let got = got[(h * dim + i) * inside + voxel as usize];
                let want = want[at(w, h, t, i)];
                assert!(
                    (got - want).abs() < 1e-5,
                    "{isa:?} {shape:?}: {got}, not {want}"
                );
            }
        }
    }
}
