//! What the machine can do, measured in the run whose numbers are held against
//! it: bytes read from memory, and multiply-adds, a second, by all threads.

use std::thread;

use yardstick::clock::Clock;

/// Bytes per second that all threads read together from `bytes` of memory, the
/// best of thirty passes: other work on the machine can only lower it.
pub fn read_bandwidth(bytes: usize) -> f64 {
    let buffer = vec![1_u64; bytes / 8];
    let pass = || {
        in_all_threads(|index, threads| {
            let share = buffer.len() / threads;
            let part = &buffer[index * share..(index + 1) * share];
            std::hint::black_box(fold(part));
        })
    };
    let best = (0..30).map(|_| pass()).fold(f64::INFINITY, f64::min);
    bytes as f64 / best
}

/// What multiplies how fast.
#[derive(Debug, Clone, Copy)]
pub struct Peak {
    /// The instruction.
    pub what: &'static str,
    /// Multiply-adds per second of all threads.
    pub multiply_adds_per_s: f64,
}

/// The fastest multiply-adds of f32, and of bf16 where the processor has them.
pub fn peaks() -> (Peak, Option<Peak>) {
    #[cfg(target_arch = "x86_64")]
    {
        let f32 = if is_x86_feature_detected!("avx512f") {
            Peak { what: "f32 AVX-512 multiply-add", multiply_adds_per_s: rate(16, x86::f32_512) }
        } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            Peak { what: "f32 AVX2 multiply-add", multiply_adds_per_s: rate(8, x86::f32_256) }
        } else {
            portable()
        };
        let bf16 = (is_x86_feature_detected!("avx512bf16")).then(|| Peak {
            what: "bf16 AVX-512 dot product",
            multiply_adds_per_s: rate(32, x86::bf16_512),
        });
        (f32, bf16)
    }
    #[cfg(not(target_arch = "x86_64"))]
    (portable(), None)
}

fn portable() -> Peak {
    let run = |rounds: usize| {
        let mut sums = [1_f32; 64];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = std::hint::black_box(1.000_1_f32) * *sum + 0.5;
            }
        }
        std::hint::black_box(sums);
    };
    let rounds = 1 << 20;
    let best = (0..5).map(|_| in_all_threads(|_, _| run(rounds))).fold(f64::INFINITY, f64::min);
    Peak {
        what: "f32 scalar multiply-add",
        multiply_adds_per_s: (rounds * 64 * num_threads()) as f64 / best,
    }
}

/// Threads of the machine: what the engine takes by default.
pub fn num_threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Seconds until all threads are through with `work(index, threads)`.
fn in_all_threads(work: impl Fn(usize, usize) + Sync) -> f64 {
    let threads = num_threads();
    let clock = Clock::real();
    let barrier = std::sync::Barrier::new(threads);
    let run = |index: usize| {
        barrier.wait();
        let start = clock.now();
        work(index, threads);
        (start, clock.now())
    };
    let spans = thread::scope(|scope| {
        let run = &run;
        let workers: Vec<_> = (0..threads).map(|i| scope.spawn(move || run(i))).collect();
        workers.into_iter().filter_map(|worker| worker.join().ok()).collect::<Vec<_>>()
    });
    let start = spans.iter().map(|(start, _)| *start).min().unwrap_or_default();
    let end = spans.iter().map(|(_, end)| *end).max().unwrap_or_default();
    end.since(start).as_secs_f64()
}

/// Folds with the next 16 KiB on their way: without, the processor waits at
/// every page, and the bound would be no bound.
fn fold(values: &[u64]) -> u64 {
    let mut lanes = [0_u64; 32];
    for chunk in values.as_chunks::<32>().0 {
        #[cfg(target_arch = "x86_64")]
        for line in 0..4 {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let ahead = chunk.as_ptr().wrapping_add(2048 + 8 * line);
            // SAFETY: a prefetch never faults, whatever the address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.cast()) };
        }
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane ^= value;
        }
    }
    lanes.iter().fold(0, |a, b| a ^ b)
}

#[cfg(target_arch = "x86_64")]
fn rate(lanes: usize, run: unsafe fn(usize)) -> f64 {
    let rounds = 4_000_000;
    // SAFETY: the caller has seen that the processor has the instruction.
    let pass = || in_all_threads(|_, _| unsafe { run(rounds) });
    // Long enough for the processor to reach the clock that it keeps.
    let best = (0..40).map(|_| pass()).fold(f64::INFINITY, f64::min);
    (rounds * x86::CHAINS * lanes * num_threads()) as f64 / best
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// Independent sums: more than latency times throughput, and registers for all.
    pub const CHAINS: usize = 12;

    macro_rules! chains {
        ($name:ident, $features:literal, $zero:ident, $x:expr, $fma:expr) => {
            /// # Safety
            /// The processor has the features.
            #[target_feature(enable = $features)]
            pub unsafe fn $name(rounds: usize) {
                let x = black_box($x);
                let mut sums = [$zero(); CHAINS];
                for _ in 0..rounds {
                    for sum in &mut sums {
                        *sum = $fma(x, *sum);
                    }
                }
                black_box(sums);
            }
        };
    }

    chains!(f32_512, "avx512f", _mm512_setzero_ps, _mm512_set1_ps(1.0), |x, sum| {
        _mm512_fmadd_ps(x, x, sum)
    });
    chains!(f32_256, "avx2,fma", _mm256_setzero_ps, _mm256_set1_ps(1.0), |x, sum| {
        _mm256_fmadd_ps(x, x, sum)
    });
    chains!(
        bf16_512,
        "avx512f,avx512bf16",
        _mm512_setzero_ps,
        // SAFETY: both types are 512 bits without invalid values.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(0x3f80_3f80)) },
        |x, sum| _mm512_dpbf16_ps(sum, x, x)
    );
}
