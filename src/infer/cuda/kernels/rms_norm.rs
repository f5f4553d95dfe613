//! The norm before each half of a layer; see [`crate::infer::ops::rms_norm`].

use crate::infer::cuda::launch::by_element;
use crate::infer::cuda::{Element, Launch, LaunchError, View};

const THREADS: usize = 256;

/// Norms `x`, `[rows, hidden]` of f32, by `weight`, `[hidden]` of f32, into
/// `out`, `[rows, hidden]` of f32, f16 or bf16. With `index`, `[rows]` of i32,
/// row `r` of `out` is the norm of row `index[r]` of `x`, which has as many rows
/// as it has: that `index` names only rows that are there is the caller's to
/// know.
///
/// # Errors
/// [`LaunchError`] when a view does not fit, or `hidden` is no multiple of 4.
pub fn rms_norm(
    x: View,
    index: Option<View>,
    weight: View,
    out: View,
    [rows, hidden]: [usize; 2],
    eps: f32,
) -> Result<Launch, LaunchError> {
    if !hidden.is_multiple_of(4) {
        return Err(LaunchError(format!("rms_norm: hidden {hidden} is no multiple of 4")));
    }
    let function = by_element!("rms_norm", out.element)?;
    let rows_of_x = if index.is_some() { 1 } else { rows };
    let index = match index {
        Some(index) => index.expect("index", Element::I32, rows)?,
        None => 0,
    };
    Launch::new("rms_norm", function, [rows, 1, 1], [THREADS, 1, 1])?
        .arg(x.expect("x", Element::F32, rows_of_x * hidden)?)
        .arg(index)
        .arg(weight.expect("weight", Element::F32, hidden)?)
        .arg(out.expect("out", out.element, rows * hidden)?)
        .int(hidden)
        .map(|launch| launch.float(eps))
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;
    use crate::infer::cuda::simt::{Values, assert_clean, assert_overflows, every_order, survives};
    use crate::infer::ops::RmsNorm;

    #[test]
    fn norm_equals_the_cpu_op_in_every_order_and_type() {
        // The last is longer than what a thread keeps.
        for (rows, hidden) in [(1, 4), (3, 36), (2, 576), (1, 3072), (1, 5132)] {
            let x = Values::noise(rows * hidden, 1.0, 1);
            let weight = Values::noise(hidden, 1.0, 2);
            let tensor = Tensor::from_slice(&x.to_f32(), (rows, hidden), &Device::Cpu).unwrap();
            let twin = RmsNorm::new(weight.to_f32(), 1e-5);
            let twin = twin.forward(&tensor, DType::F32).unwrap();
            let twin: Vec<f32> = twin.flatten_all().unwrap().to_vec1().unwrap();
            for (element, tolerance) in
                [(Element::F32, 1e-6), (Element::F16, 6e-4), (Element::Bf16, 4e-3)]
            {
                let [out] = every_order([Values::nan(rows * hidden, element)], |[out]| {
                    vec![
                        rms_norm(x.view(), None, weight.view(), out, [rows, hidden], 1e-5).unwrap(),
                    ]
                });
                out.assert_close(&twin, tolerance);
            }
        }
    }

    #[test]
    fn indexed_rows_are_normed_as_in_place_and_no_other_is_read() {
        let (hidden, index) = (68, [4, 0, 4, 2]);
        let x = Values::noise(5 * hidden, 1.0, 1);
        let weight = Values::noise(hidden, 1.0, 2);
        let norm = |x: &Values, index: Option<View>, rows| {
            let [out] = every_order([Values::nan(rows * hidden, Element::Bf16)], |[out]| {
                let shape = [rows, hidden];
                vec![rms_norm(x.view(), index, weight.view(), out, shape, 1e-5).unwrap()]
            });
            out.to_f32()
        };
        let all = norm(&x, None, 5);
        let mut holed = x.clone();
        for row in [1, 3] {
            holed.bytes_mut()[row * hidden * 4..(row + 1) * hidden * 4].fill(0xff);
        }
        let some = norm(&holed, Some(Values::ints(&index).view()), index.len());
        for (row, source) in index.iter().enumerate() {
            let source = usize::try_from(*source).unwrap() * hidden;
            assert_eq!(some[row * hidden..][..hidden], all[source..][..hidden], "row {row}");
        }
    }

    #[test]
    fn accesses_stay_inside_the_buffers() {
        let test =
            "infer::cuda::kernels::rms_norm::tests::norm_equals_the_cpu_op_in_every_order_and_type";
        assert_clean(test);
    }

    #[test]
    #[ignore = "run under the sanitizer, by the next test"]
    fn planted_read_past_the_end() {
        let test = norm_equals_the_cpu_op_in_every_order_and_type;
        let survives = survives("rms_norm.cu", "i < hidden", 0, "i <= hidden", test);
        assert!(survives, "a wrong result, not a caught access");
    }

    #[test]
    fn a_read_past_the_end_is_caught() {
        assert_overflows("infer::cuda::kernels::rms_norm::tests::planted_read_past_the_end");
    }

    #[test]
    fn a_missing_barrier_is_noticed() {
        let test = norm_equals_the_cpu_op_in_every_order_and_type;
        assert!(!survives("rms_norm.cu", "__syncthreads();", 0, "", test));
    }

    #[test]
    fn views_that_do_not_fit_are_refused_by_name() {
        let view = |len| View { ptr: 0, len, element: Element::F32 };
        let refusal = |x, weight, out, hidden| {
            rms_norm(view(x), None, view(weight), view(out), [2, hidden], 1e-5).unwrap_err().0
        };
        assert!(refusal(15, 8, 16, 8).contains("x must hold 16"));
        assert!(refusal(16, 7, 16, 8).contains("weight must hold 8"));
        assert!(refusal(16, 8, 15, 8).contains("out must hold 16"));
        assert!(refusal(16, 8, 16, 6).contains("multiple of 4"));
        let index = View { ptr: 0, len: 1, element: Element::I32 };
        let refusal = rms_norm(view(8), Some(index), view(8), view(16), [2, 8], 1e-5);
        assert!(refusal.unwrap_err().0.contains("index must hold 2"));
    }
}
