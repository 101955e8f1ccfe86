//! Vector registers behind one trait, run-time choice of the instruction set, and output buffers that are not zeroed first.

use rayon::prelude::*;
use std::cell::RefCell;
use std::marker::PhantomData;

/// An instruction set that this machine has been seen to support. It can only be obtained from [`Isa::best`] or [`Isa::available`], so holding
/// one is the proof that the code compiled for it may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(pub(super) Level);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Part of every 64-bit ARM processor.
    #[cfg(target_arch = "aarch64")]
    Neon,
    Portable,
}

impl Isa {
    /// The fastest instruction set of this machine.
    pub fn best() -> Self {
        #[cfg(test)]
        if let Some(isa) = chosen::isa() {
            return isa;
        }
        #[cfg(target_arch = "x86_64")]
        {
            if has_avx512() {
                return Self(Level::Avx512);
            }
            if has_avx2() {
                return Self(Level::Avx2);
            }
        }
        #[cfg(target_arch = "aarch64")]
        return Self(Level::Neon);
        #[cfg(not(target_arch = "aarch64"))]
        Self(Level::Portable)
    }

    /// Every instruction set of this machine for which the kernels have code; the portable one is always among them.
    pub fn available() -> Vec<Self> {
        #[cfg_attr(
            not(any(target_arch = "x86_64", target_arch = "aarch64")),
            allow(unused_mut)
        )]
        let mut all = vec![Self(Level::Portable)];
        #[cfg(target_arch = "aarch64")]
        all.push(Self(Level::Neon));
        #[cfg(target_arch = "x86_64")]
        {
            if has_avx2() {
                all.push(Self(Level::Avx2));
            }
            if has_avx512() {
                all.push(Self(Level::Avx512));
            }
        }
        all
    }
}

/// What a test's process is to compute with: threads of the pool ask too, so it is a choice of the whole process.
#[cfg(test)]
pub(crate) mod chosen {
    use std::sync::OnceLock;

    use super::Isa;

    /// An instruction set as [`std::fmt::Debug`] writes it, and "plain" for convolutions without saving of products.
    pub const VARIABLE: &str = "FEWLABEL_TEST_KERNELS";

    fn words() -> &'static [String] {
        static WORDS: OnceLock<Vec<String>> = OnceLock::new();
        WORDS.get_or_init(|| {
            let text = std::env::var(VARIABLE).unwrap_or_default();
            text.split_whitespace().map(str::to_owned).collect()
        })
    }

    pub fn isa() -> Option<Isa> {
        let named = |isa: &Isa| words().contains(&format!("{:?}", isa.0));
        // Most often there is no choice, and no need to look at what the machine has.
        (!words().is_empty()).then(|| Isa::available().into_iter().find(named))?
    }

    pub fn plain() -> bool {
        words().iter().any(|word| word == "plain")
    }

    /// Every choice, and whether it is the one that is taken without a choice.
    pub fn all() -> Vec<(String, bool)> {
        let of = |isa: Isa| {
            let name = format!("{:?}", isa.0);
            [
                (name.clone(), isa == Isa::best()),
                (format!("{name} plain"), false),
            ]
        };
        Isa::available().into_iter().flat_map(of).collect()
    }
}

impl Isa {
    /// Whether a product and its sum are rounded once.
    #[cfg(test)]
    pub fn fuses(self) -> bool {
        self.0 != Level::Portable
    }

    /// Whether it has products of pairs of bfloat16, summed in float32.
    pub fn has_bf16(self) -> bool {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => is_x86_feature_detected!("avx512bf16"),
            _ => false,
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    has_avx2()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

/// A register of `LANES` floats. The methods are `unsafe` because the instruction set must be enabled in the function they are inlined into, and
/// because `load` and `store` take raw pointers to `LANES` floats of any alignment.
pub(super) trait Vector: Copy {
    const LANES: usize;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// `self + a * b`.
    unsafe fn add_product(self, a: Self, b: Self) -> Self;
    unsafe fn plus(self, other: Self) -> Self;
    unsafe fn minus(self, other: Self) -> Self;
}

#[derive(Clone, Copy)]
pub(super) struct Portable([f32; 4]);

// SAFETY (all methods): the pointers are valid for four floats by the contract of the trait; nothing else is unsafe here.
impl Vector for Portable {
    const LANES: usize = 4;
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; 4])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self(unsafe { from.cast::<[f32; 4]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { to.cast::<[f32; 4]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + a.0[i] * b.0[i]))
    }
    #[inline(always)]
    unsafe fn plus(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + other.0[i]))
    }
    #[inline(always)]
    unsafe fn minus(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] - other.0[i]))
    }
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use super::Vector;
    use std::arch::aarch64::*;

    // SAFETY (all methods): the instructions are part of the architecture; the pointers are valid for four floats by the contract of the trait.
    impl Vector for float32x4_t {
        const LANES: usize = 4;
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            unsafe { vdupq_n_f32(value) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { vld1q_f32(from) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { vst1q_f32(to, self) }
        }
        #[inline(always)]
        unsafe fn add_product(self, a: Self, b: Self) -> Self {
            unsafe { vfmaq_f32(self, a, b) }
        }
        #[inline(always)]
        unsafe fn plus(self, other: Self) -> Self {
            unsafe { vaddq_f32(self, other) }
        }
        #[inline(always)]
        unsafe fn minus(self, other: Self) -> Self {
            unsafe { vsubq_f32(self, other) }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::Pairs;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Vector;
    use std::arch::x86_64::*;

    /// 16 floats as a sum; as a factor, 16 pairs of bfloat16, whose products are both added.
    #[derive(Clone, Copy)]
    pub struct Pairs(__m512);

    // SAFETY (all methods of both impls): called only from functions compiled for the instruction set and reached through an `Isa`; the pointers
    // are valid for `LANES` floats by the contract of the trait, and the unaligned forms of load and store are used.
    impl Vector for __m256 {
        const LANES: usize = 8;
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            unsafe { _mm256_set1_ps(value) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { _mm256_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm256_storeu_ps(to, self) }
        }
        #[inline(always)]
        unsafe fn add_product(self, a: Self, b: Self) -> Self {
            unsafe { _mm256_fmadd_ps(a, b, self) }
        }
        #[inline(always)]
        unsafe fn plus(self, other: Self) -> Self {
            unsafe { _mm256_add_ps(self, other) }
        }
        #[inline(always)]
        unsafe fn minus(self, other: Self) -> Self {
            unsafe { _mm256_sub_ps(self, other) }
        }
    }

    impl Vector for Pairs {
        const LANES: usize = 16;
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            Self(unsafe { _mm512_set1_ps(value) })
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            Self(unsafe { _mm512_loadu_ps(from) })
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm512_storeu_ps(to, self.0) }
        }
        #[inline(always)]
        unsafe fn add_product(self, a: Self, b: Self) -> Self {
            // SAFETY: as above; both types are 64 bytes of which every pattern is valid.
            Self(unsafe {
                let [a, b] = [a.0, b.0].map(|v| std::mem::transmute::<__m512, __m512bh>(v));
                _mm512_dpbf16_ps(self.0, a, b)
            })
        }
        #[inline(always)]
        unsafe fn plus(self, other: Self) -> Self {
            Self(unsafe { _mm512_add_ps(self.0, other.0) })
        }
        #[inline(always)]
        unsafe fn minus(self, other: Self) -> Self {
            Self(unsafe { _mm512_sub_ps(self.0, other.0) })
        }
    }

    impl Vector for __m512 {
        const LANES: usize = 16;
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            unsafe { _mm512_set1_ps(value) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { _mm512_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm512_storeu_ps(to, self) }
        }
        #[inline(always)]
        unsafe fn add_product(self, a: Self, b: Self) -> Self {
            unsafe { _mm512_fmadd_ps(a, b, self) }
        }
        #[inline(always)]
        unsafe fn plus(self, other: Self) -> Self {
            unsafe { _mm512_add_ps(self, other) }
        }
        #[inline(always)]
        unsafe fn minus(self, other: Self) -> Self {
            unsafe { _mm512_sub_ps(self, other) }
        }
    }
}

/// `a * b + c`, as one instruction where the caller was compiled for a set that has it (`FMA`).
#[inline(always)]
pub(super) fn mul_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Defines a function whose body is compiled once per instruction set; its first parameter is the [`Isa`] to use. The body may call
/// `mul_add::<FMA>` and other `#[inline(always)]` functions; what it calls otherwise is compiled for the baseline.
macro_rules! per_isa {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name(isa: $crate::model::kernels::cpu::Isa, $($arg: $ty),*) $(-> $ret)? {
            use $crate::model::kernels::cpu::simd::Level;
            #[allow(clippy::too_many_arguments, clippy::extra_unused_type_parameters)]
            #[inline(always)]
            fn body<const FMA: bool>($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            #[allow(clippy::too_many_arguments)]
            #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
            fn avx512($($arg: $ty),*) $(-> $ret)? { body::<true>($($arg),*) }
            #[cfg(target_arch = "x86_64")]
            #[allow(clippy::too_many_arguments)]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $ty),*) $(-> $ret)? { body::<true>($($arg),*) }
            match isa.0 {
                // SAFETY: an `Isa` exists only for a set that this machine supports.
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => unsafe { avx2($($arg),*) },
                #[cfg(target_arch = "aarch64")]
                Level::Neon => body::<true>($($arg),*),
                Level::Portable => body::<false>($($arg),*),
            }
        }
    };
}
pub(super) use per_isa;

/// A buffer that the tasks of one kernel write in disjoint parts. It is never zeroed: whoever calls [`Output::finish`] vouches that all was written.
pub(super) struct Output<'a> {
    data: Vec<f32>,
    len: usize,
    start: *mut f32,
    borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: only the raw parts are shared, through `slice`, whose contract forbids overlapping use.
unsafe impl Sync for Output<'_> {}

impl<'a> Output<'a> {
    /// Parts of a buffer that the caller keeps. [`Output::finish`] gives nothing then.
    pub(super) fn over(buffer: &'a mut [f32]) -> Self {
        Self {
            data: Vec::new(),
            len: buffer.len(),
            start: buffer.as_mut_ptr(),
            borrowed: PhantomData,
        }
    }

    pub(super) fn new(len: usize) -> Self {
        let mut data = Vec::with_capacity(len);
        let start: *mut f32 = data.as_mut_ptr();
        prefer_huge_pages(start.cast(), len * size_of::<f32>());
        Self {
            data,
            len,
            start,
            borrowed: PhantomData,
        }
    }

    /// A part of the buffer, to be written before it is read.
    ///
    /// # Safety
    /// No two slices that are alive at the same time may overlap.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn slice(&self, from: usize, len: usize) -> &mut [f32] {
        assert!(
            from + len <= self.len,
            "kernel output: {from} + {len} is beyond {}",
            self.len
        );
        // SAFETY: inside the allocation by the assertion, and exclusive by the contract. Every bit pattern is a float.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), len) }
    }

    /// A buffer whose parts of `chunk` elements (the last one may be shorter) are written in parallel by `write(index of the part, part)`.
    ///
    /// # Safety
    /// `write` writes every element of its part, and reads none before that.
    pub(super) unsafe fn in_chunks(
        len: usize,
        chunk: usize,
        write: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Vec<f32> {
        let output = Self::new(len);
        let chunk = chunk.max(1);
        (0..len.div_ceil(chunk)).into_par_iter().for_each(|index| {
            let from = index * chunk;
            // SAFETY: the parts do not overlap.
            write(index, unsafe { output.slice(from, chunk.min(len - from)) });
        });
        // SAFETY: by the contract, all parts are written.
        unsafe { output.finish() }
    }

    /// # Safety
    /// Every element was written.
    pub(super) unsafe fn finish(mut self) -> Vec<f32> {
        // SAFETY: the capacity is `len` and the elements are written, by the contract.
        unsafe { self.data.set_len(self.len.min(self.data.capacity())) };
        self.data
    }
}

/// A zeroed buffer in huge pages where the system has them; nothing of it is touched yet.
pub fn zeroed(len: usize) -> Vec<f32> {
    let mut data = vec![0.0f32; len];
    prefer_huge_pages(data.as_mut_ptr().cast(), len * size_of::<f32>());
    data
}

/// Asks the system for huge pages in a large new buffer: it is then handed over in hundreds of faults instead of hundreds of thousands, and the
/// many rows that a convolution reads at a time need few address translations. A refusal does no harm.
#[cfg(target_os = "linux")]
fn prefer_huge_pages(start: *mut u8, size_bytes: usize) {
    const HUGE_PAGE_BYTES: usize = 2 << 20;
    const MADV_HUGEPAGE: i32 = 14;
    unsafe extern "C" {
        fn madvise(start: *mut std::ffi::c_void, size_bytes: usize, advice: i32) -> i32;
    }
    let skip = start.align_offset(HUGE_PAGE_BYTES);
    let whole = size_bytes.saturating_sub(skip) / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
    if whole > 0 {
        // SAFETY: whole pages inside an allocation of ours; this advice changes no content.
        unsafe { madvise(start.add(skip).cast(), whole, MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn prefer_huge_pages(_: *mut u8, _: usize) {}

/// Calls `run` with this thread's scratch memory: one slice of each length, aligned to 64 bytes, with any (finite or not) content.
/// The memory is kept for the next call, so `run` must not use it again through a nested call.
pub(super) fn with_scratch<const N: usize, T>(
    lens: [usize; N],
    run: impl FnOnce([&mut [f32]; N]) -> T,
) -> T {
    thread_local!(static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) });
    const ALIGN: usize = 16;
    let lens = lens.map(|len| len.next_multiple_of(ALIGN));
    SCRATCH.with_borrow_mut(|scratch| {
        let total = lens.iter().sum::<usize>() + ALIGN;
        if scratch.len() < total {
            scratch.resize(total, 0.0);
        }
        let skip = scratch.as_ptr().align_offset(64).min(ALIGN);
        let mut rest = &mut scratch[skip..];
        run(lens.map(|len| {
            let (head, tail) = std::mem::take(&mut rest).split_at_mut(len);
            rest = tail;
            head
        }))
    })
}

/// Cuts `0..len` into ranges of at most `size`.
pub(super) fn ranges(
    len: usize,
    size: usize,
) -> impl Iterator<Item = std::ops::Range<usize>> + Clone {
    let size = size.max(1);
    (0..len)
        .step_by(size)
        .map(move |from| from..len.min(from + size))
}
