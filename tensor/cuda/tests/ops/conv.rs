//! Convolutions and their gradients.

use crate::case::{check, check_shards, floats, given, special};
use elastic_tensor::ops::*;

/// Sizes of a convolution.
#[derive(Clone, Copy)]
pub struct Sizes {
    pub samples: usize,
    pub inner: usize,
    pub h: usize,
    pub w: usize,
    pub outer: usize,
    pub kh: usize,
    pub kw: usize,
    pub conv: Conv2d,
}

impl Sizes {
    pub const fn of(image: [usize; 4], [outer, kh, kw]: [usize; 3], stride: usize, pad: usize) -> Sizes {
        let [samples, inner, h, w] = image;
        Sizes { samples, inner, h, w, outer, kh, kw, conv: Conv2d { stride, pad } }
    }

    pub fn image(self) -> [usize; 4] {
        [self.samples, self.inner, self.h, self.w]
    }

    pub fn weight(self) -> [usize; 4] {
        [self.outer, self.inner, self.kh, self.kw]
    }

    pub fn out(self) -> [usize; 4] {
        let along = |size, kernel| (size + 2 * self.conv.pad - kernel) / self.conv.stride + 1;
        [self.samples, self.outer, along(self.h, self.kh), along(self.w, self.kw)]
    }

    pub fn forward(self) -> Op {
        Op::Conv2d(self.conv)
    }

    pub fn grad_input(self) -> Op {
        Op::Conv2dGradInput(Conv2dGradInput { conv: self.conv, image: self.image().to_vec() })
    }

    pub fn grad_weight(self) -> Op {
        Op::Conv2dGradWeight(Conv2dGradWeight { conv: self.conv, weight: self.weight().to_vec() })
    }
}

/// Strides, paddings and kernels that leave pixels unread, taps unmet, and points of one row.
pub const SIZES: [Sizes; 14] = [
    Sizes::of([1, 1, 1, 1], [1, 1, 1], 1, 0),
    Sizes::of([2, 3, 5, 7], [4, 1, 1], 1, 0),
    Sizes::of([2, 3, 8, 8], [5, 3, 3], 1, 1),
    Sizes::of([3, 2, 7, 5], [17, 3, 3], 2, 1),
    Sizes::of([2, 5, 9, 8], [3, 3, 2], 2, 0),
    Sizes::of([1, 3, 12, 12], [6, 5, 5], 3, 2),
    Sizes::of([2, 4, 6, 6], [4, 1, 1], 2, 0),
    Sizes::of([2, 2, 9, 7], [3, 2, 2], 3, 0),
    Sizes::of([1, 3, 8, 12], [9, 4, 4], 4, 0),
    Sizes::of([2, 3, 2, 3], [2, 5, 4], 1, 2),
    Sizes::of([1, 2, 3, 3], [2, 2, 2], 5, 3),
    Sizes::of([0, 3, 4, 4], [2, 3, 3], 1, 1),
    Sizes::of([2, 0, 4, 4], [2, 3, 3], 1, 1),
    Sizes::of([1, 17, 16, 20], [19, 3, 3], 1, 1),
];

/// Of a slab of links and more, and as many elements as it takes for tiles of 64 by 64 and of 128 by 128.
const MIDDLING: [Sizes; 2] = [Sizes::of([9, 3, 28, 31], [49, 2, 2], 1, 0), Sizes::of([9, 4, 28, 28], [52, 3, 3], 1, 1)];
const LARGE: Sizes = Sizes::of([11, 2, 37, 36], [120, 2, 3], 1, 1);

#[test]
fn convolutions_of_every_stride_and_padding() {
    for s in SIZES {
        let (x, w) = (floats(&s.image()), floats(&s.weight()));
        check(s.forward(), &[x.clone(), w.clone()]);
        check(s.forward(), &[x, w, floats(&[s.outer])]);
    }
}

#[test]
fn convolutions_of_many_pixels() {
    for s in MIDDLING {
        check(s.forward(), &[floats(&s.image()), floats(&s.weight()), floats(&[s.outer])]);
    }
    check(LARGE.forward(), &[floats(&LARGE.image()), floats(&LARGE.weight()), floats(&[LARGE.outer])]);
}

/// What a window sees of the padding is zero, and counts: an infinite weight there is NaN.
#[test]
fn convolutions_of_special_numbers() {
    for s in SIZES {
        let (image, weight) = (s.image(), s.weight());
        check(s.forward(), &[special(&image), floats(&weight), special(&[s.outer])]);
        check(s.forward(), &[floats(&image), special(&weight)]);
        check(s.grad_input(), &[special(&weight), floats(&s.out())]);
        check(s.grad_input(), &[floats(&weight), special(&s.out())]);
        check(s.grad_weight(), &[special(&image), floats(&s.out())]);
        check(s.grad_weight(), &[floats(&image), special(&s.out())]);
        check(Op::Conv2dGradBias(Conv2dGradBias), &[special(&s.out())]);
    }
}

/// A padded tap is a link, and makes a sum of -0 a sum of +0; behind the last link there is none.
#[test]
fn a_sum_of_minus_zero_is_the_processors() {
    let fill = |shape: &[usize], x: f32| given(shape, vec![x; shape.iter().product()]);
    for s in SIZES {
        check(s.forward(), &[fill(&s.image(), -1e-30), fill(&s.weight(), 1e-30)]);
        check(s.grad_input(), &[fill(&s.weight(), -1e-30), fill(&s.out(), 1e-30)]);
        check(s.grad_weight(), &[fill(&s.image(), -1e-30), fill(&s.out(), 1e-30)]);
    }
}

#[test]
fn gradients_of_the_input() {
    for s in SIZES {
        check(s.grad_input(), &[floats(&s.weight()), floats(&s.out())]);
    }
}

/// With one part, and with four of them, for each size of tiles.
#[test]
fn gradients_of_a_large_input() {
    for s in [
        Sizes::of([9, 50, 29, 32], [2, 2, 2], 1, 0),
        Sizes::of([11, 120, 37, 36], [1, 3, 2], 1, 1),
        Sizes::of([9, 50, 28, 30], [2, 3, 3], 2, 1),
        Sizes::of([10, 118, 38, 39], [1, 3, 3], 2, 1),
    ] {
        check(s.grad_input(), &[floats(&s.weight()), floats(&s.out())]);
    }
}

#[test]
fn gradients_of_the_weight() {
    for s in SIZES {
        for shards in [1, 2, 8] {
            let s = Sizes { samples: shards * s.samples, ..s };
            check_shards(shards, s.grad_weight(), &[floats(&s.image()), floats(&s.out())]);
        }
    }
    let s = SIZES[3];
    let s = Sizes { samples: 4 * s.samples, ..s };
    check_shards(4, s.grad_weight(), &[special(&s.image()), special(&s.out())]);
}

/// Blocks walk from shard to shard with small and with middling tiles, and middling ones stand alone.
#[test]
fn gradients_of_a_large_weight() {
    for (shards, s) in [
        (2, Sizes::of([4, 30, 3, 3], [260, 3, 3], 1, 1)),
        (2, Sizes::of([2, 78, 3, 2], [690, 3, 3], 1, 1)),
        (1, Sizes::of([1, 78, 2, 3], [690, 3, 3], 1, 1)),
    ] {
        check_shards(shards, s.grad_weight(), &[floats(&s.image()), floats(&s.out())]);
    }
}

#[test]
fn gradients_of_the_bias() {
    for shards in [1, 2, 8] {
        for [samples, channels, h, w] in [[1, 1, 1, 1], [3, 5, 7, 3], [2, 19, 6, 6], [0, 3, 2, 2], [1, 2, 31, 33]] {
            let dy = floats(&[shards * samples, channels, h, w]);
            check_shards(shards, Op::Conv2dGradBias(Conv2dGradBias), &[dy]);
        }
        check_shards(shards, Op::Conv2dGradBias(Conv2dGradBias), &[special(&[shards * 3, 4, 5, 5])]);
    }
}
