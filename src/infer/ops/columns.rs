//! The output of an op while threads fill it: a row-major matrix of which each
//! task owns some columns of some rows.

/// A matrix that is being filled, or added to.
#[derive(Debug, Clone, Copy)]
pub struct Columns {
    start: *mut f32,
    stride: usize,
    rows: usize,
    /// Column that `write` counts from.
    first: usize,
    add: bool,
}

// SAFETY: written through `write` alone, whose caller keeps ranges apart.
unsafe impl Send for Columns {}
// SAFETY: as above.
unsafe impl Sync for Columns {}

impl Columns {
    /// All of `values`, `[rows, stride]`; with `add`, what is written is added
    /// to what is there. The borrow ends here: see [`Columns::write`].
    pub fn of(values: &mut [f32], stride: usize, add: bool) -> Self {
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

    /// Writes or adds `values` to `row` from `column` on.
    ///
    /// # Safety
    /// No other thread may touch these elements at the same time, and the matrix
    /// must be alive and not borrowed otherwise.
    pub unsafe fn write(&self, row: usize, column: usize, values: &[f32]) {
        let column = self.first + column;
        assert!(row < self.rows && column + values.len() <= self.stride);
        // SAFETY: inside the matrix, as just asserted; not aliased, as promised.
        unsafe {
            let at = self.start.add(row * self.stride + column);
            if self.add {
                let sums = std::slice::from_raw_parts_mut(at, values.len());
                for (sum, value) in sums.iter_mut().zip(values) {
                    *sum += value;
                }
            } else {
                std::ptr::copy_nonoverlapping(values.as_ptr(), at, values.len());
            }
        }
    }
}
