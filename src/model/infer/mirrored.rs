//! The mean of a network's answers to a patch and to its mirror image.

use super::segment::Forward;

/// A network that is asked twice: about the patch, and about the patch with left and right exchanged, whose answer is
/// mirrored back and in which paired structures are exchanged back. Logits are averaged.
pub struct Mirrored<F> {
    net: F,
    /// For each class the one on the other side of the body.
    mirror: Vec<u8>,
    /// `[d, h, w]`.
    patch: [usize; 3],
}

impl<F: Forward> Mirrored<F> {
    /// `mirror` as [`crate::model::LabelSchema::mirrored`] gives it; `patch` is `[d, h, w]`.
    pub fn new(net: F, mirror: Vec<u8>, patch: [usize; 3]) -> Self {
        Self { net, mirror, patch }
    }
}

impl<F: Forward> Forward for Mirrored<F> {
    fn logits(&self, patch: Vec<f32>) -> Vec<f32> {
        let (voxels, width) = (self.patch.iter().product::<usize>(), self.patch[2]);
        let mut flipped = patch.clone();
        // Clicks of a structure are clicks of its partner in the mirror image.
        let clicks = patch[voxels..].chunks_exact(voxels);
        for (channel, partner) in clicks.zip(&self.mirror) {
            flipped[(1 + usize::from(*partner)) * voxels..][..voxels].copy_from_slice(channel);
        }
        flipped.chunks_exact_mut(width).for_each(<[f32]>::reverse);
        let mut logits = self.net.logits(patch);
        let other = self.net.logits(flipped);
        for (class, values) in logits.chunks_exact_mut(voxels).enumerate() {
            let partner = usize::from(self.mirror[class]) * voxels;
            let rows = other[partner..partner + voxels].chunks_exact(width);
            for (row, mirrored) in values.chunks_exact_mut(width).zip(rows) {
                for (value, other) in row.iter_mut().zip(mirrored.iter().rev()) {
                    *value = 0.5 * (*value + other);
                }
            }
        }
        logits
    }
}

impl Forward for Box<dyn Forward> {
    fn logits(&self, patch: Vec<f32>) -> Vec<f32> {
        (**self).logits(patch)
    }
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
        let exchanged = Mirrored::new(Clicked, vec![0, 2, 1], [2, 2, 4]).logits(patch);
        assert_eq!(exchanged, plain);
    }

    #[test]
    fn a_network_that_knows_the_sides_answers_the_same() {
        let patch: Vec<f32> = (0..16).map(|v| v as f32).collect();
        let plain = Halves.logits(patch.clone());
        let exchanged = Mirrored::new(Halves, vec![0, 2, 1], [2, 2, 4]).logits(patch.clone());
        assert_eq!(exchanged, plain);
        // With the pairs forgotten each side is taken for the other half of the time.
        let forgotten = Mirrored::new(Halves, vec![0, 1, 2], [2, 2, 4]).logits(patch);
        assert_eq!(forgotten[16 + 1], 0.5);
        assert_eq!(forgotten[16 + 2], 1.0);
    }
}
