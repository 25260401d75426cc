//! The loops of a tile of C in registers, written once for every set and kind of operand.
//!
//! A set's file says what a vector is and what a link of a chain does; `kernels!` makes the walks of it: along k
//! (`run`), along k for each shard and up the tree (`run_tree`), and along k through a table (`run_indirect`).

/// Makes the kernels of a set for tiles of `$height` rows by two vectors.
///
/// `load` and `store` move a vector of f32, `broadcast` repeats one operand, `link` is a chain's next link of (sum, x,
/// b), `begin` what a chain goes on from, `row` the links of a row in place, given (row, b, pointer to x), `add` the
/// tree's addition of a left sibling but for the NaN, and `end` what becomes of a finished chain that is no leaf.
macro_rules! kernels {
    (
        $operand:ty, $vector:ty, $lanes:literal, $features:literal, [$($count:literal)*], half: $half:literal,
        zero: $zero:ident, load: $load:ident, store: $store:ident, broadcast: $broadcast:ident, link: $link:ident,
        row: $row:ident, begin: $begin:ident, add: $add:ident, one_nan: $one_nan:ident, end: $end:ident $(,)?
    ) => {
        /// # Safety
        /// The machine has the features, and `Tile::check` held.
        pub(super) unsafe fn run(tile: Tile<'_, $operand>) {
            // SAFETY: the caller's promise is handed on.
            unsafe { by_rows!(tile.rows, rows(tile), $($count),*) }
        }

        /// # Safety
        /// The machine has the features, and `Tree::check` held.
        pub(super) unsafe fn run_tree(tree: Tree<'_, $operand>, room: &mut [f32]) {
            // SAFETY: the caller's promise is handed on.
            unsafe { by_rows!(tree.rows, tree_rows(tree, room), $($count),*) }
        }

        /// # Safety
        /// The machine has the features, and `indirect::Tile::check` held.
        pub(super) unsafe fn run_indirect(tile: indirect::Tile<'_, $operand, f32>, c: &mut [f32]) {
            // SAFETY: the caller's promise is handed on.
            unsafe { by_rows!(tile.rows.len(), indirect_rows(tile, c), $($count),*) }
        }

        /// # Safety
        /// As `run`, and `tile.rows == R`.
        #[target_feature(enable = $features)]
        unsafe fn rows<const R: usize>(tile: Tile<'_, $operand>) {
            let out = tile.c;
            // SAFETY: `Tile::check` made sure that a holds k * R operands, b reaches two vectors into its last row and c
            // two vectors into row R - 1, and that a bias is two vectors long.
            unsafe {
                let mut c = [[$zero(); 2]; R];
                match tile.start {
                    Start::Go => load_tile(&mut c, out, tile.c_stride),
                    // C's lines come while the chains are made.
                    Start::Zero => (0..R).for_each(|r| {
                        let row = out.add(r * tile.c_stride);
                        prefetch_to_write(row);
                        prefetch_to_write(row.add(2 * $lanes - 1));
                    }),
                }
                links(&mut c, tile.a.as_ptr(), tile.b.as_ptr(), tile.b_stride, tile.k);
                c.as_flattened_mut().iter_mut().for_each(|sum| *sum = $end(*sum));
                if !tile.bias.is_empty() {
                    let bias = tile.bias.as_ptr();
                    let bias = [$load(bias), $load(bias.add($lanes))];
                    c.iter_mut().for_each(|row| *row = [$add(row[0], bias[0]), $add(row[1], bias[1])]);
                }
                store_tile(&c, out, tile.c_stride);
            }
        }

        /// # Safety
        /// As `run_tree`, and `tree.rows == R`.
        #[target_feature(enable = $features)]
        unsafe fn tree_rows<const R: usize>(tree: Tree<'_, $operand>, room: &mut [f32]) {
            let room = room.as_mut_ptr();
            // Low tiles have registers for two leaves, whose sum is made before anything is stored.
            let together = if tree.shards > 1 && R <= $half { 2 } else { 1 };
            // SAFETY: `Tree::check` made sure that a and b hold k links of every shard, that the room holds a tile for
            // each level of the tree, and that c reaches two vectors into row R - 1.
            unsafe {
                for shard in (0..tree.shards).step_by(together) {
                    let leaf = |c: &mut [[$vector; 2]; R], shard: usize| {
                        let (a, b) = (shard * tree.k * R, shard * tree.k * 2 * $lanes);
                        links(c, tree.a.as_ptr().add(a), tree.b.as_ptr().add(b), 2 * $lanes, tree.k);
                    };
                    let mut c = [[$zero(); 2]; R];
                    leaf(&mut c, shard);
                    if together == 2 {
                        let mut right = [[$zero(); 2]; R];
                        leaf(&mut right, shard + 1);
                        for (sum, right) in c.as_flattened_mut().iter_mut().zip(right.as_flattened()) {
                            *sum = $add(*sum, *right);
                        }
                    }
                    // See `leaves::climb`.
                    let last = shard + together - 1;
                    let closed = last.trailing_ones() as usize;
                    for level in together - 1..closed {
                        let left = room.add(level * R * 2 * $lanes);
                        for (r, row) in c.iter_mut().enumerate() {
                            for (v, sum) in row.iter_mut().enumerate() {
                                *sum = $add($load(left.add((2 * r + v) * $lanes)), *sum);
                            }
                        }
                    }
                    if last + 1 < tree.shards {
                        store_tile(&c, room.add(closed * R * 2 * $lanes), 2 * $lanes);
                    } else {
                        // A NaN stays one on the way up, so it need be made the one NaN at the top alone.
                        c.as_flattened_mut().iter_mut().for_each(|sum| *sum = $one_nan(*sum));
                        store_tile(&c, tree.c, tree.c_stride);
                    }
                }
            }
        }

        /// # Safety
        /// As `run_indirect`, and the tile has R rows.
        #[target_feature(enable = $features)]
        unsafe fn indirect_rows<const R: usize>(tile: indirect::Tile<'_, $operand, f32>, out: &mut [f32]) {
            let out = out.as_mut_ptr();
            // SAFETY: `Tile::check` made sure that every row's start plus every step lies in a, that b holds two vectors a
            // step, that c holds R rows of two vectors, and left siblings are such tiles.
            unsafe {
                let starts: [*const $operand; R] =
                    std::array::from_fn(|r| tile.a.as_ptr().add(tile.rows[r] as usize));
                let mut c = [[$zero(); 2]; R];
                if tile.start == Start::Go {
                    load_tile(&mut c, out, 2 * $lanes);
                }
                let mut b = tile.b.as_ptr();
                for step in tile.steps.list() {
                    let line = [$load(b.cast()), $load(b.add($lanes).cast())];
                    for (start, row) in starts.iter().zip(&mut c) {
                        $row(row, line, start.wrapping_add(*step as usize));
                    }
                    b = b.add(2 * $lanes);
                }
                match tile.left {
                    [] => c.as_flattened_mut().iter_mut().for_each(|sum| *sum = $end(*sum)),
                    left => {
                        for left in left.chunks_exact(R * 2 * $lanes) {
                            for (sum, left) in c.as_flattened_mut().iter_mut().zip(left.as_chunks::<$lanes>().0) {
                                *sum = $add($load(left.as_ptr()), *sum);
                            }
                        }
                        c.as_flattened_mut().iter_mut().for_each(|sum| *sum = $one_nan(*sum));
                    }
                }
                store_tile(&c, out, 2 * $lanes);
            }
        }

        /// The next k links of all chains. A is (k, R), B has `stride` between its k rows.
        ///
        /// # Safety
        /// The machine has the features, A holds k * R operands and B reaches two vectors into its last row; the
        /// pointers walk exactly these (and end one step behind, computed by wrapping_add and not read).
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn links<const R: usize>(
            c: &mut [[$vector; 2]; R],
            mut a: *const $operand,
            mut b: *const $operand,
            stride: usize,
            k: usize,
        ) {
            for _ in 0..k {
                // SAFETY: as the caller promises.
                unsafe {
                    let line = [$load(b.cast()), $load(b.add($lanes).cast())];
                    for (r, row) in c.iter_mut().enumerate() {
                        let x = $broadcast(&*a.add(r).cast::<f32>());
                        row[0] = $link(row[0], x, line[0]);
                        row[1] = $link(row[1], x, line[1]);
                    }
                }
                a = a.wrapping_add(R);
                b = b.wrapping_add(stride);
            }
        }

        /// # Safety
        /// The machine has the features, and two vectors lie at each of the R rows.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn load_tile<const R: usize>(c: &mut [[$vector; 2]; R], from: *const f32, stride: usize) {
            for (r, row) in c.iter_mut().enumerate() {
                // SAFETY: as the caller promises.
                unsafe {
                    row[0] = $begin($load(from.add(r * stride)));
                    row[1] = $begin($load(from.add(r * stride + $lanes)));
                }
            }
        }

        /// # Safety
        /// The machine has the features, and there is room for two vectors at each of the R rows.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn store_tile<const R: usize>(c: &[[$vector; 2]; R], to: *mut f32, stride: usize) {
            for (r, row) in c.iter().enumerate() {
                // SAFETY: as the caller promises.
                unsafe {
                    $store(to.add(r * stride), row[0]);
                    $store(to.add(r * stride + $lanes), row[1]);
                }
            }
        }
    };
}

/// Asks for a cache line that will be written. (`_mm_prefetch` only asks for one to be read unless a feature is on.)
///
/// # Safety
/// The machine is x86-64 with AVX2: all of those know the instruction. `at` may be any address.
#[inline(always)]
pub(super) unsafe fn prefetch_to_write(at: *const f32) {
    // SAFETY: a hint reads and writes nothing, and faults nowhere.
    unsafe {
        std::arch::asm!("prefetchw byte ptr [{at}]", at = in(reg) at, options(nostack, preserves_flags, readonly))
    };
}
