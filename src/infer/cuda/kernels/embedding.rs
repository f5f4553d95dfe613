//! The start of the residual stream; see [`crate::infer::ops::Embedding`].

use crate::infer::cuda::launch::by_element;
use crate::infer::cuda::{Element, Launch, LaunchError, View};

/// `kEmbeddingThreads` of the kernel, each of 4 elements.
const THREADS: usize = 256;

/// Rows `ids`, `[rows]` of u32 or i32, of `table`, `[vocab, hidden]` of f32, f16
/// or bf16, into `x`, `[rows, hidden]` of f32. An id that is not in the
/// vocabulary gives NaN.
///
/// # Errors
/// [`LaunchError`] when a view does not fit, or `hidden` is no multiple of 4.
pub fn embedding(
    table: View,
    ids: View,
    x: View,
    [rows, vocab, hidden]: [usize; 3],
) -> Result<Launch, LaunchError> {
    if !hidden.is_multiple_of(4) {
        return Err(LaunchError(format!("embedding: hidden {hidden} is no multiple of 4")));
    }
    let id = if ids.element == Element::I32 { Element::I32 } else { Element::U32 };
    let function = by_element!("embedding", table.element)?;
    let grid = [rows, hidden.div_ceil(THREADS * 4), 1];
    Launch::new("embedding", function, grid, [THREADS, 1, 1])?
        .arg(table.expect("table", table.element, vocab * hidden)?)
        .arg(ids.expect("ids", id, rows)?)
        .arg(x.expect("x", Element::F32, rows * hidden)?)
        .int(hidden)?
        .int(vocab)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use candle_core::{Device, Tensor};

    use super::*;
    use crate::infer::ComputeDtype;
    use crate::infer::cuda::simt::{Values, assert_clean, every_order, survives};
    use crate::infer::ops::Embedding;
    use crate::infer::ops::linear::Matrix;
    use crate::infer::weights::Weight;

    #[test]
    fn rows_equal_the_cpu_op_and_unknown_ids_are_nan() {
        for (vocab, hidden) in [(1, 4), (7, 36), (5, 3072)] {
            for element in [Element::F32, Element::F16, Element::Bf16] {
                let table = Values::noise(vocab * hidden, 1.0, 1).rounded(element);
                let tensor =
                    Tensor::from_slice(&table.to_f32(), (vocab, hidden), &Device::Cpu).unwrap();
                let matrix = Matrix::pack(&[Weight::Dense(tensor)], ComputeDtype::F32).unwrap();
                let last = u32::try_from(vocab - 1).unwrap();
                let twin = Embedding::new(Arc::new(matrix)).forward(&[last, 0, last / 2]).unwrap();
                let twin: Vec<f32> = twin.flatten_all().unwrap().to_vec1().unwrap();

                let vocab_ids = [last.cast_signed(), 0, (last / 2).cast_signed()];
                let unknown = [vocab.try_into().unwrap(), -1, i32::MIN, i32::MAX];
                let ids = Values::ints(&[vocab_ids.as_slice(), &unknown].concat());
                let start = Values::of(&vec![7.0; 7 * hidden], Element::F32);
                let [x] = every_order([start], |[x]| {
                    vec![embedding(table.view(), ids.view(), x, [7, vocab, hidden]).unwrap()]
                });
                let x = x.to_f32();
                assert_eq!(x[..3 * hidden], twin);
                assert!(x[3 * hidden..].iter().all(|x| x.is_nan()));
            }
        }
    }

    #[test]
    fn accesses_stay_inside_the_buffers() {
        assert_clean(
            "infer::cuda::kernels::embedding::tests::rows_equal_the_cpu_op_and_unknown_ids_are_nan",
        );
    }

    #[test]
    fn planted_faults_are_noticed() {
        let test = rows_equal_the_cpu_op_and_unknown_ids_are_nan;
        let survives = |from, to| survives("embedding.cu", from, 0, to, test);
        assert!(!survives("blockIdx.y * kEmbeddingThreads", "0"), "columns");
        assert!(!survives("{{NAN,", "{{0.f,"), "a value of an unknown id");
    }

    #[test]
    fn views_that_do_not_fit_are_refused_by_name() {
        let view = |element, len| View { ptr: 0, len, element };
        let refusal = |table, ids, x| {
            embedding(view(Element::Bf16, table), view(ids, 2), view(Element::F32, x), [2, 3, 8])
                .unwrap_err()
                .0
        };
        assert!(refusal(23, Element::I32, 16).contains("table must hold 24"));
        assert!(refusal(24, Element::F32, 16).contains("ids must be U32"));
        assert!(refusal(24, Element::U32, 15).contains("x must hold 16"));
    }
}
