//! A dense matrix in the order in which the kernel reads it: panels of 32
//! output columns, each `[in, 32]`. A step then streams every weight once, in
//! address order, whatever the number of tokens.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, DType, Device, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::kernel::{PANEL, multiply};
use crate::infer::ops::f32_slice;
use crate::infer::ops::simd::Isa;

/// Rows of `x` in one parallel task: enough to pay for reading the panel again.
const TASK_ROWS: usize = 96;

/// Multiply-adds below which a second thread costs more than it brings.
const PARALLEL_MIN: usize = 1 << 16;

/// Floats in a cache line: panels begin on one, so that no vector load crosses two.
const ALIGN: usize = 16;

/// `[out, in]` in panels. Cloning shares the memory.
#[derive(Debug, Clone)]
pub struct PackedMatrix {
    /// `[panels, in, PANEL]`; columns past `out` are zero.
    panels: Tensor,
    out_features: usize,
    in_features: usize,
}

impl PackedMatrix {
    /// Packs matrices of `[out_i, in]`, f32, one below the other.
    ///
    /// # Errors
    /// When they are no f32 matrices of one width.
    pub fn pack(parts: &[Tensor]) -> Result<Self> {
        let Some(first) = parts.first() else { bail!("no matrix to pack") };
        let (_, in_features) = first.dims2()?;
        let guards: Vec<_> = parts.iter().map(Tensor::storage_and_layout).collect();
        let mut rows = Vec::new();
        for ((storage, layout), part) in guards.iter().zip(parts) {
            if part.dims2()?.1 != in_features || in_features == 0 {
                bail!("cannot stack {:?} on {:?}", part.shape(), first.shape());
            }
            let candle_core::Storage::Cpu(storage) = &**storage else {
                bail!("weights to pack must be in host memory");
            };
            rows.extend(f32_slice(storage, layout, "a weight")?.chunks_exact(in_features));
        }
        let num_panels = rows.len().div_ceil(PANEL);
        let shape = (num_panels, in_features, PANEL);
        let len = num_panels * in_features * PANEL;
        let mut data = vec![0_f32; len + ALIGN];
        let start = data.as_ptr().align_offset(ALIGN * size_of::<f32>()).min(ALIGN);
        data[start..start + len]
            .par_chunks_mut(in_features * PANEL)
            .zip(rows.par_chunks(PANEL))
            .for_each(|(panel, rows)| pack_panel(panel, rows));
        let panels = Tensor::from_vec(data, len + ALIGN, &Device::Cpu)?
            .narrow(0, start, len)?
            .reshape(shape)?;
        Ok(Self { panels, out_features: rows.len(), in_features })
    }

    /// `x` of `[num_tokens, in]` times the transpose: `[num_tokens, out]`.
    ///
    /// # Errors
    /// When `x` has another width or type.
    pub fn matmul(&self, x: &Tensor) -> Result<Tensor> {
        x.apply_op2_no_bwd(&self.panels, &MatMul { out_features: self.out_features })
    }

    /// The matrix's rows `ids`, `[ids, in]`: the embedding of a tied output head.
    ///
    /// # Errors
    /// When there is no such row.
    pub fn rows(&self, ids: &[u32]) -> Result<Tensor> {
        let width = self.in_features;
        let (storage, layout) = self.panels.storage_and_layout();
        let candle_core::Storage::Cpu(storage) = &*storage else {
            bail!("packed weights must be in host memory");
        };
        let panels = f32_slice(storage, layout, "panels")?;
        let mut rows: Vec<f32> = Vec::with_capacity(ids.len() * width);
        for id in ids {
            let id = *id as usize;
            if id >= self.out_features {
                bail!("row {id} of a matrix of {} rows", self.out_features);
            }
            let panel = &panels[(id / PANEL) * width * PANEL..][..width * PANEL];
            rows.extend(panel.iter().skip(id % PANEL).step_by(PANEL));
        }
        Tensor::from_vec(rows, (ids.len(), width), &Device::Cpu)
    }

    /// Output width.
    #[must_use]
    pub const fn out_features(&self) -> usize {
        self.out_features
    }
}

/// Writes `rows`, at most [`PANEL`] of them, as the columns of `panel`.
fn pack_panel(panel: &mut [f32], rows: &[&[f32]]) {
    // A few `k` at a time, so that the lines of both sides stay in cache.
    const STRIP: usize = 16;
    for (strip, lines) in panel.chunks_mut(STRIP * PANEL).enumerate() {
        for (column, row) in rows.iter().enumerate() {
            let values = row[strip * STRIP..].iter();
            for (line, value) in lines.chunks_exact_mut(PANEL).zip(values) {
                line[column] = *value;
            }
        }
    }
}

struct MatMul {
    out_features: usize,
}

impl CustomOp2 for MatMul {
    fn name(&self) -> &'static str {
        "packed-matmul"
    }

    /// `x` is `[num_tokens, in]`, the panels are `[panels, in, PANEL]`.
    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        panels: &CpuStorage,
        panels_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (num_tokens, width) = x_layout.shape().dims2()?;
        let (_, in_features, _) = panels_layout.shape().dims3()?;
        if width != in_features || x.dtype() != DType::F32 {
            bail!("expected x of f32 [_, {in_features}], got {:?} {x_layout:?}", x.dtype());
        }
        let x = f32_slice(x, x_layout, "x")?;
        let panels = f32_slice(panels, panels_layout, "panels")?;
        let mut y = vec![0_f32; num_tokens * self.out_features];
        multiply_panels(x, width, panels, self.out_features, &mut y);
        Ok((CpuStorage::F32(y), Shape::from((num_tokens, self.out_features))))
    }
}

/// Fills `y`, `[rows, out]`. Tasks are (panel, rows) pairs, panels outermost,
/// so that a thread's share is one stretch of the weights.
fn multiply_panels(x: &[f32], width: usize, panels: &[f32], out: usize, y: &mut [f32]) {
    let isa = Isa::detect();
    let rows = y.len() / out.max(1);
    let y = Columns { start: y.as_mut_ptr(), stride: out, rows };
    let row_tasks = rows.div_ceil(TASK_ROWS);
    let num_tasks = out.div_ceil(PANEL) * row_tasks;
    let run = |task: usize| {
        let (panel, first) = (task / row_tasks, task % row_tasks * TASK_ROWS);
        let last = rows.min(first + TASK_ROWS);
        let column = panel * PANEL;
        let count = PANEL.min(out - column);
        let panel = &panels[panel * width * PANEL..][..width * PANEL];
        multiply(isa, &x[first * width..last * width], width, panel, |row, sums| {
            // SAFETY: no two tasks share a row and a panel's columns, and `y`
            // is borrowed for the whole loop.
            unsafe { y.write(first + row, column, &sums[..count]) };
        });
    };
    if y.rows * out * width < PARALLEL_MIN {
        (0..num_tasks).for_each(run);
    } else {
        let share = (num_tasks / (4 * rayon::current_num_threads())).max(1);
        (0..num_tasks).into_par_iter().with_min_len(share).for_each(run);
    }
}

/// A row-major matrix whose column ranges different threads fill.
#[derive(Clone, Copy)]
struct Columns {
    start: *mut f32,
    stride: usize,
    rows: usize,
}

// SAFETY: written through `write` alone, whose caller keeps ranges apart.
unsafe impl Send for Columns {}
// SAFETY: as above.
unsafe impl Sync for Columns {}

impl Columns {
    /// # Safety
    /// No other thread may touch these elements at the same time, and the
    /// matrix must be alive and not borrowed otherwise.
    unsafe fn write(&self, row: usize, column: usize, values: &[f32]) {
        assert!(row < self.rows && column + values.len() <= self.stride);
        // SAFETY: inside the matrix, as just asserted; not aliased, as promised.
        unsafe {
            let at = self.start.add(row * self.stride + column);
            std::ptr::copy_nonoverlapping(values.as_ptr(), at, values.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(rows: usize, columns: usize) -> Tensor {
        Tensor::randn(0_f32, 1.0, (rows, columns), &Device::Cpu).unwrap()
    }

    fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
        let difference = (a - b).unwrap().abs().unwrap().flatten_all().unwrap();
        difference.max(0).unwrap().to_scalar().unwrap()
    }

    #[test]
    fn product_agrees_with_candles_matmul() {
        for (rows, width, out) in [(1, 64, 32), (3, 576, 100), (200, 40, 65)] {
            let (x, w) = (random(rows, width), random(out, width));
            let ours = PackedMatrix::pack(std::slice::from_ref(&w)).unwrap().matmul(&x).unwrap();
            let candles = x.matmul(&w.t().unwrap()).unwrap();
            assert!(largest_difference(&ours, &candles) < 1e-3, "{rows}x{width}x{out}");
        }
    }

    #[test]
    fn stacked_parts_give_outputs_side_by_side() {
        let (x, a, b) = (random(2, 24), random(20, 24), random(50, 24));
        let both = PackedMatrix::pack(&[a.clone(), b.clone()]).unwrap().matmul(&x).unwrap();
        let alone = |w: Tensor| PackedMatrix::pack(&[w]).unwrap().matmul(&x).unwrap();
        let apart = Tensor::cat(&[alone(a), alone(b)], 1).unwrap();
        assert_eq!(largest_difference(&both, &apart), 0.0);
    }

    #[test]
    fn rows_come_back_as_they_were_packed() {
        let w = random(70, 48);
        let packed = PackedMatrix::pack(std::slice::from_ref(&w)).unwrap();
        let rows = packed.rows(&[69, 0, 33]).unwrap();
        let ids = Tensor::new(&[69_u32, 0, 33], &Device::Cpu).unwrap();
        assert_eq!(largest_difference(&rows, &w.index_select(&ids, 0).unwrap()), 0.0);
        assert!(packed.rows(&[70]).is_err());
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let packed = PackedMatrix::pack(&[random(8, 16)]).unwrap();
        assert!(packed.matmul(&random(1, 15)).is_err());
        assert!(PackedMatrix::pack(&[random(8, 16), random(8, 17)]).is_err());
        assert!(PackedMatrix::pack(&[]).is_err());
    }
}
