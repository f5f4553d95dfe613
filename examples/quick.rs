use std::time::Instant;
use yardstick::catalog::{self, LocateOptions};
use yardstick::clock::Clock;
use yardstick::infer::{ComputeDtype, EngineConfig, EngineCore, InferRequest, weights};
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let located = catalog::locate(&a[1], &LocateOptions::default(), &mut |_| {}).unwrap();
    let t = Instant::now();
    let model = weights::open(&located.source).unwrap();
    let open = t.elapsed();
    let dtype = match a[2].as_str() {
        "f32" => ComputeDtype::F32,
        "bf16" => ComputeDtype::Bf16,
        _ => ComputeDtype::Quantized,
    };
    let threads = std::env::var("T").map_or(2, |t| t.parse().unwrap());
    let config = EngineConfig {
        max_model_len: Some(4096),
        dtype,
        threads: Some(threads),
        ..EngineConfig::default()
    };
    let t = Instant::now();
    let mut core = EngineCore::new(&model.config, &*model.weights, &config, Clock::real()).unwrap();
    println!("open {open:?} load {:?} {:?}", t.elapsed(), core.weight_memory());
    for case in &a[3..] {
        let (n, p) = case.split_once('x').unwrap();
        let (n, p): (usize, usize) = (n.parse().unwrap(), p.parse().unwrap());
        let mut best_prefill = f64::MAX;
        let mut best = f64::MAX;
        let mut best_step = f64::MAX;
        for rep in 0..5u32 {
            for s in 0..n {
                core.add_request(InferRequest {
                    ignore_eos: true,
                    ..InferRequest::new(
                        (0..p as u32)
                            .map(|i| 1000 + (rep * 7919 + i * 3 + 100 * s as u32) % 40000)
                            .collect(),
                        33,
                    )
                })
                .unwrap();
            }
            let t = Instant::now();
            core.step().unwrap();
            best_prefill = best_prefill.min(t.elapsed().as_secs_f64());
            while core.stats().num_waiting > 0 {
                core.step().unwrap();
            }
            let t = Instant::now();
            let mut k = 0;
            while core.has_work() {
                let t = Instant::now();
                core.step().unwrap();
                best_step = best_step.min(t.elapsed().as_secs_f64());
                k += 1;
            }
            best = best.min(t.elapsed().as_secs_f64() / k as f64);
        }
        println!(
            "{case}: prefill {:.1} ms = {:.0} tok/s; decode mean {:.3} ms = {:.1} tok/s, best step {:.3} ms = {:.1} tok/s",
            best_prefill * 1e3,
            (n * p) as f64 / best_prefill,
            best * 1e3,
            n as f64 / best,
            best_step * 1e3,
            n as f64 / best_step
        );
    }
}
