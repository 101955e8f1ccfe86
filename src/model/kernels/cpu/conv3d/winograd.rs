//! Winograd's minimal filtering F(m, 3) along y, and along z where the kernel is three deep (Winograd 1980; Lavin and Gray 2016): `m` outputs of
//! three taps from `m + 2` products. The taps along x stay as they are, so every transform works on whole rows.

use super::super::simd::{Isa, Level, Portable, Vector, per_isa};
#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::float32x4_t as Neon;

/// The transforms of one tile of `outputs` rows, from and to rows in memory.
#[derive(Clone, Copy)]
pub struct Winograd {
    /// Output rows of a tile, `[z, y]`; a tile reads `inputs()` rows.
    pub outputs: [usize; 2],
    input: Input,
    output: Output,
    gradient: Gradient,
}

/// See [`Winograd::transform_input`].
type Input = unsafe fn(
    from: *const f32,
    plane: usize,
    row: usize,
    to: *mut f32,
    component: usize,
    len: usize,
);
/// See [`Winograd::transform_output`].
type Output =
    unsafe fn(from: *const f32, component: usize, start: f32, to: &[*mut f32], len: usize);

/// See [`Winograd::transform_gradient`].
type Gradient = unsafe fn(from: &[*const f32], to: *mut f32, component: usize, len: usize);

impl Winograd {
    /// The transform for pairs of bfloat16: two outputs along each axis, because four magnify the rounding of the factors several times.
    #[cfg(target_arch = "x86_64")]
    pub fn for_pairs(isa: Isa, kernel: [usize; 3]) -> Option<Self> {
        let (outputs, input, output, gradient): ([usize; 2], Input, Output, Gradient) =
            match (isa.0, kernel) {
                (Level::Avx512, [1, 3, 3]) => (
                    [1, 2],
                    input_avx512::<1, 4>,
                    output_avx512::<1, 1, 2, 4>,
                    gradient_avx512::<1, 1, 2, 4>,
                ),
                (Level::Avx512, [3, 3, 3]) => (
                    [2, 2],
                    input_avx512::<4, 4>,
                    output_avx512::<2, 4, 2, 4>,
                    gradient_avx512::<2, 4, 2, 4>,
                ),
                _ => return None,
            };
        Some(Self {
            outputs,
            input,
            output,
            gradient,
        })
    }

    /// No processor but x86 has the products here.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn for_pairs(_: Isa, _: [usize; 3]) -> Option<Self> {
        None
    }

    /// The transform for a kernel, or none if it is neither 3 x 3 x 3 nor 1 x 3 x 3.
    pub fn for_kernel(isa: Isa, kernel: [usize; 3]) -> Option<Self> {
        let deep = match kernel {
            [1, 3, 3] => false,
            [3, 3, 3] => true,
            _ => return None,
        };
        let (outputs, input, output, gradient): ([usize; 2], Input, Output, Gradient) =
            match (isa.0, deep) {
                #[cfg(target_arch = "x86_64")]
                (Level::Avx512, false) => (
                    [1, 4],
                    input_avx512::<1, 6>,
                    output_avx512::<1, 1, 4, 6>,
                    gradient_avx512::<1, 1, 4, 6>,
                ),
                #[cfg(target_arch = "x86_64")]
                (Level::Avx512, true) => (
                    [2, 4],
                    input_avx512::<4, 6>,
                    output_avx512::<2, 4, 4, 6>,
                    gradient_avx512::<2, 4, 4, 6>,
                ),
                #[cfg(target_arch = "x86_64")]
                (Level::Avx2, false) => (
                    [1, 4],
                    input_avx2::<1, 6>,
                    output_avx2::<1, 1, 4, 6>,
                    gradient_avx2::<1, 1, 4, 6>,
                ),
                #[cfg(target_arch = "x86_64")]
                (Level::Avx2, true) => (
                    [2, 4],
                    input_avx2::<4, 6>,
                    output_avx2::<2, 4, 4, 6>,
                    gradient_avx2::<2, 4, 4, 6>,
                ),
                #[cfg(target_arch = "aarch64")]
                (Level::Neon, false) => (
                    [1, 4],
                    input::<Neon, 1, 6>,
                    output::<Neon, 1, 1, 4, 6>,
                    gradient::<Neon, 1, 1, 4, 6>,
                ),
                #[cfg(target_arch = "aarch64")]
                (Level::Neon, true) => (
                    [2, 4],
                    input::<Neon, 4, 6>,
                    output::<Neon, 2, 4, 4, 6>,
                    gradient::<Neon, 2, 4, 4, 6>,
                ),
                (Level::Portable, false) => (
                    [1, 4],
                    input::<Portable, 1, 6>,
                    output::<Portable, 1, 1, 4, 6>,
                    gradient::<Portable, 1, 1, 4, 6>,
                ),
                (Level::Portable, true) => (
                    [2, 4],
                    input::<Portable, 4, 6>,
                    output::<Portable, 2, 4, 4, 6>,
                    gradient::<Portable, 2, 4, 4, 6>,
                ),
            };
        Some(Self {
            outputs,
            input,
            output,
            gradient,
        })
    }

    /// Input rows of a tile, `[z, y]`, which are also the components of the transform.
    pub fn inputs(&self) -> [usize; 2] {
        self.outputs.map(inputs_of)
    }

    /// Products per column of a tile.
    pub fn components(&self) -> usize {
        self.inputs().iter().product()
    }

    /// The components `[z][y][rest]` of weights `[kz][ky][rest]`. `middle`: scratch memory of any length.
    pub fn transform_weights(
        &self,
        isa: Isa,
        weights: &[f32],
        middle: &mut Vec<f32>,
        to: &mut [f32],
    ) {
        let [matrix_z, matrix_y] = self.outputs.map(weight_matrix);
        let kernel_z = if self.outputs[0] == 1 { 1 } else { 3 };
        let rest = to.len() / self.components();
        middle.resize(kernel_z * matrix_y.len() * rest, 0.0);
        weight_axis(isa, weights, matrix_y, kernel_z, rest, middle);
        weight_axis(isa, middle, matrix_z, 1, matrix_y.len() * rest, to);
    }

    /// Transforms `len` columns (rounded up to whole vectors) of the rows `from + z * plane + y * row` to `to + i * component`.
    ///
    /// # Safety
    /// All these rows are valid for `len` floats and a vector more.
    pub unsafe fn transform_input(
        &self,
        from: *const f32,
        plane: usize,
        row: usize,
        to: *mut f32,
        component: usize,
        len: usize,
    ) {
        // SAFETY: by the contract; the instruction set was chosen by an `Isa`.
        unsafe { (self.input)(from, plane, row, to, component, len) }
    }

    /// Transforms `len` columns of the components `from + i * component` to the output rows `to`, `[z][y]`, and adds `start` to each.
    ///
    /// # Safety
    /// The components are valid for `len` floats and a vector more; `to` has as many rows as the tile, valid for `len` floats each.
    pub unsafe fn transform_output(
        &self,
        from: *const f32,
        component: usize,
        start: f32,
        to: &[*mut f32],
        len: usize,
    ) {
        // SAFETY: as above.
        unsafe { (self.output)(from, component, start, to, len) }
    }
}

impl Winograd {
    /// What the tap `[z, y]` of the weights contributes to a component, and the component of the gradient to the gradient of the tap.
    pub fn coefficient(&self, component: usize, tap: [usize; 2]) -> f32 {
        let [matrix_z, matrix_y] = self.outputs.map(weight_matrix);
        matrix_z[component / matrix_y.len()][tap[0]] * matrix_y[component % matrix_y.len()][tap[1]]
    }

    /// The adjoint of [`Self::transform_output`]: `len` columns (rounded up to whole vectors) of the rows `from`, `[z][y]`, to the components
    /// `to + i * component`.
    ///
    /// # Safety
    /// `from` has as many rows as the tile, valid for `len` floats each; the components are valid for `len` floats and a vector more.
    pub unsafe fn transform_gradient(
        &self,
        from: &[*const f32],
        to: *mut f32,
        component: usize,
        len: usize,
    ) {
        // SAFETY: by the contract; the instruction set was chosen by an `Isa`.
        unsafe { (self.gradient)(from, to, component, len) }
    }
}

fn inputs_of(outputs: usize) -> usize {
    if outputs == 1 { 1 } else { outputs + 2 }
}

/// The matrix of the weights' transform: points 0, 1, -1 and infinity for two outputs, 2 and -2 besides for four.
fn weight_matrix(outputs: usize) -> &'static [[f32; 3]] {
    match outputs {
        1 => &[[1.0, 0.0, 0.0]],
        2 => &[
            [1.0, 0.0, 0.0],
            [0.5, 0.5, 0.5],
            [0.5, -0.5, 0.5],
            [0.0, 0.0, 1.0],
        ],
        _ => &[
            [1.0 / 4.0, 0.0, 0.0],
            [-1.0 / 6.0, -1.0 / 6.0, -1.0 / 6.0],
            [-1.0 / 6.0, 1.0 / 6.0, -1.0 / 6.0],
            [1.0 / 24.0, 1.0 / 12.0, 1.0 / 6.0],
            [1.0 / 24.0, -1.0 / 12.0, 1.0 / 6.0],
            [0.0, 0.0, 1.0],
        ],
    }
}

per_isa! {
    /// One axis of the weights' transform: from `[before][tap][len]` to `[before][component][len]`. A matrix of one row takes one tap.
    fn weight_axis(from: &[f32], matrix: &[[f32; 3]], before: usize, len: usize, to: &mut [f32]) {
        let taps = if matrix.len() == 1 { 1 } else { 3 };
        for (from, to) in from.chunks_exact(taps * len).zip(to.chunks_exact_mut(matrix.len() * len)).take(before) {
            for (row, to) in matrix.iter().zip(to.chunks_exact_mut(len)) {
                to.fill(0.0);
                for (&factor, from) in row.iter().zip(from.chunks_exact(len)) {
                    for (to, from) in to.iter_mut().zip(from) {
                        *to += factor * from;
                    }
                }
            }
        }
    }
}

/// One axis of the input's transform.
///
/// # Safety
/// The caller is compiled for the instruction set of `V` (here and below).
#[inline(always)]
unsafe fn input_axis<V: Vector, const N: usize>(d: [V; N]) -> [V; N] {
    // SAFETY: arithmetic alone.
    unsafe {
        match N {
            1 => d,
            4 => {
                let t = [
                    d[0].minus(d[2]),
                    d[1].plus(d[2]),
                    d[2].minus(d[1]),
                    d[1].minus(d[3]),
                ];
                std::array::from_fn(|i| t[i])
            }
            _ => {
                let (minus_5, minus_4, four, two, minus_2) = (
                    V::splat(-5.0),
                    V::splat(-4.0),
                    V::splat(4.0),
                    V::splat(2.0),
                    V::splat(-2.0),
                );
                let even = d[4].add_product(minus_4, d[2]);
                let odd = d[3].add_product(minus_4, d[1]);
                let other_even = d[4].minus(d[2]);
                let other_odd = d[3].minus(d[1]);
                let t = [
                    d[4].add_product(four, d[0]).add_product(minus_5, d[2]),
                    even.plus(odd),
                    even.minus(odd),
                    other_even.add_product(two, other_odd),
                    other_even.add_product(minus_2, other_odd),
                    d[5].add_product(four, d[1]).add_product(minus_5, d[3]),
                ];
                std::array::from_fn(|i| t[i])
            }
        }
    }
}

/// One axis of the output's transform.
#[inline(always)]
unsafe fn output_axis<V: Vector, const M: usize, const N: usize>(m: [V; N]) -> [V; M] {
    // SAFETY: arithmetic alone.
    unsafe {
        match M {
            1 => std::array::from_fn(|i| m[i]),
            2 => {
                let t = [m[0].plus(m[1]).plus(m[2]), m[1].minus(m[2]).minus(m[3])];
                std::array::from_fn(|i| t[i])
            }
            _ => {
                let (sum, difference) = (m[1].plus(m[2]), m[1].minus(m[2]));
                let (sum_2, difference_2) = (m[3].plus(m[4]), m[3].minus(m[4]));
                let t = [
                    m[0].plus(sum).plus(sum_2),
                    difference.add_product(V::splat(2.0), difference_2),
                    sum.add_product(V::splat(4.0), sum_2),
                    difference
                        .add_product(V::splat(8.0), difference_2)
                        .plus(m[5]),
                ];
                std::array::from_fn(|i| t[i])
            }
        }
    }
}

/// # Safety
/// [`Winograd::transform_input`].
#[inline(always)]
unsafe fn input<V: Vector, const NZ: usize, const NY: usize>(
    from: *const f32,
    plane: usize,
    row: usize,
    to: *mut f32,
    component: usize,
    len: usize,
) {
    // SAFETY: by the contract.
    unsafe {
        for x in (0..len).step_by(V::LANES) {
            let mut d = [[V::splat(0.0); NY]; NZ];
            for (y, column) in (0..NY).map(|y| (y, from.add(y * row + x))) {
                let z_axis: [V; NZ] =
                    input_axis(std::array::from_fn(|z| V::load(column.add(z * plane))));
                for z in 0..NZ {
                    d[z][y] = z_axis[z];
                }
            }
            for (z, d) in d.into_iter().enumerate() {
                for (y, value) in input_axis(d).into_iter().enumerate() {
                    value.store(to.add((z * NY + y) * component + x));
                }
            }
        }
    }
}

/// # Safety
/// [`Winograd::transform_output`].
#[inline(always)]
unsafe fn output<V: Vector, const MZ: usize, const NZ: usize, const MY: usize, const NY: usize>(
    from: *const f32,
    component: usize,
    start: f32,
    to: &[*mut f32],
    len: usize,
) {
    assert_eq!(to.len(), MZ * MY);
    // SAFETY: by the contract; the last columns go through `rest`.
    unsafe {
        for x in (0..len).step_by(V::LANES) {
            let mut m = [[V::splat(0.0); MY]; NZ];
            for (z, m) in m.iter_mut().enumerate() {
                *m = output_axis(std::array::from_fn::<V, NY, _>(|y| {
                    V::load(from.add((z * NY + y) * component + x))
                }));
            }
            for y in 0..MY {
                let rows: [V; MZ] = output_axis(std::array::from_fn::<V, NZ, _>(|z| m[z][y]));
                for (z, value) in rows.into_iter().enumerate() {
                    let value = value.plus(V::splat(start));
                    let to = to[z * MY + y].add(x);
                    if len - x >= V::LANES {
                        value.store(to);
                    } else {
                        let mut rest = [0.0f32; 16];
                        value.store(rest.as_mut_ptr());
                        std::ptr::copy_nonoverlapping(rest.as_ptr(), to, len - x);
                    }
                }
            }
        }
    }
}

/// One axis of the gradient's transform, the transpose of [`output_axis`].
#[inline(always)]
unsafe fn gradient_axis<V: Vector, const M: usize, const N: usize>(g: [V; M]) -> [V; N] {
    // SAFETY: arithmetic alone.
    unsafe {
        match M {
            1 => std::array::from_fn(|i| g[i]),
            2 => {
                let t = [
                    g[0],
                    g[0].plus(g[1]),
                    g[0].minus(g[1]),
                    V::splat(0.0).minus(g[1]),
                ];
                std::array::from_fn(|i| t[i])
            }
            _ => {
                let (even, odd) = (g[0].plus(g[2]), g[1].plus(g[3]));
                let even_2 = g[0].add_product(V::splat(4.0), g[2]);
                let odd_2 = g[1].plus(g[1]).add_product(V::splat(8.0), g[3]);
                let t = [
                    g[0],
                    even.plus(odd),
                    even.minus(odd),
                    even_2.plus(odd_2),
                    even_2.minus(odd_2),
                    g[3],
                ];
                std::array::from_fn(|i| t[i])
            }
        }
    }
}

/// # Safety
/// [`Winograd::transform_gradient`].
#[inline(always)]
unsafe fn gradient<
    V: Vector,
    const MZ: usize,
    const NZ: usize,
    const MY: usize,
    const NY: usize,
>(
    from: &[*const f32],
    to: *mut f32,
    component: usize,
    len: usize,
) {
    assert_eq!(from.len(), MZ * MY);
    // SAFETY: by the contract; the last columns go through `rest`.
    unsafe {
        for x in (0..len).step_by(V::LANES) {
            let load = |row: *const f32| {
                if len - x >= V::LANES {
                    V::load(row.add(x))
                } else {
                    let mut rest = [0.0f32; 16];
                    std::ptr::copy_nonoverlapping(row.add(x), rest.as_mut_ptr(), len - x);
                    V::load(rest.as_ptr())
                }
            };
            let mut g = [[V::splat(0.0); MY]; NZ];
            for y in 0..MY {
                let rows: [V; NZ] =
                    gradient_axis(std::array::from_fn::<V, MZ, _>(|z| load(from[z * MY + y])));
                for z in 0..NZ {
                    g[z][y] = rows[z];
                }
            }
            for (z, g) in g.into_iter().enumerate() {
                let columns: [V; NY] = gradient_axis(g);
                for (y, value) in columns.into_iter().enumerate() {
                    value.store(to.add((z * NY + y) * component + x));
                }
            }
        }
    }
}

/// The transforms compiled for one instruction set.
macro_rules! compiled_for {
    ($features:literal, $vector:ty, $input:ident, $output:ident, $gradient:ident) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = $features)]
        unsafe fn $input<const NZ: usize, const NY: usize>(
            from: *const f32,
            plane: usize,
            row: usize,
            to: *mut f32,
            component: usize,
            len: usize,
        ) {
            // SAFETY: the contract of `input`.
            unsafe { input::<$vector, NZ, NY>(from, plane, row, to, component, len) }
        }

        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = $features)]
        unsafe fn $output<const MZ: usize, const NZ: usize, const MY: usize, const NY: usize>(
            from: *const f32,
            component: usize,
            start: f32,
            to: &[*mut f32],
            len: usize,
        ) {
            // SAFETY: the contract of `output`.
            unsafe { output::<$vector, MZ, NZ, MY, NY>(from, component, start, to, len) }
        }

        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = $features)]
        unsafe fn $gradient<const MZ: usize, const NZ: usize, const MY: usize, const NY: usize>(
            from: &[*const f32],
            to: *mut f32,
            component: usize,
            len: usize,
        ) {
            // SAFETY: the contract of `gradient`.
            unsafe { gradient::<$vector, MZ, NZ, MY, NY>(from, to, component, len) }
        }
    };
}
compiled_for!(
    "avx512f",
    std::arch::x86_64::__m512,
    input_avx512,
    output_avx512,
    gradient_avx512
);
compiled_for!(
    "avx2,fma",
    std::arch::x86_64::__m256,
    input_avx2,
    output_avx2,
    gradient_avx2
);
