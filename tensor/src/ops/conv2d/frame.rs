//! Images with margins, so that a window reads no pixel outside of its image.

use crate::ops::take;
use crate::real::Real;

/// One plane inside its margins; what is in them is zero.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    /// Height and width of the plane itself.
    pub image: (usize, usize),
    /// Rows above and columns to the left of it.
    pub before: (usize, usize),
    /// Height and width with the margins.
    pub size: (usize, usize),
}

impl Frame {
    /// Margins on both sides of each axis.
    pub fn new(image: (usize, usize), before: (usize, usize), behind: (usize, usize)) -> Frame {
        let size = (image.0 + before.0 + behind.0, image.1 + before.1 + behind.1);
        Frame { image, before, size }
    }

    pub fn len(self) -> usize {
        self.size.0 * self.size.1
    }

    fn has_margins(self) -> bool {
        self.size != self.image
    }

    /// Elements of the buffer that `fill` writes for so many planes.
    pub fn room(self, planes: usize) -> usize {
        if self.has_margins() { planes * self.len() } else { 0 }
    }

    /// The planes inside their margins; themselves where there are none.
    pub fn framed<'a, F: Real>(self, planes: &'a [F], room: &'a mut Vec<F>) -> &'a [F] {
        if !self.has_margins() {
            return planes;
        }
        let count = planes.len() / (self.image.0 * self.image.1).max(1);
        let room = take(room, self.room(count));
        self.fill(planes, room);
        room
    }

    /// Writes all of `framed`: margins and planes.
    pub fn fill<F: Real>(self, planes: &[F], framed: &mut [F]) {
        let ((height, width), (above, left)) = (self.image, self.before);
        if height * width == 0 {
            return framed.fill(F::ZERO);
        }
        let planes = planes.chunks_exact(height * width);
        for (framed, plane) in framed.chunks_exact_mut(self.len()).zip(planes) {
            // From the first row's end to the next one's start the margins are one run of zeros.
            let mut done = 0;
            for (y, row) in plane.chunks_exact(width).enumerate() {
                let at = (above + y) * self.size.1 + left;
                framed[done..at].fill(F::ZERO);
                framed[at..at + width].copy_from_slice(row);
                done = at + width;
            }
            framed[done..].fill(F::ZERO);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_lie_inside_zeros() {
        let frame = Frame::new((2, 3), (1, 2), (0, 1));
        let mut room = vec![7.0; 100];
        let framed = frame.framed(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &mut room);
        let wanted = [[0.0; 6], [0.0, 0.0, 1.0, 2.0, 3.0, 0.0], [0.0, 0.0, 4.0, 5.0, 6.0, 0.0]];
        assert_eq!(framed, wanted.as_flattened());
    }

    #[test]
    fn without_margins_nothing_is_copied() {
        let mut room = Vec::new();
        assert_eq!(Frame::new((1, 2), (0, 0), (0, 0)).framed(&[1.0, 2.0], &mut room), [1.0, 2.0]);
        assert!(room.is_empty());
    }
}
