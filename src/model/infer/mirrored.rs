//! The mean of a network's answers to a patch and to its mirror image.

use super::network::Forward;

/// A network that is asked twice: about the patch, and about the patch with left and right exchanged, whose answer is
/// mirrored back and in which paired structures are exchanged back. Logits are averaged.
pub struct Mirrored<'a> {
    net: &'a dyn Forward,
    /// For each class the one on the other side of the body.
    mirror: &'a [u8],
    /// `[d, h, w]`.
    patch: [usize; 3],
}

impl<'a> Mirrored<'a> {
    /// `mirror` as [`crate::model::LabelSchema::mirrored`] gives it; `patch` is `[d, h, w]`.
    pub fn new(net: &'a dyn Forward, mirror: &'a [u8], patch: [usize; 3]) -> Self {
        Self { net, mirror, patch }
    }
}

impl Forward for Mirrored<'_> {
    fn logits(&self, patch: Vec<f32>) -> Vec<f32> {
        let other = mirrored_logits(self.net, &patch, self.mirror, self.patch);
        let mut logits = self.net.logits(patch);
        for (value, other) in logits.iter_mut().zip(other) {
            *value = 0.5 * (*value + other);
        }
        logits
    }
}

/// What a network says of the mirror image of a window, mirrored back, with paired structures exchanged back:
/// `[classes, d, h, w]`. `input` is `[channels, d, h, w]` of `size` `[d, h, w]`: the scan, then clicks by class if the network
/// takes them.
pub fn mirrored_logits(
    net: &dyn Forward,
    input: &[f32],
    mirror: &[u8],
    size: [usize; 3],
) -> Vec<f32> {
    let (voxels, width) = (size.iter().product::<usize>(), size[2]);
    let mut flipped = input.to_vec();
    // Clicks of a structure are clicks of its partner in the mirror image.
    for (channel, partner) in input[voxels..].chunks_exact(voxels).zip(mirror) {
        flipped[(1 + usize::from(*partner)) * voxels..][..voxels].copy_from_slice(channel);
    }
    flipped.chunks_exact_mut(width).for_each(<[f32]>::reverse);
    let found = net.logits(flipped);
    let mut logits = Vec::with_capacity(found.len());
    for partner in mirror {
        let from = usize::from(*partner) * voxels;
        for row in found[from..from + voxels].chunks_exact(width) {
            logits.extend(row.iter().rev());
        }
    }
    logits
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Class 0 is nothing, class 1 says where the first half of a row is bright, class 2 the second half.
    struct Halves;

    impl Forward for Halves {
        fn logits(&self, patch: Vec<f32>) -> Vec<f32> {
            let side = |first: bool| {
                let of = move |(x, v): (usize, &f32)| if (x % 4 < 2) == first { *v } else { 0.0 };
                patch.iter().enumerate().map(of).collect::<Vec<_>>()
            };
            [vec![0.0; patch.len()], side(true), side(false)].concat()
        }
    }

    /// Class c is where its clicks are.
    struct Clicked;

    impl Forward for Clicked {
        fn logits(&self, patch: Vec<f32>) -> Vec<f32> {
            patch[16..].to_vec()
        }
    }

    #[test]
    fn clicks_change_sides_with_their_structure() {
        let patch: Vec<f32> = (0..64).map(|v| v as f32).collect();
        let plain = Clicked.logits(patch.clone());
        let exchanged = Mirrored::new(&Clicked, &[0, 2, 1], [2, 2, 4]).logits(patch);
        assert_eq!(exchanged, plain);
    }

    #[test]
    fn a_network_that_knows_the_sides_answers_the_same() {
        let patch: Vec<f32> = (0..16).map(|v| v as f32).collect();
        let plain = Halves.logits(patch.clone());
        let exchanged = Mirrored::new(&Halves, &[0, 2, 1], [2, 2, 4]).logits(patch.clone());
        assert_eq!(exchanged, plain);
        // With the pairs forgotten each side is taken for the other half of the time.
        let forgotten = Mirrored::new(&Halves, &[0, 1, 2], [2, 2, 4]).logits(patch);
        assert_eq!(forgotten[16 + 1], 0.5);
        assert_eq!(forgotten[16 + 2], 1.0);
    }
}
