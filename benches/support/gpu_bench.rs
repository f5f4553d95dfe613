//! What the GPU benches share: whether there is a device and what may be done
//! with it, time by CUDA events, and tables on stdout.

use std::io::Write;

use yardstick::hardware::{GpuCard, find_gpu_card};
use yardstick::infer::cuda::device::{Device, Product};
use yardstick::infer::cuda::gpu::Gpu;
use yardstick::infer::cuda::{DeviceError, Launch};
use yardstick::infer::device::cuda_devices;

/// What the benches run on.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// Its peaks, where they are known.
    pub card: Option<&'static GpuCard>,
    /// One tiny case and no times: an emulated device, or `cargo test`.
    pub smoke: bool,
}

/// The first CUDA device; none with the reason printed.
pub fn machine() -> Option<Machine> {
    let device = match cuda_devices() {
        Ok(devices) => devices.into_iter().next()?,
        Err(why) => {
            say(&format!("no GPU: {why}"));
            return None;
        }
    };
    let emulated = device.is_emulated();
    let card = find_gpu_card(&device.name);
    say(&format!("device: {}, compute capability {:?}", device.name, device.capability));
    if emulated {
        say("emulated: no times");
    } else if card.is_none() {
        say("its peaks are not in gpus.toml: no shares of them");
    }
    Some(Machine { card, smoke: emulated || is_test() })
}

/// Whether `cargo test` runs this, not `cargo bench`.
fn is_test() -> bool {
    has_flag("--test") || !has_flag("--bench")
}

/// Whether the command line has it.
pub fn has_flag(flag: &str) -> bool {
    std::env::args().any(|argument| argument == flag)
}

/// A line on stdout.
pub fn say(line: &str) {
    // Nobody is left to tell that nobody listens.
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// Kernels and products that are timed as one.
pub type Work = Vec<Op>;

/// A thing to submit.
#[derive(Debug, Clone)]
pub enum Op {
    /// A kernel of ours.
    Launch(Launch),
    /// A product by cuBLAS.
    Product(Product),
}

/// Submits all of it.
pub fn submit(gpu: &mut Gpu, work: &[Op]) -> Result<(), DeviceError> {
    work.iter().try_for_each(|op| match op {
        Op::Launch(launch) => gpu.launch(launch),
        Op::Product(product) => gpu.product(product),
    })
}

/// Times of something that was repeated, in seconds.
#[derive(Debug, Clone)]
pub struct Times(Vec<f64>);

impl Times {
    /// Of these.
    pub fn new(mut seconds: Vec<f64>) -> Self {
        assert!(!seconds.is_empty(), "nothing was timed");
        seconds.sort_by(f64::total_cmp);
        Self(seconds)
    }

    /// How many.
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// The middle one.
    pub fn median(&self) -> f64 {
        self.0[self.0.len() / 2]
    }

    /// Half of what lies between the quarters, over the median.
    pub fn spread(&self) -> f64 {
        let at = |quarter: usize| self.0[(self.0.len() - 1) * quarter / 4];
        (at(3) - at(1)) / 2.0 / self.median()
    }
}

/// Least and most that a graph of a case repeats it.
const REPEATS: std::ops::RangeInclusive<usize> = 8..=256;

/// Seconds that a graph should take: long against the resolution of events,
/// half a microsecond.
const GRAPH_SECONDS: f64 = 2e-3;

/// Replays that are timed.
const SAMPLES: usize = 21;

/// Seconds of one of `variants`, which do the same over other memory, taken in
/// turn within a graph: as the engine launches them, the gap to the next included.
pub fn time(gpu: &mut Gpu, variants: &[Work]) -> Result<Times, DeviceError> {
    // Whatever is loaded or chosen at first use must not be recorded.
    for work in variants {
        submit(gpu, work)?;
    }
    gpu.wait()?;
    let once = gpu.time(&mut |gpu| submit(gpu, &variants[0]))?;
    let wanted = (GRAPH_SECONDS / once.max(1e-7)) as usize;
    let repeats = wanted.clamp(*REPEATS.start(), *REPEATS.end()).next_multiple_of(variants.len());
    let graph = gpu.capture(&mut |gpu| {
        (0..repeats).try_for_each(|index| submit(gpu, &variants[index % variants.len()]))
    })?;
    gpu.replay(&graph)?;
    gpu.wait()?;
    let sample = |_| Ok(gpu.time(&mut |gpu| gpu.replay(&graph))? / repeats as f64);
    Ok(Times::new((0..SAMPLES).map(sample).collect::<Result<_, DeviceError>>()?))
}
