//! Runs launches on the host: a kernel's `.cu` file compiled by the C++ compiler
//! behind `kernels/simt`, each CUDA thread a fiber. Kernels run under several
//! orders of their threads, which a correct one does not notice.

mod device;
mod library;
mod mutant;
mod sanitizer;
mod values;

pub(super) use device::{Host, Submitted};
pub(super) use mutant::survives;
pub(super) use sanitizer::{assert_clean, assert_overflows};
pub(super) use values::Values;

use super::{Launch, View};

/// Orders of `kAllOrders` in `kernels/simt/simt.h`.
const NUM_ORDERS: i32 = 4;

/// What `launches` make of `buffers`, the same bits in every order of threads.
///
/// # Panics
/// When threads diverge at a synchronisation, or an order gives other bits.
pub(super) fn every_order<const N: usize>(
    buffers: [Values; N],
    launches: impl Fn([View; N]) -> Vec<Launch>,
) -> [Values; N] {
    let first = run(buffers.clone(), &launches, 0);
    for order in 1..NUM_ORDERS {
        let other = run(buffers.clone(), &launches, order);
        for (index, (a, b)) in first.iter().zip(&other).enumerate() {
            assert!(a.bytes() == b.bytes(), "buffer {index} differs between orders 0 and {order}");
        }
    }
    first
}

/// What `launches` make of `buffers` in one order of threads, for more cases
/// than there is time to order in every way.
pub(super) fn one_order<const N: usize>(
    buffers: [Values; N],
    launches: impl Fn([View; N]) -> Vec<Launch>,
) -> [Values; N] {
    run(buffers, &launches, 0)
}

fn run<const N: usize>(
    buffers: [Values; N],
    launches: &impl Fn([View; N]) -> Vec<Launch>,
    order: i32,
) -> [Values; N] {
    for launch in launches(std::array::from_fn(|index| buffers[index].view())) {
        library::launch(&launch, order);
    }
    buffers
}
