use candle_core::{Device, Tensor};
use std::sync::Arc;
use std::time::Instant;
use yardstick::infer::ComputeDtype;
use yardstick::infer::ops::{
    self, Linear, RmsNorm,
    pool::{self, Pool},
    silu_mul,
};
use yardstick::infer::weights::Weight;
fn best(name: &str, n: usize, mut f: impl FnMut()) {
    let mut b = f64::MAX;
    for _ in 0..30 {
        let t = Instant::now();
        for _ in 0..n {
            f();
        }
        b = b.min(t.elapsed().as_secs_f64() / n as f64);
    }
    println!("{name}: {:.2} us", b * 1e6);
}
fn main() {
    let threads = std::env::var("T").map_or(2, |t| t.parse().unwrap());
    let rows: usize = std::env::args().nth(1).map_or(1, |a| a.parse().unwrap());
    let pool = Arc::new(Pool::new(threads).unwrap());
    let d = &Device::Cpu;
    pool.install(|| {
        best("empty job 2 tasks", 1000, || {
            pool::run(2, |i| {
                std::hint::black_box(i);
            })
        });
        best("empty job 96 tasks", 1000, || {
            pool::run(96, |i| {
                std::hint::black_box(i);
            })
        });
        let x = Tensor::randn(0f32, 1.0, (rows, 576), d).unwrap();
        let norm = RmsNorm::new(vec![1.0; 576], 1e-5);
        best("rms_norm", 1000, || drop(norm.forward(&x).unwrap()));
        let g = Tensor::randn(0f32, 1.0, (rows, 3072), d).unwrap();
        best("silu_mul", 1000, || drop(silu_mul(&g).unwrap()));
        let lin = |o: usize, i: usize| {
            Linear::new(
                vec![Weight::Dense(Tensor::randn(0f32, 1.0, (o, i), d).unwrap())],
                None,
                ComputeDtype::Bf16,
            )
            .unwrap()
        };
        for (o, i) in [(960usize, 576usize), (576, 576), (3072, 576), (576, 1536)] {
            let x = Tensor::randn(0f32, 1.0, (rows, i), d).unwrap();
            let y = Tensor::randn(0f32, 1.0, (rows, o), d).unwrap();
            let one = lin(o, i);
            best(&format!("linear {o}x{i} cached {} KB", o * i * 2 / 1000), 100, || {
                drop(one.forward(&x).unwrap())
            });
            best(&format!("linear_add {o}x{i} cached"), 100, || one.forward_add(&x, &y).unwrap());
            let many: Vec<_> =
                (0..(300_000_000 / (o * i * 2)).min(120)).map(|_| lin(o, i)).collect();
            let bytes = (o * i * 2 * many.len()) as f64;
            let mut b = f64::MAX;
            for _ in 0..10 {
                let t = Instant::now();
                for l in &many {
                    drop(l.forward(&x).unwrap());
                }
                b = b.min(t.elapsed().as_secs_f64());
            }
            println!(
                "linear {o}x{i} streamed: {:.2} us, {:.1} GB/s, {:.1} GF/s",
                b * 1e6 / many.len() as f64,
                bytes / b / 1e9,
                bytes * rows as f64 / b / 1e9
            );
        }
        let _ = ops::pool::threads();
    });
}
