//! Distances between images by their pooled features, and groups of alike images.

use super::Rng;

/// Rounds of k-means.
const ROUNDS: usize = 25;

/// Features of all images, each dimension with mean 0 and variance 1 over them, so that none counts for its unit.
pub(super) struct Space(Vec<Vec<f64>>);

impl Space {
    /// Images without features of the length of the first are none of this space: see [`Space::len`].
    pub fn of(images: &[&[f32]]) -> Self {
        let mut points: Vec<Vec<f64>> = images
            .iter()
            .map(|features| features.iter().map(|v| f64::from(*v)).collect())
            .collect();
        let (count, dimensions) = (points.len() as f64, points.first().map_or(0, Vec::len));
        for d in 0..dimensions {
            let mean = points.iter().map(|p| p[d]).sum::<f64>() / count;
            let variance = points.iter().map(|p| (p[d] - mean).powi(2)).sum::<f64>() / count;
            let scale = if variance > 1e-18 {
                variance.sqrt().recip()
            } else {
                0.0
            };
            for point in &mut points {
                point[d] = (point[d] - mean) * scale;
            }
        }
        Self(points)
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Euclidean distance of two images.
    pub fn distance(&self, a: usize, b: usize) -> f64 {
        distance(&self.0[a], &self.0[b])
    }

    /// The group of each image, by k-means with the seeding of k-means++ (Arthur and Vassilvitskii, SODA 2007).
    pub fn groups(&self, count: usize, rng: &mut Rng) -> Vec<usize> {
        let points = &self.0;
        if points.is_empty() {
            return Vec::new();
        }
        let mut centres = vec![points[rng.below(points.len())].clone()];
        while centres.len() < count.min(points.len()) {
            let to_next = |p: &Vec<f64>| nearest(p, &centres).1.powi(2);
            let weights: Vec<f64> = points.iter().map(to_next).collect();
            if weights.iter().sum::<f64>() <= 0.0 {
                break;
            }
            centres.push(points[super::random::weighted(&weights, rng)].clone());
        }
        let mut groups = vec![0; points.len()];
        for _ in 0..ROUNDS {
            let found: Vec<usize> = points.iter().map(|p| nearest(p, &centres).0).collect();
            if found == groups {
                break;
            }
            groups = found;
            for (number, centre) in centres.iter_mut().enumerate() {
                let members: Vec<&Vec<f64>> = points
                    .iter()
                    .zip(&groups)
                    .filter_map(|(p, g)| (*g == number).then_some(p))
                    .collect();
                if !members.is_empty() {
                    for (d, value) in centre.iter_mut().enumerate() {
                        *value = members.iter().map(|p| p[d]).sum::<f64>() / members.len() as f64;
                    }
                }
            }
        }
        groups
    }
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).powi(2))
        .sum::<f64>()
        .sqrt()
}

/// Number and distance of the nearest centre.
fn nearest(point: &[f64], centres: &[Vec<f64>]) -> (usize, f64) {
    let distances = centres.iter().map(|centre| distance(point, centre));
    distances
        .enumerate()
        .min_by(|a, b| a.1.total_cmp(&b.1))
        .unwrap_or((0, 0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alike_images_are_one_group() {
        let images: Vec<Vec<f32>> = [0.0, 0.1, 0.2, 9.0, 9.1]
            .iter()
            .map(|v| vec![*v, 1e6 - v, 7.0])
            .collect();
        let images: Vec<&[f32]> = images.iter().map(Vec::as_slice).collect();
        let space = Space::of(&images);
        assert!(space.distance(0, 1) < space.distance(0, 3));
        let groups = space.groups(2, &mut Rng::new(1));
        assert!(groups[0] == groups[1] && groups[1] == groups[2]);
        assert!(groups[3] == groups[4] && groups[3] != groups[0]);
        assert!(Space::of(&[]).groups(2, &mut Rng::new(1)).is_empty());
        assert_eq!(space.groups(9, &mut Rng::new(1)).len(), space.len());
    }
}
