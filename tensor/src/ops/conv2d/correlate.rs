//! y[pixel, column] = chain over (plane, taps) of source · weight: the forward pass, and the input's gradient. Where
//! operands are pairs, a link takes two planes at one tap, and behind an odd last plane is one of zeros.
//!
//! Rows of the product are output pixels of some samples, columns are output channels. The source is read in place
//! (`gemm::indirect`), weights are packed once for all samples, and a finished tile is written transposed, since
//! pixels are what lies side by side in memory.

use super::frame::Frame;
use crate::gemm::Start;
use crate::gemm::indirect::{self, Steps, Tile};
use crate::ops::{Work, take};
use crate::real::{Real, Rows};
use crate::simd::Set;

/// The source, and what is computed from it.
pub(super) struct Correlation<'a> {
    pub frame: Frame,
    /// Planes of a sample of the source.
    pub planes: usize,
    pub parts: &'a [Part],
    /// Planes of a sample of the output, and elements of each.
    pub columns: usize,
    pub plane: usize,
}

/// Output pixels that see the same taps: a grid in the output, each of its points a window in the source.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub taps: (usize, usize),
    /// Points along y and x.
    pub points: (usize, usize),
    /// The first point's window in the framed source, and the distance to the next one's.
    pub window: Grid,
    /// The first point in the output's plane.
    pub pixel: Grid,
    /// Where its packed weights start.
    pub weights: usize,
}

/// Points of a plane: the first, their distance along both axes, and the elements of a row of the plane.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    pub first: (usize, usize),
    pub every: usize,
    pub row: usize,
}

impl Grid {
    fn at(self, (y, x): (usize, usize)) -> usize {
        (self.first.0 + y * self.every) * self.row + self.first.1 + x * self.every
    }
}

impl Part {
    fn len(&self) -> usize {
        self.points.0 * self.points.1
    }

    fn points(&self) -> impl Iterator<Item = (usize, usize)> {
        let (rows, columns) = self.points;
        (0..rows).flat_map(move |y| (0..columns).map(move |x| (y, x)))
    }

    /// Links of a chain.
    fn links(&self, planes: usize) -> usize {
        planes * self.taps.0 * self.taps.1
    }
}

/// Elements of the framed source of a task: it stays in the second-level cache while panels of weights pass by.
const SOURCE: usize = 96 << 10;
/// Rows of the product that are written at once: three lines of the cache of each column's plane, which may all share
/// one set of the first-level cache.
const STORED: usize = 48;
/// Tasks for each thread: the last ones even out what the others left.
const TASKS: usize = 4;

impl Correlation<'_> {
    /// Writes y (sample, column, plane). `weights`: for each part, panels of columns as (links, width); see `panels`.
    pub fn run<F: Real>(&self, source: &[F], weights: &[F::Operand], bias: &[F], y: &mut [F], work: &mut Work<F>) {
        let (from, to) = (self.planes * self.frame.image.0 * self.frame.image.1, self.columns * self.plane);
        if to == 0 {
            return;
        }
        let samples = y.len() / to;
        let image = (self.planes * self.frame.len()).max(1);
        let group = (SOURCE / image).min(samples.div_ceil(TASKS * work.team.threads())).max(1);
        let set = F::set(Set::best());
        let planes = self.planes.div_ceil(F::PER);
        let mut tables = std::mem::take(&mut work.rooms[0].tables);
        self.fill_tables(planes, &mut tables);
        let Work { team, rooms } = work;
        team.chunks_in(rooms, y, group * to, |room, i, y| {
            let samples = y.len() / to;
            let source = &source[i * group * from..][..samples * from];
            let framed = self.frame.framed(source, &mut room.columns);
            let framed = match F::in_place(framed) {
                Some(framed) => framed,
                None => self.planes_in_operands(set, framed, &mut room.operands),
            };
            let mut table = &tables[..];
            for part in self.parts {
                let (steps, rest) = table.split_at(part.links(planes));
                let (windows, rest) = rest.split_at(part.len());
                table = rest;
                let task: Task<'_, F> =
                    Task { of: self, part, set, planes, steps: Steps::new(steps), windows, source: framed };
                task.run(&weights[part.weights..], bias, y);
            }
        });
        work.rooms[0].tables = tables;
    }

    /// Two planes at a time as one of pairs, a sample after the other.
    fn planes_in_operands<'a, F: Real>(
        &self,
        set: Set,
        framed: &[F],
        room: &'a mut Vec<F::Operand>,
    ) -> &'a [F::Operand] {
        let (plane, planes) = (self.frame.len(), self.planes.div_ceil(F::PER));
        let samples = framed.len() / (self.planes * plane).max(1);
        let room = take(room, samples * planes * plane);
        for sample in 0..samples {
            let rows =
                Rows { data: &framed[sample * self.planes * plane..], stride: plane, count: self.planes, width: plane };
            F::crosswise(set, rows, plane, &mut room[sample * planes * plane..][..planes * plane]);
        }
        room
    }

    /// For each part: the steps of a chain, then each point's window in the first sample.
    fn fill_tables(&self, planes: usize, tables: &mut Vec<u32>) {
        tables.clear();
        let at = |at: usize| u32::try_from(at).expect("a framed sample has less than 2^32 elements");
        for part in self.parts {
            for plane in 0..planes {
                let taps = (0..part.taps.0).flat_map(|y| (0..part.taps.1).map(move |x| (y, x)));
                tables.extend(taps.map(|(y, x)| at(plane * self.frame.len() + y * self.frame.size.1 + x)));
            }
            tables.extend(part.points().map(|point| at(part.window.at(point))));
        }
    }
}

/// Some samples of one part.
struct Task<'a, F: Real> {
    of: &'a Correlation<'a>,
    part: &'a Part,
    set: Set,
    steps: Steps<'a>,
    windows: &'a [u32],
    source: &'a [F::Operand],
    /// Planes of operands of a sample of the source.
    planes: usize,
}

impl<F: Real> Task<'_, F> {
    fn run(&self, weights: &[F::Operand], bias: &[F], y: &mut [F]) {
        let (height, width) = indirect::size(self.set.isa());
        // Twelve of fourteen rows: a tile is written transposed, four and eight pixels at once, and the kernel does as
        // many multiply-adds a cycle with twelve.
        let height = if height > 12 { 12 } else { height };
        let links = self.part.links(self.planes);
        let rows_all = y.len() / (self.of.columns * self.of.plane) * self.windows.len();
        let mut tiles = [F::ZERO; STORED * 32];
        let mut rows = [0u32; STORED];
        for first in (0..self.of.columns).step_by(width) {
            let columns = width.min(self.of.columns - first);
            let b = &weights[first * links..][..links * width];
            for row in (0..rows_all).step_by(STORED) {
                let rows = &mut rows[..STORED.min(rows_all - row)];
                self.places(row, rows);
                let tiles = &mut tiles[..rows.len() * width];
                for (rows, c) in rows.chunks(height).zip(tiles.chunks_mut(height * width)) {
                    let (a, steps) = (self.source, self.steps);
                    F::indirect(self.set, Tile { a, rows, steps, b, start: Start::Zero, left: &[] }, c);
                }
                if !bias.is_empty() {
                    let bias = &bias[first..][..columns];
                    tiles.chunks_exact_mut(width).for_each(|c| c.iter_mut().zip(bias).for_each(|(y, b)| *y += *b));
                }
                self.store(tiles, width, row, (first, columns), y);
            }
        }
    }

    /// Where the windows of rows `row..` start in the source.
    fn places(&self, row: usize, places: &mut [u32]) {
        let points = self.windows.len();
        let (mut sample, mut point) = (row / points, row % points);
        for place in places {
            *place = (sample * self.planes * self.of.frame.len()) as u32 + self.windows[point];
            point += 1;
            if point == points {
                (sample, point) = (sample + 1, 0);
            }
        }
    }

    /// Writes rows `row..` of the part's product, of which `c` holds the columns from `first` on.
    fn store(&self, c: &[F], width: usize, row: usize, (first, columns): (usize, usize), y: &mut [F]) {
        let (points, rows) = (self.windows.len(), c.len() / width);
        let Correlation { columns: all, plane, .. } = *self.of;
        let is_whole = self.part.pixel.every == 1 && points == plane;
        let mut done = 0;
        while done < rows {
            let (sample, point) = ((row + done) / points, (row + done) % points);
            let run = if is_whole { (points - point).min(rows - done) } else { 1 };
            let pixel = if is_whole {
                point
            } else {
                self.part.pixel.at((point / self.part.points.1, point % self.part.points.1))
            };
            let to = &mut y[(sample * all + first) * plane + pixel..];
            F::transpose(&c[done * width..], width, to, plane, (run, columns));
            done += run;
        }
    }
}

/// Operands of `columns` columns' packed panels of so many links.
pub(super) fn packed<F: Real>(columns: usize, links: usize) -> usize {
    let (_, width) = indirect::size(F::set(Set::best()).isa());
    columns.next_multiple_of(width) * links
}

/// Which weights a part's product has.
#[derive(Clone, Copy)]
pub(super) struct Weights {
    pub columns: usize,
    pub planes: usize,
    pub taps: usize,
    /// Where they are packed to.
    pub at: usize,
}

/// Packs weights as panels of (links, width): `weight(plane, tap, column)`, zeros behind the last column and, where a
/// link takes several planes, the last plane. A task packs `LINKS` links of one panel.
pub(super) fn pack<F: Real>(
    work: &mut Work<F>,
    out: &mut Vec<F::Operand>,
    Weights { columns, planes, taps, at }: Weights,
    weight: impl Fn(usize, usize, usize) -> F + Sync,
) {
    let (_, width) = indirect::size(F::set(Set::best()).isa());
    let links = planes.div_ceil(F::PER) * taps;
    let out = take(out, at + packed::<F>(columns, links));
    work.team.chunks(&mut out[at..], LINKS * width, |_, i, out| {
        // Panels have whole numbers of links, chunks need not end with them.
        for (row, out) in out.chunks_exact_mut(width).enumerate() {
            let (panel, link) = ((i * LINKS + row) / links, (i * LINKS + row) % links);
            let (plane, tap) = (link / taps * F::PER, link % taps);
            for (column, out) in out.iter_mut().enumerate() {
                let column = panel * width + column;
                let weight =
                    |plane| if column < columns && plane < planes { weight(plane, tap, column) } else { F::ZERO };
                let second = if F::PER > 1 { weight(plane + 1) } else { F::ZERO };
                *out = F::operand(weight(plane), second);
            }
        }
    });
}

/// Rows of packed weights of one task.
const LINKS: usize = 64;
