//! Products of few rows, which only read matrices; see
//! [`crate::infer::ops::Linear`] and [`crate::infer::ops::GatedLinear`].

use crate::infer::cuda::device::Product;
use crate::infer::cuda::launch::by_element;
use crate::infer::cuda::{Element, Launch, LaunchError, View};

/// Most rows of `x` that these kernels multiply.
pub const MAX_ROWS: usize = 4;

/// `kGemvThreads` of the kernel.
const THREADS: usize = 128;

/// `kGemvRows` of the kernel: rows of the matrix that a block multiplies.
const BLOCK_ROWS: usize = 4;

/// The product of at most [`MAX_ROWS`] rows. A row has the bits that it has alone.
///
/// # Errors
/// [`LaunchError`] when a view does not fit, there are too many rows, or a row of
/// `x` is not made of whole 16 bytes.
pub fn gemv(product: &Product) -> Result<Launch, LaunchError> {
    product.check()?;
    let Product { x, w, out, shape: [m, n, k], add } = *product;
    let element = x.element;
    let function = match m {
        1 => by_element!("gemv1", element),
        2 => by_element!("gemv2", element),
        3 => by_element!("gemv3", element),
        4 => by_element!("gemv4", element),
        _ => Err(too_many(m)),
    }?;
    // As `GemvMode` of the kernel.
    let mode = match (add, out.element) {
        (true, Element::F32) => 1,
        (true, other) => return Err(LaunchError(format!("gemv adds to F32, got {other:?}"))),
        (false, Element::F32) => 2,
        (false, _) => 0,
    };
    check_width(k, element)?;
    Launch::new("gemv", function, [n.div_ceil(BLOCK_ROWS), 1, 1], [THREADS, 1, 1])?
        .arg(x.ptr)
        .arg(w.ptr)
        .arg(out.ptr)
        .int(n)?
        .int(k)?
        .int(mode)
}

/// `silu(x gate^T) * (x up^T)` of `x`, `[m, k]`, and `w`, `[2 * inner, k]`, the
/// rows of the gate first, into `out`, `[m, inner]`, all of one type: f32, f16 or
/// bf16. `m` is at most [`MAX_ROWS`]. A row has the bits that it has alone.
///
/// # Errors
/// [`LaunchError`] when a view does not fit, `m` is too large, or a row of `x` is
/// not made of whole 16 bytes.
pub fn gated_gemv(
    x: View,
    w: View,
    out: View,
    [m, inner, k]: [usize; 3],
) -> Result<Launch, LaunchError> {
    let element = x.element;
    let function = match m {
        1 => by_element!("gated_gemv1", element),
        2 => by_element!("gated_gemv2", element),
        3 => by_element!("gated_gemv3", element),
        4 => by_element!("gated_gemv4", element),
        _ => Err(too_many(m)),
    }?;
    check_width(k, element)?;
    let grid = [inner.div_ceil(BLOCK_ROWS / 2), 1, 1];
    Launch::new("gemv", function, grid, [THREADS, 1, 1])?
        .arg(x.expect("x", element, m * k)?)
        .arg(w.expect("w", element, 2 * inner * k)?)
        .arg(out.expect("out", element, m * inner)?)
        .int(inner)?
        .int(k)
}

fn too_many(m: usize) -> LaunchError {
    LaunchError(format!("gemv takes 1 to {MAX_ROWS} rows, got {m}"))
}

fn check_width(k: usize, element: Element) -> Result<(), LaunchError> {
    let pack = 16 / element.num_bytes();
    if !k.is_multiple_of(pack) {
        return Err(LaunchError(format!("gemv: k {k} is no multiple of {pack}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infer::cuda::simt::{Values, assert_clean, every_order, survives};

    const ELEMENTS: [(Element, f32); 3] =
        [(Element::F32, 1e-6), (Element::F16, 6e-4), (Element::Bf16, 4e-3)];

    /// Both operands, small enough that sums stay near 1.
    fn operands([m, n, k]: [usize; 3], element: Element) -> (Values, Values) {
        let x = Values::noise(m * k, 1.0, 3).rounded(element);
        (x, Values::noise(n * k, 0.1, 4).rounded(element))
    }

    /// `[m, n]`.
    fn reference(x: &Values, w: &Values, k: usize) -> Vec<f64> {
        let (x, w) = (x.to_f32(), w.to_f32());
        let dot = |a: &[f32], b: &[f32]| {
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
        };
        let row = |x: &[f32]| w.chunks_exact(k).map(|w| dot(x, w)).collect::<Vec<_>>();
        x.chunks_exact(k).flat_map(row).collect()
    }

    #[expect(clippy::cast_possible_truncation, reason = "what is compared is f32")]
    fn narrow(values: impl IntoIterator<Item = f64>) -> Vec<f32> {
        values.into_iter().map(|value| value as f32).collect()
    }

    #[test]
    fn products_of_every_mode_equal_sums_in_f64() {
        // One pack; a part of a warp; a warp's edge; a stage; both stages and one more, and more.
        for (m, n, k) in [(1, 1, 8), (2, 5, 248), (3, 97, 264), (4, 3, 1032), (1, 6, 3080)] {
            for (element, tolerance) in ELEMENTS {
                let (x, w) = operands([m, n, k], element);
                let sums = reference(&x, &w, k);
                let run = |start: Values, add| {
                    let [out] = every_order([start], |[out]| {
                        let (x, w) = (x.view(), w.view());
                        vec![gemv(&Product { x, w, out, shape: [m, n, k], add }).unwrap()]
                    });
                    out
                };
                let out = run(Values::nan(m * n, element), false);
                out.assert_close(&narrow(sums.iter().copied()), tolerance);

                let out = run(Values::nan(m * n, Element::F32), false);
                out.assert_close(&narrow(sums.iter().copied()), 2e-6);

                let before = Values::noise(m * n, 1.0, 6);
                let expected = sums.iter().zip(before.to_f32());
                let expected = narrow(expected.map(|(sum, before)| sum + f64::from(before)));
                let out = run(before, true);
                out.assert_close(&expected, 2e-6);
            }
        }
    }

    #[test]
    fn gated_products_equal_sums_in_f64() {
        for (m, inner, k) in [(1, 1, 8), (2, 5, 248), (3, 33, 264), (4, 2, 1032), (1, 3, 3080)] {
            for (element, tolerance) in ELEMENTS {
                let (x, w) = operands([m, 2 * inner, k], element);
                let sums = reference(&x, &w, k);
                let expected = sums.chunks_exact(2 * inner).flat_map(|row| {
                    let (gate, up) = row.split_at(inner);
                    gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u)
                });
                let [out] = every_order([Values::nan(m * inner, element)], |[out]| {
                    vec![gated_gemv(x.view(), w.view(), out, [m, inner, k]).unwrap()]
                });
                out.assert_close(&narrow(expected), tolerance.max(3e-6));
            }
        }
    }

    #[test]
    fn a_row_has_the_bits_it_has_alone_whatever_the_matrix_below_and_beside_it() {
        let (n, k) = (9, 1544);
        for (element, _) in ELEMENTS {
            let (x, w) = operands([4, n, k], element);
            let wide = |m, row, n| {
                let [out] = every_order([Values::nan(m * n, Element::F32)], |[out]| {
                    let x = x.view().slice(row * k, m * k).unwrap();
                    let w = w.view();
                    vec![gemv(&Product { x, w, out, shape: [m, n, k], add: false }).unwrap()]
                });
                out.to_f32()
            };
            let gated = |m, row| {
                let [out] = every_order([Values::nan(m * 4, element)], |[out]| {
                    let x = x.view().slice(row * k, m * k).unwrap();
                    vec![gated_gemv(x, w.view(), out, [m, 4, k]).unwrap()]
                });
                out.to_f32()
            };
            let (all, all_gated) = (wide(4, 0, n), gated(4, 0));
            for (m, row) in [(1, 0), (1, 3), (2, 1), (3, 1)] {
                assert_eq!(wide(m, row, n), all[row * n..][..m * n]);
                assert_eq!(gated(m, row), all_gated[row * 4..][..m * 4]);
            }
            assert_eq!(wide(1, 2, 5), all[2 * n..][..5]);
        }
    }

    #[test]
    fn accesses_stay_inside_the_buffers() {
        for test in ["products_of_every_mode_equal_sums_in_f64", "gated_products_equal_sums_in_f64"]
        {
            assert_clean(&format!("infer::cuda::kernels::gemv::tests::{test}"));
        }
    }

    #[test]
    fn planted_faults_are_noticed() {
        let survives = |from, to| {
            let test = || {
                products_of_every_mode_equal_sums_in_f64();
                gated_products_equal_sums_in_f64();
            };
            survives("gemv.cu", from, 0, to, test)
        };
        assert!(!survives("__syncthreads();", ""), "a missing barrier");
        assert!(!survives("if (next < k)", "if (false)"), "a stage that is not asked for again");
        assert!(
            !survives("other = 1; other < kGemvWarps", "other = 2; other < kGemvWarps"),
            "a warp"
        );
        assert!(!survives("mode == kAdded) before", "false) before"), "what was there");
    }

    #[test]
    fn views_that_do_not_fit_are_refused_by_name() {
        let view = |element, len| View { ptr: 0, len, element };
        let refusal = |x, w, out, m, k| {
            let (x, w) = (view(Element::F16, x), view(Element::F16, w));
            gemv(&Product { x, w, out, shape: [m, 3, k], add: true }).unwrap_err().0
        };
        let out = view(Element::F32, 6);
        assert!(refusal(15, 24, out, 2, 8).contains("x must hold 16"));
        assert!(refusal(16, 23, out, 2, 8).contains("w must hold 24"));
        assert!(refusal(16, 24, view(Element::F16, 6), 2, 8).contains("adds to F32"));
        assert!(refusal(16, 24, view(Element::F32, 5), 2, 8).contains("hold 6"));
        assert!(refusal(99, 99, view(Element::F32, 15), 5, 8).contains("1 to 4 rows, got 5"));
        assert!(refusal(99, 99, out, 2, 4).contains("multiple of 8"));
        let gated = |w, out| {
            let view = |len| view(Element::Bf16, len);
            gated_gemv(view(16), view(w), view(out), [2, 3, 8]).unwrap_err().0
        };
        assert!(gated(47, 6).contains("w must hold 48"));
        assert!(gated(48, 5).contains("out must hold 6"));
    }
}
