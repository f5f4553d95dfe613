//! How every packed matrix lies, whatever its elements: panels of [`PANEL`]
//! output columns, on cache lines. And how a product is shared out: by panels,
//! and by stretches of rows where there are many.

use std::mem::MaybeUninit;
use std::num::NonZeroUsize;
use std::ops::Range;

use crate::infer::ops::pool;

/// Columns of a panel: two AVX-512 registers, four AVX2 ones.
pub const PANEL: usize = 32;

/// Words of a [`Line`].
pub const LINE: usize = 16;

/// Rows in one parallel task: enough to pay for reading the panel again.
const TASK_ROWS: usize = 96;

/// Products below which a second thread costs more than it brings.
const PARALLEL_MIN: usize = 1 << 15;

/// Words that share a cache line, on which panels begin, so that no vector
/// load crosses two.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub struct Line<W>(pub [W; LINE]);

/// `len` lines, of which `write(i, chunk)` makes every `chunk_len` out of zeros.
/// The thread that packs a chunk is the first to touch it, so that the system's
/// page faults are shared out too.
pub fn packed<W: Copy + Default + Send>(
    len: usize,
    chunk_len: usize,
    write: impl Fn(usize, &mut [Line<W>]) + Sync,
) -> Vec<Line<W>> {
    let mut lines = Vec::with_capacity(len);
    pool::for_each_chunk(&mut lines.spare_capacity_mut()[..len], chunk_len, |index, chunk| {
        chunk.fill(MaybeUninit::new(Line([W::default(); LINE])));
        // SAFETY: all of the chunk has just been written, and it lies like lines.
        write(index, unsafe { &mut *(std::ptr::from_mut(chunk) as *mut [Line<W>]) });
    });
    // SAFETY: chunks cover all `len` lines, and each has been written.
    unsafe { lines.set_len(len) };
    lines
}

/// Shares out a product of `num_rows` with `out` columns of `width` inputs: runs
/// `task` for every panel and stretch of rows, with the columns that the panel
/// has in the output. Panels are outermost, so that what a thread reads of the
/// weights is contiguous for as long as nobody else takes the next one.
pub fn fill(
    num_rows: usize,
    out: usize,
    width: usize,
    task: impl Fn(usize, Range<usize>, Range<usize>) + Sync,
) {
    let Some(stretches) = NonZeroUsize::new(num_rows.div_ceil(TASK_ROWS)) else { return };
    let num_tasks = out.div_ceil(PANEL) * stretches.get();
    let run = |index: usize| {
        let (panel, first) = (index / stretches, index % stretches * TASK_ROWS);
        let column = panel * PANEL;
        task(panel, first..num_rows.min(first + TASK_ROWS), column..out.min(column + PANEL));
    };
    if num_rows * out * width < PARALLEL_MIN {
        (0..num_tasks).for_each(run);
    } else {
        pool::run(num_tasks, run);
    }
}
