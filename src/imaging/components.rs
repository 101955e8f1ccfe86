//! Connected parts of a label map.

use super::volume::Volume;

/// Which voxels touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connectivity {
    /// Voxels that share a face.
    Faces6,
    /// Voxels that share a face, an edge or a corner.
    Corners26,
}

/// The connected parts of a label map: voxels of equal value that touch. Background (0) has none.
#[derive(Debug, Clone)]
pub struct Components {
    /// Number of the part of each voxel in C order, counted from 1 in order of first voxel; 0 in
    /// the background.
    pub ids: Vec<u32>,
    /// Label value and number of voxels of part `n + 1`.
    pub parts: Vec<(u16, u64)>,
}

/// Finds the connected parts of `label`.
pub fn find(label: &Volume<u16>, connectivity: Connectivity) -> Components {
    let [nz, ny, nx] = label.geometry.shape();
    let voxels = &label.voxels;
    let before = neighbours_before(connectivity);
    let mut ids = vec![0u32; voxels.len()];
    // Union-find over provisional numbers; entry 0 is the background.
    let mut parents: Vec<u32> = vec![0];
    for z in 0..nz {
        for y in 0..ny {
            for x in 0..nx {
                let at = (z * ny + y) * nx + x;
                if voxels[at] == 0 {
                    continue;
                }
                let mut own = 0;
                for &[dz, dy, dx] in &before {
                    let (Some(z), Some(y), Some(x)) = (
                        z.checked_add_signed(dz),
                        y.checked_add_signed(dy),
                        x.checked_add_signed(dx),
                    ) else {
                        continue;
                    };
                    if y >= ny || x >= nx {
                        continue;
                    }
                    let other = (z * ny + y) * nx + x;
                    if voxels[other] != voxels[at] {
                        continue;
                    }
                    let root = root(&mut parents, ids[other]);
                    if own == 0 {
                        own = root;
                    } else if own != root {
                        // The smaller number survives, so that roots come first.
                        let (low, high) = (own.min(root), own.max(root));
                        parents[high as usize] = low;
                        own = low;
                    }
                }
                if own == 0 {
                    own = parents.len() as u32;
                    parents.push(own);
                }
                ids[at] = own;
            }
        }
    }
    let mut numbers = vec![0u32; parents.len()];
    let mut parts: Vec<(u16, u64)> = Vec::new();
    for (id, &value) in ids.iter_mut().zip(voxels) {
        if *id == 0 {
            continue;
        }
        let root = root(&mut parents, *id) as usize;
        if numbers[root] == 0 {
            parts.push((value, 0));
            numbers[root] = parts.len() as u32;
        }
        *id = numbers[root];
        parts[numbers[root] as usize - 1].1 += 1;
    }
    Components { ids, parts }
}

/// Sets every voxel that is not in the largest part of its value to background; of equal parts the
/// first stays. Returns how many voxels were cleared.
pub fn keep_largest(label: &mut Volume<u16>, connectivity: Connectivity) -> usize {
    let components = find(label, connectivity);
    let mut largest: std::collections::HashMap<u16, (u32, u64)> = std::collections::HashMap::new();
    for (n, &(value, size)) in components.parts.iter().enumerate() {
        let best = largest.entry(value).or_insert((n as u32 + 1, size));
        if size > best.1 {
            *best = (n as u32 + 1, size);
        }
    }
    let mut keep = vec![false; components.parts.len() + 1];
    for (id, _) in largest.values() {
        keep[*id as usize] = true;
    }
    let mut cleared = 0;
    for (voxel, &id) in label.voxels.iter_mut().zip(&components.ids) {
        if id != 0 && !keep[id as usize] {
            *voxel = 0;
            cleared += 1;
        }
    }
    cleared
}

/// Offsets `[z, y, x]` of the neighbours that come earlier in C order.
fn neighbours_before(connectivity: Connectivity) -> Vec<[isize; 3]> {
    let mut offsets = Vec::new();
    for dz in -1..=1isize {
        for dy in -1..=1isize {
            for dx in -1..=1isize {
                let earlier = [dz, dy, dx] < [0, 0, 0];
                let steps = dz.abs() + dy.abs() + dx.abs();
                if earlier && (connectivity == Connectivity::Corners26 || steps == 1) {
                    offsets.push([dz, dy, dx]);
                }
            }
        }
    }
    offsets
}

fn root(parents: &mut [u32], mut id: u32) -> u32 {
    while parents[id as usize] != id {
        // Path halving keeps the trees flat.
        parents[id as usize] = parents[parents[id as usize] as usize];
        id = parents[id as usize];
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imaging::geometry::Geometry;
    use proptest::prelude::*;

    fn volume(shape: [usize; 3], voxels: Vec<u16>) -> Volume<u16> {
        let steps = [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]];
        Volume::new(Geometry::new(shape, [0.0; 3], steps).unwrap(), voxels).unwrap()
    }

    /// The definition: spread from every voxel over its equal neighbours.
    fn by_flooding(label: &Volume<u16>, connectivity: Connectivity) -> Vec<u32> {
        let [nz, ny, nx] = label.geometry.shape().map(|n| n as isize);
        let mut ids = vec![0; label.voxels.len()];
        let mut count = 0;
        for first in 0..ids.len() {
            if label.voxels[first] == 0 || ids[first] != 0 {
                continue;
            }
            count += 1;
            ids[first] = count;
            let mut queue = vec![first];
            while let Some(at) = queue.pop() {
                let (z, y, x) = (
                    at as isize / (ny * nx),
                    at as isize / nx % ny,
                    at as isize % nx,
                );
                for dz in -1..=1 {
                    for dy in -1..=1 {
                        for dx in -1..=1isize {
                            let (z, y, x) = (z + dz, y + dy, x + dx);
                            let near = connectivity == Connectivity::Corners26
                                || dz.abs() + dy.abs() + dx.abs() == 1;
                            if !near || z < 0 || y < 0 || x < 0 || z >= nz || y >= ny || x >= nx {
                                continue;
                            }
                            let other = ((z * ny + y) * nx + x) as usize;
                            if ids[other] == 0 && label.voxels[other] == label.voxels[first] {
                                ids[other] = count;
                                queue.push(other);
                            }
                        }
                    }
                }
            }
        }
        ids
    }

    proptest! {
        #[test]
        fn equals_flooding(
            (shape, voxels) in prop::array::uniform3(1..7usize).prop_flat_map(|shape| {
                (Just(shape), prop::collection::vec(0..3u16, shape.iter().product::<usize>()))
            }),
        ) {
            let label = volume(shape, voxels);
            for connectivity in [Connectivity::Faces6, Connectivity::Corners26] {
                let found = find(&label, connectivity);
                prop_assert_eq!(&found.ids, &by_flooding(&label, connectivity));
                for (n, &(value, size)) in found.parts.iter().enumerate() {
                    let members: Vec<usize> = (0..found.ids.len()).filter(|&at| found.ids[at] == n as u32 + 1).collect();
                    prop_assert_eq!(members.len() as u64, size);
                    prop_assert!(members.iter().all(|&at| label.voxels[at] == value));
                }
            }
        }
    }

    #[test]
    fn the_largest_part_of_each_value_stays() {
        let mut label = volume([1, 1, 9], vec![1, 0, 1, 1, 2, 2, 0, 2, 0]);
        assert_eq!(keep_largest(&mut label, Connectivity::Corners26), 2);
        assert_eq!(label.voxels, [0, 0, 1, 1, 2, 2, 0, 0, 0]);
    }

    #[test]
    fn corners_touch_only_with_26() {
        let label = volume([2, 2, 2], vec![1, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(find(&label, Connectivity::Faces6).parts.len(), 2);
        assert_eq!(find(&label, Connectivity::Corners26).parts.len(), 1);
    }
}
