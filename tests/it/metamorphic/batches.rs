//! Random batches: each request comes out as it does alone, whoever shares its
//! steps and blocks, whenever it arrives and however little room there is. The
//! promise of `--deterministic`.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use yardstick::infer::{EngineConfig, EngineCore, InferRequest, KvBudget};

use super::{core, requests, run, run_arriving};

pub(super) const BLOCK_SIZES: [usize; 7] = [1, 3, 8, 16, 32, 64, 128];

/// What the batches met, so that a test can tell that they met it.
#[derive(Debug, Default)]
pub(super) struct Met {
    pub(super) num_preemptions: u64,
    pub(super) num_hit_tokens: u64,
}

/// Runs `num_rounds` batches of `requests`, drawn with `seed`, on engines under
/// random settings; each must give what it gives alone under `base`.
pub(super) fn random_batches(
    core: impl Fn(&EngineConfig) -> EngineCore,
    base: &EngineConfig,
    requests: &[InferRequest],
    num_rounds: usize,
    seed: u64,
) -> Met {
    let uncached = EngineConfig { enable_prefix_caching: false, ..base.clone() };
    let mut alone = core(&uncached);
    let expected: Vec<_> =
        requests.iter().map(|r| run(&mut alone, std::slice::from_ref(r)).remove(0)).collect();
    let longest = requests.iter().map(|r| r.prompt_ids.len() + r.max_tokens).max().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut met = Met::default();
    for round in 0..num_rounds {
        let config = random_settings(&mut rng, base, longest);
        let num_requests = rng.random_range(2..=requests.len());
        let picks: Vec<usize> =
            (0..num_requests).map(|_| rng.random_range(0..requests.len())).collect();
        let mut at = 0;
        let arrivals = picks.iter().map(|nth| {
            at += rng.random_range(0..4);
            (at, requests[*nth].clone())
        });
        let arrivals = arrivals.collect();
        let mut core = core(&config);
        for (nth, together) in picks.iter().zip(run_arriving(&mut core, arrivals)) {
            let same = together == expected[*nth];
            assert!(same, "round {round}, seed {seed}: {nth} among {picks:?} under {config:?}");
        }
        met.num_preemptions += core.stats().num_preemptions;
        met.num_hit_tokens += core.stats().prefix_hit_tokens;
    }
    met
}

/// Settings that change how work is cut up and nothing else. The pool holds
/// `longest` tokens at least, and not always more.
fn random_settings(rng: &mut ChaCha8Rng, base: &EngineConfig, longest: usize) -> EngineConfig {
    let block_size = BLOCK_SIZES[rng.random_range(0..BLOCK_SIZES.len())];
    let fewest = longest.div_ceil(block_size);
    EngineConfig {
        block_size,
        kv: KvBudget::Blocks(rng.random_range(fewest..=3 * fewest)),
        max_num_seqs: rng.random_range(1..=8),
        max_num_batched_tokens: rng.random_range(1..=64),
        enable_prefix_caching: rng.random_bool(0.7),
        threads: Some(rng.random_range(1..=3)),
        ..base.clone()
    }
}

#[test]
fn requests_in_random_batches_equal_singles() {
    let mut requests = requests();
    // One that begins as another does, and two that are scored.
    let longer = [&requests[3].prompt_ids[..40], &[1, 2, 3, 4, 5]].concat();
    requests.push(InferRequest { prompt_ids: longer, ..requests[2].clone() });
    for nth in [1, 5] {
        requests.push(InferRequest { prompt_logprobs: Some(4), ..requests[nth].clone() });
    }
    let met = random_batches(core, &EngineConfig::default(), &requests, 150, 41);
    assert!(met.num_preemptions > 0 && met.num_hit_tokens > 0, "{met:?}");
}
