//! Reading the input: several sources as one, the prologue, and the zero padding.

use super::super::simd::per_isa;
use super::{Conv3dShape, Prologue};
use std::ops::Range;

/// Several tensors read as if they were concatenated along their channels.
pub struct Sources<'a> {
    /// Per channel of the concatenation: its tensor, channels of that tensor, channel in it.
    channels: Vec<(&'a [f32], usize, usize)>,
    voxels: usize,
}

impl<'a> Sources<'a> {
    pub fn new(inputs: &[(&'a [f32], usize)], shape: Conv3dShape) -> Self {
        let mut channels = Vec::with_capacity(shape.in_channels);
        for &(data, count) in inputs {
            assert_eq!(
                data.len(),
                shape.batch * count * shape.voxels(),
                "conv3d: length of an input with {count} channels"
            );
            channels.extend((0..count).map(|channel| (data, count, channel)));
        }
        assert_eq!(
            channels.len(),
            shape.in_channels,
            "conv3d: channels of the inputs together"
        );
        Self {
            channels,
            voxels: shape.voxels(),
        }
    }

    /// `[depth, height, width]` of one channel of one sample.
    pub fn volume(&self, sample: usize, channel: usize) -> &'a [f32] {
        let (data, count, channel) = self.channels[channel];
        &data[(sample * count + channel) * self.voxels..][..self.voxels]
    }
}

/// Rows of output of one sample, and the layout of the padded copy of what they read: rows of `row` floats, of which the first `pad[2]` are
/// zeros; these also serve as the padding at the end of the row before. Channels follow each other at a distance of `channel` floats.
#[derive(Clone, Debug)]
pub struct Window {
    pub z: Range<usize>,
    pub y: Range<usize>,
    pub pad: [usize; 3],
    /// `[depth, height, width]` of the whole volume.
    pub size: [usize; 3],
}

impl Window {
    pub fn row(&self) -> usize {
        self.size[2] + self.pad[2]
    }

    pub fn plane(&self) -> usize {
        (self.y.len() + 2 * self.pad[1]) * self.row()
    }

    /// Zeros after the last row: its padding, or a cache line where there is none. Channels would often be a power of two apart then, and
    /// the steps of the inner kernel would push each other out of the few sets of the first-level cache that they share.
    fn tail(&self) -> usize {
        if self.pad[2] == 0 { 16 } else { self.pad[2] }
    }

    /// Floats of one channel, with what follows its last row.
    pub fn channel(&self) -> usize {
        (self.z.len() + 2 * self.pad[0]) * self.plane() + self.tail()
    }
}

per_isa! {
    /// Fills `to` with the padded copy of one channel (its `Window::channel()` first floats). `prologue`: scale, shift and slope of this channel.
    pub fn load_padded(from: &[f32], window: &Window, prologue: Option<(f32, f32, f32)>, to: &mut [f32]) {
        let [depth, height, width] = window.size;
        let [pad_z, pad_y, pad_x] = window.pad;
        let (rows, tail) = to[..window.channel()].split_at_mut(window.channel() - window.tail());
        tail.fill(0.0);
        let mut rows = rows.chunks_exact_mut(window.row());
        for z in window.z.start..window.z.end + 2 * pad_z {
            for y in window.y.start..window.y.end + 2 * pad_y {
                let Some(row) = rows.next() else { return };
                if z < pad_z || z - pad_z >= depth || y < pad_y || y - pad_y >= height {
                    row.fill(0.0);
                    continue;
                }
                let (zeros, row) = row.split_at_mut(pad_x);
                zeros.fill(0.0);
                let from = &from[((z - pad_z) * height + y - pad_y) * width..][..width];
                match prologue {
                    None => row.copy_from_slice(from),
                    Some((scale, shift, slope)) => {
                        for (to, &x) in row.iter_mut().zip(from) {
                            let y = x * scale + shift;
                            *to = if y > 0.0 { y } else { y * slope };
                        }
                    }
                }
            }
        }
    }
}

per_isa! {
    /// Rounds two channels to bfloat16 (to the nearest, ties to even) and puts them side by side in place of the second, the first one in the
    /// lower half of each float.
    pub fn pack_pairs(first: &[f32], second: &mut [f32]) {
        let rounded = |value: f32| {
            let bits = value.to_bits();
            bits.wrapping_add(0x7fff + (bits >> 16 & 1))
        };
        for (second, &first) in second.iter_mut().zip(first) {
            *second = f32::from_bits(rounded(first) >> 16 | rounded(*second) & 0xffff_0000);
        }
    }
}

/// Scale, shift and slope of one channel.
pub fn of_channel(prologue: Option<Prologue<'_>>, channel: usize) -> Option<(f32, f32, f32)> {
    prologue.map(|p| (p.scale[channel], p.shift[channel], p.slope))
}
