//! Outlines of a mask in one slice, and masks from outlines.
//!
//! Outlines run half-way between the pixels inside and outside (marching squares at one half), so exactly the centres of
//! the pixels of the mask lie inside of them. Pixels that touch at a corner alone are apart. A hole is joined to the
//! outline around it by a channel without width, as treatment planning systems do (PS3.3, C.8.8.6.3). The channel runs
//! between two rows of pixels and touches no centre.

/// A closed polygon in pixels (x, y), the last point not repeated.
pub(super) type Polygon = Vec<[f64; 2]>;

/// Corners of the outlines as twice their coordinates, so that halves are exact.
type Corner = [i64; 2];

/// Polygons around the pixels of a mask of `columns` x `rows`.
pub(super) fn outlines(mask: &[bool], columns: usize, rows: usize) -> Vec<Polygon> {
    let rings = rings(mask, columns, rows);
    let (mut outer, mut holes): (Vec<Vec<Corner>>, Vec<Vec<Corner>>) =
        rings.into_iter().partition(|ring| area(ring) > 0);
    // The hole whose channel starts furthest left finds everything left of it joined already.
    holes.sort_by_key(|hole| door(hole).1);
    for hole in holes {
        join(&mut outer, hole);
    }
    let halves = |ring: Vec<Corner>| {
        straightened(ring)
            .into_iter()
            .map(|[x, y]| [x as f64 / 2.0, y as f64 / 2.0])
            .collect()
    };
    outer.into_iter().map(halves).collect()
}

/// Closed rings; those around pixels have positive area, those around holes negative.
fn rings(mask: &[bool], columns: usize, rows: usize) -> Vec<Vec<Corner>> {
    use std::collections::BTreeMap;
    let inside = |x: i64, y: i64| {
        (0..columns as i64).contains(&x)
            && (0..rows as i64).contains(&y)
            && mask[y as usize * columns + x as usize]
    };
    // From each corner to the next; in a saddle every corner still has one way out.
    let mut next: BTreeMap<Corner, Corner> = BTreeMap::new();
    for y in -1..rows as i64 {
        for x in -1..columns as i64 {
            let [a, b] = [inside(x, y), inside(x + 1, y)];
            let [d, c] = [inside(x, y + 1), inside(x + 1, y + 1)];
            // Middles of the sides of the square of four centres.
            let top = [2 * x + 1, 2 * y];
            let right = [2 * x + 2, 2 * y + 1];
            let bottom = [2 * x + 1, 2 * y + 2];
            let left = [2 * x, 2 * y + 1];
            let mut go = |from: Corner, to: Corner| {
                next.insert(from, to);
            };
            match (a, b, c, d) {
                (false, false, false, false) | (true, true, true, true) => {}
                (true, false, false, false) => go(top, left),
                (false, true, false, false) => go(right, top),
                (false, false, true, false) => go(bottom, right),
                (false, false, false, true) => go(left, bottom),
                (true, true, false, false) => go(right, left),
                (false, true, true, false) => go(bottom, top),
                (false, false, true, true) => go(left, right),
                (true, false, false, true) => go(top, bottom),
                (true, false, true, false) => {
                    go(top, left);
                    go(bottom, right);
                }
                (false, true, false, true) => {
                    go(right, top);
                    go(left, bottom);
                }
                (false, true, true, true) => go(left, top),
                (true, false, true, true) => go(top, right),
                (true, true, false, true) => go(right, bottom),
                (true, true, true, false) => go(bottom, left),
            }
        }
    }
    let mut rings = Vec::new();
    while let Some((&first, _)) = next.first_key_value() {
        let mut ring = Vec::new();
        let mut at = first;
        while let Some(to) = next.remove(&at) {
            ring.push(at);
            at = to;
        }
        rings.push(ring);
    }
    rings
}

/// Twice the area in half pixels squared, positive for outlines around pixels.
fn area(ring: &[Corner]) -> i64 {
    let ends = ring.iter().zip(ring.iter().cycle().skip(1));
    ends.map(|(a, b)| a[0] * b[1] - b[0] * a[1]).sum()
}

/// Where the channel of a hole starts: its leftmost corner between two rows, by number and place.
fn door(hole: &[Corner]) -> (usize, Corner) {
    let between_rows = |(_, corner): &(usize, &Corner)| corner[1].rem_euclid(2) == 1;
    hole.iter()
        .enumerate()
        .filter(between_rows)
        .map(|(n, corner)| (n, *corner))
        .min_by_key(|(_, corner)| *corner)
        .unwrap_or((0, hole[0]))
}

/// Joins a hole to the outline that the way to the left meets first.
fn join(outer: &mut [Vec<Corner>], hole: Vec<Corner>) {
    let (start, from) = door(&hole);
    let mut nearest: Option<(i64, usize, usize)> = None;
    for (ring, corners) in outer.iter().enumerate() {
        for (n, a) in corners.iter().enumerate() {
            let b = corners[(n + 1) % corners.len()];
            // Sides are a pixel long or run along a row; those that reach this height do so in a corner or half-way.
            let (low, high) = (a[1].min(b[1]), a[1].max(b[1]));
            if a[1] == b[1] || !(low..=high).contains(&from[1]) {
                continue;
            }
            let x = a[0] + (b[0] - a[0]) * (from[1] - a[1]) / (b[1] - a[1]);
            if x < from[0] && nearest.is_none_or(|(best, ..)| x > best) {
                nearest = Some((x, ring, n));
            }
        }
    }
    let Some((x, ring, side)) = nearest else {
        return;
    };
    let gate = [x, from[1]];
    let mut way = vec![gate];
    way.extend(hole[start..].iter().chain(&hole[..=start]));
    way.push(gate);
    let corners = &mut outer[ring];
    corners.splice(side + 1..side + 1, way);
}

/// Without corners on straight lines; turns by 180 degrees stay.
fn straightened(ring: Vec<Corner>) -> Vec<Corner> {
    let mut ring = ring;
    ring.dedup();
    let count = ring.len();
    (0..count)
        .filter(|&n| {
            let (a, b, c) = (
                ring[(n + count - 1) % count],
                ring[n],
                ring[(n + 1) % count],
            );
            let (u, v) = ([b[0] - a[0], b[1] - a[1]], [c[0] - b[0], c[1] - b[1]]);
            u[0] * v[1] != u[1] * v[0] || u[0] * v[0] + u[1] * v[1] <= 0
        })
        .map(|n| ring[n])
        .collect()
}

/// Turns each pixel of `columns` x `rows` over whose centre lies inside of a polygon (even-odd rule).
pub(super) fn toggle_inside(polygon: &[[f64; 2]], columns: usize, rows: usize, mask: &mut [bool]) {
    let mut crossings = Vec::new();
    let lowest = polygon.iter().map(|p| p[1]).fold(f64::INFINITY, f64::min);
    let highest = polygon
        .iter()
        .map(|p| p[1])
        .fold(f64::NEG_INFINITY, f64::max);
    if !(lowest.is_finite() && highest.is_finite()) {
        return;
    }
    let first = lowest.ceil().clamp(0.0, rows as f64) as usize;
    let end = ((highest.floor() + 1.0).clamp(0.0, rows as f64)) as usize;
    for row in first..end.max(first) {
        let y = row as f64;
        crossings.clear();
        for (n, a) in polygon.iter().enumerate() {
            let b = polygon[(n + 1) % polygon.len()];
            if (a[1] <= y) != (b[1] <= y) {
                crossings.push(a[0] + (b[0] - a[0]) * (y - a[1]) / (b[1] - a[1]));
            }
        }
        crossings.sort_by(f64::total_cmp);
        for pair in crossings.chunks_exact(2) {
            let from = pair[0].ceil().clamp(0.0, columns as f64) as usize;
            let to = pair[1].ceil().clamp(0.0, columns as f64) as usize;
            for inside in &mut mask[row * columns + from..row * columns + to.max(from)] {
                *inside = !*inside;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filled(polygons: &[Polygon], columns: usize, rows: usize) -> Vec<bool> {
        let mut mask = vec![false; columns * rows];
        for polygon in polygons {
            toggle_inside(polygon, columns, rows, &mut mask);
        }
        mask
    }

    fn mask_of(rows: &[&str]) -> (Vec<bool>, usize, usize) {
        let mask = rows.iter().flat_map(|row| row.bytes()).map(|b| b == b'#');
        (mask.collect(), rows[0].len(), rows.len())
    }

    #[test]
    fn a_hole_becomes_part_of_its_outline() {
        let (mask, columns, rows) =
            mask_of(&["#######", "#.#.#.#", "#######", "#...###", "#######"]);
        let polygons = outlines(&mask, columns, rows);
        assert_eq!(polygons.len(), 1);
        assert_eq!(filled(&polygons, columns, rows), mask);
    }

    #[test]
    fn islands_in_holes_are_outlines_of_their_own() {
        let (mask, columns, rows) = mask_of(&["#####", "#...#", "#.#.#", "#...#", "#####"]);
        let polygons = outlines(&mask, columns, rows);
        assert_eq!(polygons.len(), 2);
        assert_eq!(filled(&polygons, columns, rows), mask);
    }

    #[test]
    fn one_pixel() {
        let polygons = outlines(&[true], 1, 1);
        assert_eq!(polygons.len(), 1);
        assert_eq!(polygons[0].len(), 4);
        assert_eq!(filled(&polygons, 1, 1), [true]);
    }

    proptest! {
        #[test]
        fn any_mask_comes_back(columns in 1usize..14, seed in proptest::collection::vec(any::<bool>(), 1..150)) {
            let rows = seed.len().div_ceil(columns);
            let mut mask = seed;
            mask.resize(columns * rows, false);
            prop_assert_eq!(filled(&outlines(&mask, columns, rows), columns, rows), mask);
        }
    }
}
