//! One loop, compiled for several instruction sets, with the same bits from each.
//!
//! The build may assume no more than SSE2 on x86-64, a quarter of what AVX-512 does at once. A function written in
//! [`vectorised!`] is compiled once for each set of `gemm::Isa`, and runs on the one that it is given. Rust never fuses
//! a product and a sum by itself, and each element of a vector is rounded as a single one is, so the bits are equal by
//! construction. Such a function keeps to plain arithmetic: `f32::mul_add` would be a slow call in the portable set.

use crate::gemm::Isa;

/// A set that this machine has.
#[derive(Clone, Copy, Debug)]
pub struct Set(Isa);

impl Set {
    /// The fastest here. Asked once for an op, not once for a task: tests force it for the calling thread alone.
    pub(crate) fn best() -> Set {
        Set::of(Isa::best())
    }

    pub(crate) fn of(isa: Isa) -> Set {
        debug_assert!(Isa::here().contains(&isa), "a set that this machine has");
        Set(isa)
    }

    pub(crate) fn isa(self) -> Isa {
        self.0
    }
}

/// Asks for the line of an element that is read soon. The processor does so by itself along a page, not from one page to
/// the next.
#[inline(always)]
pub(crate) fn prefetch<T>(xs: &[T], at: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(x) = xs.get(at) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint that reads nothing, for an element that is there.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(x).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (xs, at);
}

/// `vectorised! { fn name[generics](argument: Type, …) -> Type { body } }` makes a function of a [`Set`] and the
/// arguments. What the body calls must be `#[inline(always)]` to be compiled for the set as well; a closure will do
/// if it is small. The bits do not depend on that.
macro_rules! vectorised {
    ($(#[$meta:meta])* $vis:vis fn $name:ident[$($generics:tt)*]($($arg:ident: $ty:ty),* $(,)?) $(-> $out:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, reason = "the set comes on top")]
        $vis fn $name<$($generics)*>(set: $crate::simd::Set, $($arg: $ty),*) $(-> $out)? {
            #[inline(always)]
            fn body<$($generics)*>($($arg: $ty),*) $(-> $out)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f")]
            fn avx512<$($generics)*>($($arg: $ty),*) $(-> $out)? {
                body($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2<$($generics)*>($($arg: $ty),*) $(-> $out)? {
                body($($arg),*)
            }

            match set.isa() {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: a `Set` is made of what `Isa::here` found on this machine: it has avx512f.
                $crate::gemm::Isa::Avx512 => unsafe { avx512($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above, avx2 and fma.
                $crate::gemm::Isa::Avx2 => unsafe { avx2($($arg),*) },
                _ => body($($arg),*),
            }
        }
    };
}

pub(crate) use vectorised;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::FORCED;
    use crate::math;

    vectorised! {
        fn powers[](y: &mut [f32], x: &[f32]) {
            for (y, x) in y.iter_mut().zip(x) {
                *y = math::exp(*x) + math::exp2(*x * 0.01) * *x;
            }
        }
    }

    #[test]
    fn every_set_gives_the_same_bits() {
        let x: Vec<f32> = (0..100_003).map(|i| (i as f32 - 50_000.0) * 2.1e-3).collect();
        let run = |isa| {
            FORCED.set(Some(isa));
            let mut y = vec![0.0f32; x.len()];
            let set = Set::best();
            assert_eq!(set.isa(), isa);
            powers(set, &mut y, &x);
            y.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let wanted = run(Isa::Portable);
        for isa in Isa::here() {
            assert!(run(isa) == wanted, "{isa:?}");
        }
    }
}
