//! The mean of a network's answers to a patch and to its mirror image.

use super::network::Forward;

/// A network that is asked twice: about the patch, and about the patch with left and right exchanged, whose answer is
/// mirrored back and in which paired structures are exchanged back. Logits are averaged.
pub struct Mirrored<'a> {
    net: &'a dyn Forward,
    /// For each class the one on the other side of the body.
    mirror: &'a [u8],
    width: usize,
}

impl<'a> Mirrored<'a> {
    /// `mirror` as [`crate::model::LabelSchema::mirrored`] gives it; `patch` is `[d, h, w]`.
    pub fn new(net: &'a dyn Forward, mirror: &'a [u8], patch: [usize; 3]) -> Self {
        Self {
            net,
            mirror,
            width: patch[2],
        }
    }
}

impl Forward for Mirrored<'_> {
    fn logits(&self, patch: Vec<f32>) -> Vec<f32> {
        let voxels = patch.len();
        let mut flipped = patch.clone();
        flipped
            .chunks_exact_mut(self.width)
            .for_each(<[f32]>::reverse);
        let mut logits = self.net.logits(patch);
        let other = self.net.logits(flipped);
        for (class, values) in logits.chunks_exact_mut(voxels).enumerate() {
            let partner = usize::from(self.mirror[class]) * voxels;
            let rows = other[partner..partner + voxels].chunks_exact(self.width);
            for (row, mirrored) in values.chunks_exact_mut(self.width).zip(rows) {
                for (value, other) in row.iter_mut().zip(mirrored.iter().rev()) {
                    *value = 0.5 * (*value + other);
                }
            }
        }
        logits
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
