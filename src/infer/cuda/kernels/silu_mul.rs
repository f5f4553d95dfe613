//! The gate of the MLP after one product for gate and up; the CPU has both in
//! one op, [`crate::infer::ops::GatedLinear`].

use crate::infer::cuda::launch::by_element;
use crate::infer::cuda::{Launch, LaunchError, View};

/// `kSiluThreads` of the kernel.
const THREADS: usize = 256;

/// `silu(gate) * up` of `gate_up`, `[rows, 2 * inner]` of f32, f16 or bf16, gate
/// first, into `out`, `[rows, inner]` of the same type.
///
/// # Errors
/// [`LaunchError`] when a view does not fit, or a row of `out` is not made of
/// whole 16 bytes.
pub fn silu_mul(
    gate_up: View,
    out: View,
    [rows, inner]: [usize; 2],
) -> Result<Launch, LaunchError> {
    let element = out.element;
    let function = by_element!("silu_mul", element)?;
    let pack = 16 / element.num_bytes();
    if !inner.is_multiple_of(pack) {
        return Err(LaunchError(format!("silu_mul: inner {inner} is no multiple of {pack}")));
    }
    let grid = [rows, inner.div_ceil(THREADS * pack), 1];
    Launch::new("silu_mul", function, grid, [THREADS, 1, 1])?
        .arg(gate_up.expect("gate_up", element, rows * 2 * inner)?)
        .arg(out.expect("out", element, rows * inner)?)
        .int(inner)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;
    use crate::infer::ComputeDtype;
    use crate::infer::cuda::Element;
    use crate::infer::cuda::simt::{Values, assert_clean, every_order, survives};
    use crate::infer::ops::GatedLinear;
    use crate::infer::ops::linear::Matrix;
    use crate::infer::weights::Weight;

    /// The CPU op with a unit input: its matrices' columns are gate and up.
    fn twin(gate_up: &[f32], inner: usize) -> Vec<f32> {
        let column = |values: &[f32]| {
            let tensor = Tensor::from_slice(values, (inner, 1), &Device::Cpu).unwrap();
            Matrix::pack(&[Weight::Dense(tensor)], ComputeDtype::F32).unwrap()
        };
        let one = Tensor::ones((1, 1), DType::F32, &Device::Cpu).unwrap();
        let rows = gate_up.chunks_exact(2 * inner).flat_map(|row| {
            let (gate, up) = row.split_at(inner);
            let layer = GatedLinear::new(column(gate), column(up)).unwrap();
            let out = layer.forward(&one, DType::F32).unwrap();
            out.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        });
        rows.collect()
    }

    #[test]
    fn gate_equals_the_cpu_op_in_every_order_and_type() {
        for (rows, inner) in [(1, 8), (3, 136), (2, 2056)] {
            // Wide enough for gates that close.
            let gate_up = Values::noise(rows * 2 * inner, 12.0, 1);
            for (element, tolerance) in
                [(Element::F32, 2e-6), (Element::F16, 6e-4), (Element::Bf16, 4e-3)]
            {
                let gate_up = gate_up.rounded(element);
                let [out] = every_order([Values::nan(rows * inner, element)], |[out]| {
                    vec![silu_mul(gate_up.view(), out, [rows, inner]).unwrap()]
                });
                out.assert_close(&twin(&gate_up.to_f32(), inner), tolerance);
            }
        }
    }

    #[test]
    fn gates_too_large_to_exponentiate_are_zero_or_the_identity() {
        for element in [Element::F32, Element::F16, Element::Bf16] {
            let row = [-60000.0, -200.0, -88.5, -0.0, 0.0, 88.5, 200.0, 60000.0];
            let gate_up = Values::of(&[row, [1.0; 8]].concat(), element);
            let [out] = every_order([Values::nan(8, element)], |[out]| {
                vec![silu_mul(gate_up.view(), out, [1, 8]).unwrap()]
            });
            let expected: Vec<f32> = gate_up.to_f32()[..8].iter().map(|x| x.max(0.0)).collect();
            out.assert_close(&expected, 1e-6);
        }
    }

    #[test]
    fn accesses_stay_inside_the_buffers() {
        assert_clean(
            "infer::cuda::kernels::silu_mul::tests::gate_equals_the_cpu_op_in_every_order_and_type",
        );
    }

    #[test]
    fn planted_faults_are_noticed() {
        let test = gate_equals_the_cpu_op_in_every_order_and_type;
        assert!(!survives("silu_mul.cu", "from + inner", 0, "from", test), "up is the gate");
        assert!(!survives("silu_mul.cu", "blockIdx.y * kSiluThreads", 0, "0", test), "columns");
        assert!(!survives("silu_mul.cu", "to_float(gate", 0, "-to_float(gate", test), "a sign");
    }

    #[test]
    fn views_that_do_not_fit_are_refused_by_name() {
        let view = |element, len| View { ptr: 0, len, element };
        let refusal = |gate_up, out, inner| {
            silu_mul(view(Element::F16, gate_up), view(Element::F16, out), [2, inner])
                .unwrap_err()
                .0
        };
        assert!(refusal(31, 16, 8).contains("gate_up must hold 32"));
        assert!(refusal(32, 15, 8).contains("out must hold 16"));
        assert!(refusal(32, 16, 4).contains("multiple of 8"));
    }
}
