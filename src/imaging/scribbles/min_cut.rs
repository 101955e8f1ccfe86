//! Minimum cuts of voxel grids.
//!
//! Y. Boykov, V. Kolmogorov: An Experimental Comparison of Min-Cut/Max-Flow Algorithms for Energy Minimization in Vision
//! (IEEE PAMI 26, 2004): two search trees, from the source and from the sink, that are kept between augmentations. Here the
//! graph is a grid whose voxels touch at faces, so neighbours need no list, and voxels whose own preference outweighs all of
//! their neighbours are settled before the search begins.

use std::collections::VecDeque;

use rayon::prelude::*;

/// Largest capacity between two voxels: a residual of twice as much still fits.
pub const MAX_EDGE: u16 = 32_767;
/// A preference that no neighbours outweigh.
pub const CERTAIN: i32 = 1 << 28;

/// Parents beside the six directions.
const TERMINAL: u8 = 6;
const ORPHAN: u8 = 7;
const FREE: u8 = 8;
const PARENT: u8 = 0b0000_1111;
/// The tree of the sink.
const SINK: u8 = 0b0001_0000;
const QUEUED: u8 = 0b0010_0000;
/// Settled, on the source's side.
const SETTLED_SOURCE: u8 = 0b0100_0000;
const SETTLED: u8 = 0b1000_0000;

/// Which voxels are on the source's side of a minimum cut.
///
/// `shape` is `[z, y, x]`, x fastest. `terminal(voxel)` is the capacity from the source to a voxel `[z, y, x]` minus that from
/// it to the sink. `edge(voxel, axis)` is the capacity in both directions between a voxel and the next one along an axis
/// (0 = z), at most [`MAX_EDGE`].
///
/// Memory is 25 bytes a voxel, and the queues.
pub fn minimum_cut(
    shape: [usize; 3],
    terminal: impl Fn([usize; 3]) -> i32 + Sync,
    edge: impl Fn([usize; 3], usize) -> u16 + Sync,
) -> Vec<bool> {
    let mut cut = Cut::new(shape, terminal, edge);
    cut.settle();
    cut.plant();
    cut.run();
    cut.sides()
}

/// A grid with a border of one voxel that nothing flows into, so that every voxel has six neighbours.
struct Cut {
    shape: [usize; 3],
    /// Steps to the neighbours: next and last along x, y and z.
    steps: [isize; 6],
    /// Residual capacity to each neighbour.
    residual: Vec<[u16; 6]>,
    /// Residual capacity from the source (positive) or to the sink (negative).
    terminal: Vec<i32>,
    /// Parent, tree and marks.
    state: Vec<u8>,
    /// When the distance to the tree's root was last known to be right.
    stamp: Vec<u32>,
    distance: Vec<u32>,
    active: VecDeque<u32>,
    orphans: VecDeque<u32>,
    time: u32,
}

impl Cut {
    fn new(
        shape: [usize; 3],
        terminal: impl Fn([usize; 3]) -> i32 + Sync,
        edge: impl Fn([usize; 3], usize) -> u16 + Sync,
    ) -> Self {
        let [nz, ny, nx] = shape;
        let padded = [nz + 2, ny + 2, nx + 2];
        let (line, plane) = (padded[2], padded[1] * padded[2]);
        let count = padded[0] * plane;
        let mut cut = Self {
            shape,
            steps: [
                1,
                -1,
                line as isize,
                -(line as isize),
                plane as isize,
                -(plane as isize),
            ],
            residual: vec![[0; 6]; count],
            terminal: vec![0; count],
            state: vec![FREE; count],
            stamp: vec![0; count],
            distance: vec![0; count],
            active: VecDeque::new(),
            orphans: VecDeque::new(),
            time: 0,
        };
        let planes = cut.residual[plane..].par_chunks_mut(plane);
        let slices = planes.zip(cut.terminal[plane..].par_chunks_mut(plane));
        slices
            .take(nz)
            .enumerate()
            .for_each(|(z, (residual, terminals))| {
                for y in 0..ny {
                    for x in 0..nx {
                        let (voxel, at) = ([z, y, x], (y + 1) * line + x + 1);
                        terminals[at] = terminal(voxel);
                        // Both directions at once, but those to the slices around, which belong to other threads.
                        if x + 1 < nx {
                            let capacity = edge(voxel, 2).min(MAX_EDGE);
                            (residual[at][0], residual[at + 1][1]) = (capacity, capacity);
                        }
                        if y + 1 < ny {
                            let capacity = edge(voxel, 1).min(MAX_EDGE);
                            (residual[at][2], residual[at + line][3]) = (capacity, capacity);
                        }
                        if z + 1 < nz {
                            residual[at][4] = edge(voxel, 0).min(MAX_EDGE);
                        }
                        if z > 0 {
                            residual[at][5] = edge([z - 1, y, x], 0).min(MAX_EDGE);
                        }
                    }
                }
            });
        cut
    }

    fn neighbour(&self, at: usize, direction: usize) -> usize {
        at.wrapping_add_signed(self.steps[direction])
    }

    /// First padded index of the row `(z, y)`.
    fn row(&self, z: usize, y: usize) -> usize {
        (z + 1) * self.steps[4] as usize + (y + 1) * self.steps[2] as usize + 1
    }

    /// Settles voxels whose preference is at least the capacity to all of their neighbours: whatever these do, a minimum cut
    /// has the voxel on its preferred side. Its edges become preferences of its neighbours, which may settle them too.
    fn settle(&mut self) {
        let [nz, ny, nx] = self.shape;
        let mut waiting = Vec::new();
        for z in 0..nz {
            for y in 0..ny {
                let row = self.row(z, y);
                for first in row..row + nx {
                    waiting.push(first);
                    while let Some(at) = waiting.pop() {
                        self.settle_one(at, &mut waiting);
                    }
                }
            }
        }
    }

    fn settle_one(&mut self, at: usize, waiting: &mut Vec<usize>) {
        if self.state[at] & SETTLED != 0 {
            return;
        }
        let own = self.terminal[at];
        let all: i32 = self.residual[at].iter().map(|&r| i32::from(r)).sum();
        if own.abs() < all {
            return;
        }
        let source = own > 0;
        self.state[at] = FREE | SETTLED | if source { SETTLED_SOURCE } else { 0 };
        self.terminal[at] = 0;
        for direction in 0..6 {
            let capacity = i32::from(std::mem::take(&mut self.residual[at][direction]));
            if capacity > 0 {
                let other = self.neighbour(at, direction);
                self.residual[other][direction ^ 1] = 0;
                self.terminal[other] += if source { capacity } else { -capacity };
                waiting.push(other);
            }
        }
    }

    /// Both trees begin with the voxels that their terminal reaches.
    fn plant(&mut self) {
        let [nz, ny, nx] = self.shape;
        for z in 0..nz {
            for y in 0..ny {
                let row = self.row(z, y);
                for at in row..row + nx {
                    let own = self.terminal[at];
                    if own != 0 {
                        self.state[at] = TERMINAL | QUEUED | if own < 0 { SINK } else { 0 };
                        self.distance[at] = 1;
                        self.active.push_back(at as u32);
                    }
                }
            }
        }
    }

    fn parent(&self, at: usize) -> u8 {
        self.state[at] & PARENT
    }

    fn set_parent(&mut self, at: usize, parent: u8) {
        self.state[at] = self.state[at] & !PARENT | parent;
    }

    fn wake(&mut self, at: usize) {
        if self.state[at] & QUEUED == 0 {
            self.state[at] |= QUEUED;
            self.active.push_back(at as u32);
        }
    }

    /// Grows the trees until they touch no more.
    fn run(&mut self) {
        while let Some(&at) = self.active.front() {
            let at = at as usize;
            if self.parent(at) == FREE {
                self.drop_front(at);
                continue;
            }
            match self.grow(at) {
                None => self.drop_front(at),
                Some((from, to, direction)) => {
                    self.time += 1;
                    self.augment(from, to, direction);
                    while let Some(orphan) = self.orphans.pop_front() {
                        self.adopt(orphan as usize);
                    }
                }
            }
        }
    }

    fn drop_front(&mut self, at: usize) {
        self.active.pop_front();
        self.state[at] &= !QUEUED;
    }

    /// Takes free neighbours into the voxel's tree; the edge from the source's tree to the sink's, if one is found.
    fn grow(&mut self, at: usize) -> Option<(usize, usize, usize)> {
        let sink = self.state[at] & SINK;
        for direction in 0..6 {
            let other = self.neighbour(at, direction);
            let capacity = match sink {
                0 => self.residual[at][direction],
                _ => self.residual[other][direction ^ 1],
            };
            if capacity == 0 {
                continue;
            }
            if self.parent(other) == FREE {
                self.state[other] = (self.state[other] & QUEUED) | sink | (direction as u8 ^ 1);
                self.stamp[other] = self.stamp[at];
                self.distance[other] = self.distance[at] + 1;
                self.wake(other);
            } else if self.state[other] & SINK != sink {
                return Some(match sink {
                    0 => (at, other, direction),
                    _ => (other, at, direction ^ 1),
                });
            } else if self.stamp[other] <= self.stamp[at]
                && self.distance[other] > self.distance[at] + 1
            {
                // A shorter way to the root.
                self.set_parent(other, direction as u8 ^ 1);
                self.stamp[other] = self.stamp[at];
                self.distance[other] = self.distance[at] + 1;
            }
        }
        None
    }

    /// Sends what fits along the path source, ..., `from`, `to`, ..., sink; voxels that lose their parent become orphans.
    fn augment(&mut self, from: usize, to: usize, direction: usize) {
        let mut flow = i32::from(self.residual[from][direction]);
        let mut at = from;
        while self.parent(at) < TERMINAL {
            let up = usize::from(self.parent(at));
            at = self.neighbour(at, up);
            flow = flow.min(i32::from(self.residual[at][up ^ 1]));
        }
        flow = flow.min(self.terminal[at]);
        at = to;
        while self.parent(at) < TERMINAL {
            let up = usize::from(self.parent(at));
            flow = flow.min(i32::from(self.residual[at][up]));
            at = self.neighbour(at, up);
        }
        flow = flow.min(-self.terminal[at]);

        // It passes an edge between voxels, so it fits.
        let part = flow as u16;
        self.residual[from][direction] -= part;
        self.residual[to][direction ^ 1] += part;
        at = from;
        while self.parent(at) < TERMINAL {
            let up = usize::from(self.parent(at));
            let above = self.neighbour(at, up);
            self.residual[at][up] += part;
            self.residual[above][up ^ 1] -= part;
            if self.residual[above][up ^ 1] == 0 {
                self.orphan(at);
            }
            at = above;
        }
        self.terminal[at] -= flow;
        if self.terminal[at] == 0 {
            self.orphan(at);
        }
        at = to;
        while self.parent(at) < TERMINAL {
            let up = usize::from(self.parent(at));
            let below = self.neighbour(at, up);
            self.residual[below][up ^ 1] += part;
            self.residual[at][up] -= part;
            if self.residual[at][up] == 0 {
                self.orphan(at);
            }
            at = below;
        }
        self.terminal[at] += flow;
        if self.terminal[at] == 0 {
            self.orphan(at);
        }
    }

    fn orphan(&mut self, at: usize) {
        self.set_parent(at, ORPHAN);
        self.orphans.push_front(at as u32);
    }

    /// Finds a new parent in the same tree, the nearest to the root, or sets the voxel free and orphans its children.
    fn adopt(&mut self, at: usize) {
        let sink = self.state[at] & SINK;
        let (mut best, mut shortest) = (FREE, u32::MAX);
        for direction in 0..6 {
            let other = self.neighbour(at, direction);
            if self.parent(other) == FREE
                || self.state[other] & SINK != sink
                || !self.reaches(other, at, direction, sink)
            {
                continue;
            }
            if let Some(distance) = self.distance_to_root(other)
                && distance < shortest
            {
                (best, shortest) = (direction as u8, distance);
            }
        }
        if best != FREE {
            self.set_parent(at, best);
            self.stamp[at] = self.time;
            self.distance[at] = shortest + 1;
            return;
        }
        for direction in 0..6 {
            let other = self.neighbour(at, direction);
            if self.parent(other) == FREE || self.state[other] & SINK != sink {
                continue;
            }
            if self.reaches(other, at, direction, sink) {
                self.wake(other);
            }
            if usize::from(self.parent(other)) == direction ^ 1 {
                self.set_parent(other, ORPHAN);
                self.orphans.push_back(other as u32);
            }
        }
        self.set_parent(at, FREE);
    }

    /// Whether `other` (in `direction` of `at`) could be the parent of `at`.
    fn reaches(&self, other: usize, at: usize, direction: usize, sink: u8) -> bool {
        match sink {
            0 => self.residual[other][direction ^ 1] > 0,
            _ => self.residual[at][direction] > 0,
        }
    }

    /// Steps from a voxel to the root of its tree; none when an orphan lies between. What is found out is remembered.
    fn distance_to_root(&mut self, from: usize) -> Option<u32> {
        let (mut at, mut steps) = (from, 0);
        let total = loop {
            if self.stamp[at] == self.time {
                break steps + self.distance[at];
            }
            match self.parent(at) {
                TERMINAL => {
                    self.stamp[at] = self.time;
                    self.distance[at] = 1;
                    break steps + 1;
                }
                ORPHAN => return None,
                up => at = self.neighbour(at, usize::from(up)),
            }
            steps += 1;
        };
        let (mut at, mut distance) = (from, total);
        while self.stamp[at] != self.time {
            self.stamp[at] = self.time;
            self.distance[at] = distance;
            distance -= 1;
            at = self.neighbour(at, usize::from(self.parent(at)));
        }
        Some(total)
    }

    fn sides(&self) -> Vec<bool> {
        let [nz, ny, nx] = self.shape;
        let rows = (0..nz * ny).into_par_iter().flat_map_iter(|row| {
            let first = self.row(row / ny, row % ny);
            self.state[first..first + nx]
                .iter()
                .map(|&state| match state & SETTLED {
                    0 => state & PARENT != FREE && state & SINK == 0,
                    _ => state & SETTLED_SOURCE != 0,
                })
        });
        rows.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;
    use proptest::prelude::*;

    /// A random problem: preferences, and one capacity per voxel and axis.
    struct Problem {
        shape: [usize; 3],
        terminal: Vec<i32>,
        edges: Vec<[u16; 3]>,
    }

    impl Problem {
        fn random(shape: [usize; 3], seed: u64) -> Self {
            let mut rng = Rng::new(seed);
            let count = shape.iter().product();
            let reach = 1 + rng.below(60) as i32;
            Self {
                shape,
                terminal: (0..count)
                    .map(|_| rng.below(2 * reach as usize + 1) as i32 - reach)
                    .collect(),
                edges: (0..count)
                    .map(|_| [0; 3].map(|_: u16| rng.below(20) as u16))
                    .collect(),
            }
        }

        fn solve(&self) -> Vec<bool> {
            let [_, ny, nx] = self.shape;
            let index = |[z, y, x]: [usize; 3]| (z * ny + y) * nx + x;
            minimum_cut(
                self.shape,
                |at| self.terminal[index(at)],
                |at, axis| self.edges[index(at)][axis],
            )
        }

        fn neighbours(&self) -> Vec<(usize, usize, i64)> {
            let [nz, ny, nx] = self.shape;
            let mut found = Vec::new();
            for v in 0..nz * ny * nx {
                let (z, y, x) = (v / (ny * nx), v / nx % ny, v % nx);
                for (axis, there, step) in [
                    (0, z + 1 < nz, ny * nx),
                    (1, y + 1 < ny, nx),
                    (2, x + 1 < nx, 1),
                ] {
                    if there {
                        found.push((v, v + step, i64::from(self.edges[v][axis])));
                    }
                }
            }
            found
        }

        /// What the cut with these voxels on the source's side costs.
        fn cost(&self, source: impl Fn(usize) -> bool) -> i64 {
            let own = self
                .terminal
                .iter()
                .enumerate()
                .map(|(v, &t)| match source(v) {
                    true => i64::from((-t).max(0)),
                    false => i64::from(t.max(0)),
                });
            let cut = self
                .neighbours()
                .into_iter()
                .filter(|&(a, b, _)| source(a) != source(b));
            own.sum::<i64>() + cut.map(|(_, _, capacity)| capacity).sum::<i64>()
        }

        /// The maximum flow by shortest augmenting paths (Edmonds, Karp), written as plainly as possible.
        fn reference_flow(&self) -> i64 {
            let count = self.terminal.len();
            let (source, sink) = (count, count + 1);
            let mut residual = vec![std::collections::BTreeMap::<usize, i64>::new(); count + 2];
            let mut add =
                |a: usize, b: usize, capacity: i64| *residual[a].entry(b).or_default() += capacity;
            for (v, &t) in self.terminal.iter().enumerate() {
                add(source, v, i64::from(t.max(0)));
                add(v, source, 0);
                add(v, sink, i64::from((-t).max(0)));
                add(sink, v, 0);
            }
            for (a, b, capacity) in self.neighbours() {
                add(a, b, capacity);
                add(b, a, capacity);
            }
            let mut total = 0;
            loop {
                let mut from = vec![usize::MAX; count + 2];
                let mut queue = VecDeque::from([source]);
                while let Some(a) = queue.pop_front() {
                    for (&b, &left) in &residual[a] {
                        if left > 0 && from[b] == usize::MAX && b != source {
                            from[b] = a;
                            queue.push_back(b);
                        }
                    }
                }
                if from[sink] == usize::MAX {
                    return total;
                }
                let (mut flow, mut b) = (i64::MAX, sink);
                while b != source {
                    flow = flow.min(residual[from[b]][&b]);
                    b = from[b];
                }
                b = sink;
                while b != source {
                    *residual[from[b]].get_mut(&b).unwrap() -= flow;
                    *residual[b].get_mut(&from[b]).unwrap() += flow;
                    b = from[b];
                }
                total += flow;
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn no_other_cut_is_cheaper(seed in any::<u64>(), z in 1usize..3, y in 1usize..4, x in 1usize..4) {
            let problem = Problem::random([z, y, x], seed);
            let found = problem.solve();
            let best = (0u32..1 << (z * y * x)).map(|set| problem.cost(|v| set >> v & 1 == 1)).min();
            prop_assert_eq!(Some(problem.cost(|v| found[v])), best);
        }

        #[test]
        fn the_cut_is_worth_the_maximum_flow(seed in any::<u64>(), z in 1usize..6, y in 1usize..7, x in 1usize..8) {
            let problem = Problem::random([z, y, x], seed);
            let found = problem.solve();
            prop_assert_eq!(problem.cost(|v| found[v]), problem.reference_flow());
        }
    }

    #[test]
    fn certain_voxels_stay_and_the_cut_takes_the_weakest_place() {
        // A chain between two certain ends, weakest between the third and the fourth.
        let capacities = [9, 7, 2, 8, MAX_EDGE];
        let ends = |[_, _, x]: [usize; 3]| match x {
            0 => CERTAIN,
            5 => -CERTAIN,
            _ => 0,
        };
        let sides = minimum_cut([1, 1, 6], ends, |[_, _, x], _| capacities[x]);
        assert_eq!(sides, [true, true, true, false, false, false]);
    }
}
