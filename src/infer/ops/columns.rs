//! The output of an op while threads fill it: a row-major matrix of which each
//! task owns some columns of some rows.

use std::ops::AddAssign;

/// A matrix that is being filled, or added to.
#[derive(Debug)]
pub struct Columns<T> {
    start: *mut T,
    stride: usize,
    rows: usize,
    /// Column that is counted from.
    first: usize,
    add: bool,
}

impl<T> Clone for Columns<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Columns<T> {}

// SAFETY: written through `slot` alone, whose caller keeps ranges apart.
unsafe impl<T: Send> Send for Columns<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Columns<T> {}

impl<T: Copy + AddAssign> Columns<T> {
    /// All of `values`, `[rows, stride]`; with `add`, what is written is added
    /// to what is there. The borrow ends here: see [`Columns::slot`].
    pub fn of(values: &mut [T], stride: usize, add: bool) -> Self {
        let rows = values.len().checked_div(stride).unwrap_or(0);
        Self { start: values.as_mut_ptr(), stride, rows, first: 0, add }
    }

    /// The same rows from `column` on.
    pub const fn starting_at(self, column: usize) -> Self {
        Self { first: self.first + column, ..self }
    }

    /// Rows of the matrix.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// `len` elements of `row` from `column` on.
    ///
    /// # Safety
    /// No other thread may touch these elements while the slice lives, and the
    /// matrix must be alive and not borrowed otherwise.
    #[expect(clippy::mut_from_ref, reason = "a handle of many tasks; see the promise")]
    pub unsafe fn slot(&self, row: usize, column: usize, len: usize) -> &mut [T] {
        let column = self.first + column;
        assert!(row < self.rows && column + len <= self.stride);
        // SAFETY: inside the matrix, as just asserted; not aliased, as promised.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.stride + column), len) }
    }

    /// Writes or adds `values` to `row` from `column` on.
    ///
    /// # Safety
    /// As for [`Columns::slot`], until it returns.
    pub unsafe fn write(&self, row: usize, column: usize, values: &[T]) {
        // SAFETY: as promised.
        let slot = unsafe { self.slot(row, column, values.len()) };
        if self.add {
            slot.iter_mut().zip(values).for_each(|(sum, value)| *sum += *value);
        } else {
            slot.copy_from_slice(values);
        }
    }
}
