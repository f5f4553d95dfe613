//! How every packed matrix lies, whatever its elements: panels of [`PANEL`]
//! output columns, on cache lines. And how a product is shared out: by panels,
//! and by stretches of rows where there are many.

use std::num::NonZeroUsize;
use std::ops::Range;

use crate::infer::ops::columns::Columns;
use crate::infer::ops::pool;

/// Columns of a panel: two AVX-512 registers, four AVX2 ones.
pub const PANEL: usize = 32;

/// Words of a [`Line`].
pub const LINE: usize = 16;

/// Rows in one parallel task: enough to pay for reading the panel again.
const TASK_ROWS: usize = 96;

/// Words multiplied below which a second thread costs more than it brings.
const PARALLEL_MIN: usize = 1 << 15;

/// Words that share a cache line, on which panels begin, so that no vector
/// load crosses two.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub struct Line<W>(pub [W; LINE]);

/// Fills `y`, `[rows, out]`. `task` is run for every panel and stretch of rows
/// and hands each row's results, counted from the stretch's first, to the
/// function it is given. Panels are outermost, so that what a thread reads of
/// the weights is contiguous for as long as nobody else takes the next one.
/// `width` is the number of words in a column.
pub fn fill(
    y: Columns,
    out: usize,
    width: usize,
    task: impl Fn(usize, Range<usize>, &mut dyn FnMut(usize, &[f32; PANEL])) + Sync,
) {
    let num_rows = y.rows();
    let Some(stretches) = NonZeroUsize::new(num_rows.div_ceil(TASK_ROWS)) else { return };
    let num_tasks = out.div_ceil(PANEL) * stretches.get();
    let run = |index: usize| {
        let (panel, first) = (index / stretches, index % stretches * TASK_ROWS);
        let rows = first..num_rows.min(first + TASK_ROWS);
        let column = panel * PANEL;
        let count = PANEL.min(out - column);
        let num_rows = rows.len();
        task(panel, rows, &mut |row, sums| {
            assert!(row < num_rows, "row {row} of a stretch of {num_rows}");
            // SAFETY: no two tasks share a row and a panel's columns, and `y` is
            // alive and borrowed for as long as a layer runs.
            unsafe { y.write(first + row, column, &sums[..count]) };
        });
    };
    if num_rows * out * width < PARALLEL_MIN {
        (0..num_tasks).for_each(run);
    } else {
        pool::run(num_tasks, run);
    }
}
