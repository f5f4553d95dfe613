//! The next token of each sequence, drawn where its logits are, so that four
//! bytes return; see [`crate::infer::sampler::sample`].

use std::f64::consts::LOG2_E;

use rand::SeedableRng;
use rand_chacha::ChaCha12Rng;

use crate::infer::SamplingParams;
use crate::infer::cuda::{Element, Launch, LaunchError, View};

const THREADS: usize = 1024;

/// Where sums of weights of 2^44 would leave 64 bits.
const VOCAB_END: usize = 1 << 20;

/// Words that a row's [`Params`] take.
pub const PARAM_WORDS: usize = 16;

/// What stands for a token where a logit of the row is NaN.
pub const NOT_A_NUMBER: u32 = u32::MAX;

/// How one row is drawn, as the kernel reads it.
#[derive(Debug, Clone, Copy)]
pub struct Params([i32; PARAM_WORDS]);

/// A row that is neither read nor written.
pub const PADDING: Params = Params([-1; PARAM_WORDS]);

impl Params {
    /// For a sequence of which `position` tokens have been drawn.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "halves and a rounded head, by intent")]
    pub fn new(sampling: &SamplingParams, position: usize) -> Self {
        let greedy = sampling.temperature == 0.0 || sampling.top_k == Some(1);
        let halves = |word: u64| [word as u32, (word >> 32) as u32].map(u32::cast_signed);
        // Beyond this every logit but the largest weighs nothing anyway, and f32 ends.
        let scale = (LOG2_E / sampling.temperature).min(1e30);
        let high = scale as f32;
        let low = (scale - f64::from(high)) as f32;
        let key = ChaCha12Rng::seed_from_u64(sampling.seed).get_seed();
        let key = key.as_chunks::<4>().0.iter().map(|bytes| i32::from_le_bytes(*bytes));
        let top_k = sampling.top_k.map_or(0, |k| i32::try_from(k).unwrap_or(i32::MAX));

        let mut words = [0; PARAM_WORDS];
        words[..2].copy_from_slice(&[i32::from(!greedy), top_k]);
        words[2..4].copy_from_slice(&halves(sampling.top_p.to_bits()));
        words[4..6].copy_from_slice(&[high, low].map(|half| half.to_bits().cast_signed()));
        words[6..8].copy_from_slice(&halves(position as u64));
        words[8..].iter_mut().zip(key).for_each(|(to, word)| *to = word);
        Self(words)
    }

    /// As they stand in the buffer.
    #[must_use]
    pub const fn words(&self) -> [i32; PARAM_WORDS] {
        self.0
    }
}

/// Draws from `logits`, `[rows, vocab]` of f32, by `params`,
/// `[rows, PARAM_WORDS]` of i32, into `out`, `[rows]` of u32: the token, or
/// [`NOT_A_NUMBER`]. Rows of [`PADDING`] are left alone.
///
/// # Errors
/// [`LaunchError`] when a view does not fit, or `vocab` is 0 or not below 2^20.
pub fn sample(
    logits: View,
    params: View,
    out: View,
    [rows, vocab]: [usize; 2],
) -> Result<Launch, LaunchError> {
    if !(1..VOCAB_END).contains(&vocab) {
        return Err(LaunchError(format!("sample: vocab {vocab} is not in 1..{VOCAB_END}")));
    }
    Launch::new("sample", "sample", [rows, 1, 1], [THREADS, 1, 1])?
        .arg(logits.expect("logits", Element::F32, rows * vocab)?)
        .arg(params.expect("params", Element::I32, rows * PARAM_WORDS)?)
        .arg(out.expect("out", Element::U32, rows)?)
        .int(vocab)
}

#[cfg(test)]
mod tests {
    use rand::Rng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::infer::cuda::simt::{Values, assert_clean, every_order, one_order, survives};
    use crate::infer::sampler;

    /// Logits of a row, and how it is drawn from; `None` is a padding row.
    type Row = (Vec<f32>, Option<(SamplingParams, usize)>);

    /// What the kernel draws from rows of one length: few of them the same in
    /// every order of threads.
    fn drawn(rows: &[Row]) -> Vec<u32> {
        let vocab = rows[0].0.len();
        let logits: Vec<f32> = rows.iter().flat_map(|(logits, _)| logits).copied().collect();
        let logits = Values::of(&logits, Element::F32);
        let params = rows.iter().flat_map(|(_, draw)| match draw {
            Some((sampling, position)) => Params::new(sampling, *position).words(),
            None => PADDING.words(),
        });
        let params = Values::ints(&params.collect::<Vec<_>>());
        let out = [Values::nan(rows.len(), Element::U32)];
        let launches = |[out]: [View; 1]| {
            vec![sample(logits.view(), params.view(), out, [rows.len(), vocab]).unwrap()]
        };
        let [out] =
            if rows.len() <= 40 { every_order(out, launches) } else { one_order(out, launches) };
        out.to_ints().into_iter().map(i32::cast_unsigned).collect()
    }

    /// Asserts that each row's token is the one that the CPU draws.
    fn assert_as_on_the_cpu(rows: &[Row]) {
        for (at, ((logits, draw), token)) in rows.iter().zip(drawn(rows)).enumerate() {
            let expected = draw.map_or(NOT_A_NUMBER, |(sampling, position)| {
                sampler::sample(logits, &sampling, position).unwrap_or(NOT_A_NUMBER)
            });
            assert_eq!(token, expected, "row {at} of {}: {draw:?}", logits.len());
        }
    }

    /// Logits of one of several kinds.
    fn logits(kind: usize, vocab: usize, generator: &mut ChaCha8Rng) -> Vec<f32> {
        // About normal, with a tail as a model's.
        let mut normal = || (0..4).map(|_| generator.random_range(-1.0_f32..1.0)).sum::<f32>();
        let mut row: Vec<f32> = (0..vocab).map(|_| normal()).collect();
        match kind {
            0 => row.iter_mut().for_each(|logit| *logit *= 8.0),
            1 => row.iter_mut().for_each(|logit| *logit = 0.01 * *logit - 20.0),
            // Ties, zeros of both signs among them.
            2 => row.iter_mut().for_each(|logit| *logit = logit.round()),
            3 => row.iter_mut().step_by(3).for_each(|logit| *logit = f32::NEG_INFINITY),
            4 => row.fill(-1.5),
            5 => row[vocab / 3] = 1e6,
            6 => row.iter_mut().for_each(|logit| *logit *= 1e4),
            7 => row.iter_mut().for_each(|logit| *logit = 0.0_f32.copysign(*logit)),
            _ => {}
        }
        row
    }

    fn sampling(generator: &mut ChaCha8Rng, vocab: usize) -> SamplingParams {
        let ks = [None, None, Some(1), Some(2), Some(40), Some(vocab.max(2) - 1), Some(vocab + 7)];
        let ps = [1.0, 1.0, 0.01, 0.3, 0.5, 0.9, 0.95];
        SamplingParams {
            temperature: [0.0, 0.1, 0.6, 0.7, 1.0, 1.0, 1.3, 2.0][generator.random_range(0..8)],
            top_p: ps[generator.random_range(0..ps.len())],
            top_k: ks[generator.random_range(0..ks.len())],
            seed: generator.random(),
        }
    }

    /// Rows of all kinds, padding among them.
    fn mixed(rows: usize, vocab: usize, seed: u64) -> Vec<Row> {
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        let row = |at| {
            let row = logits(at % 9, vocab, &mut generator);
            let draw = (sampling(&mut generator, vocab), generator.random_range(0..1000));
            // A row that must not be read.
            if at % 17 == 5 { (vec![f32::NAN; vocab], None) } else { (row, Some(draw)) }
        };
        (0..rows).map(row).collect()
    }

    #[test]
    fn a_few_rows_of_all_kinds_equal_the_cpu() {
        for vocab in [1, 3, 97, 1031] {
            assert_as_on_the_cpu(&mixed(if vocab < 97 { 3 } else { 24 }, vocab, 1));
        }
    }

    #[test]
    fn many_rows_of_all_kinds_equal_the_cpu() {
        for (rows, vocab) in [(350, 97), (150, 334), (50, 2501)] {
            assert_as_on_the_cpu(&mixed(rows, vocab, 2));
        }
    }

    #[test]
    fn a_vocabulary_of_128256_equals_the_cpu() {
        let mut rows = mixed(9, 128_256, 3);
        rows[1].1 = Some((SamplingParams { temperature: 1.0, ..SamplingParams::default() }, 4));
        assert_as_on_the_cpu(&rows);
    }

    /// The same logits at 20 positions.
    fn assert_draws_as_on_the_cpu(logits: &[f32], top_k: Option<usize>, top_p: f64) {
        let params = SamplingParams { temperature: 1.0, top_k, top_p, seed: 3 };
        let rows: Vec<Row> = (0..20).map(|at| (logits.to_vec(), Some((params, at)))).collect();
        assert_as_on_the_cpu(&rows);
    }

    #[test]
    fn a_long_tail_is_summed_as_on_the_cpu() {
        // Weights of 2^31.5 out of 2^44, so that every second addition carries.
        let mut logits = vec![-8.7; 531];
        logits[200] = 0.0;
        assert_draws_as_on_the_cpu(&logits, None, 0.99);
    }

    #[test]
    fn zeros_of_both_signs_are_equals() {
        let logits: Vec<f32> = (0..100).map(|id| 0.0_f32.copysign((id % 2) as f32 - 0.5)).collect();
        assert_draws_as_on_the_cpu(&logits, Some(60), 0.9);
    }

    #[test]
    fn equals_are_cut_by_their_ids() {
        let logits: Vec<f32> = (0..100).map(|id| (id % 2) as f32).collect();
        assert_draws_as_on_the_cpu(&logits, Some(60), 0.9);
        assert_draws_as_on_the_cpu(&logits, Some(60), 1.0);
        assert_draws_as_on_the_cpu(&logits, Some(20), 0.5);
        // One of the second rank.
        assert_draws_as_on_the_cpu(&logits, Some(51), 1.0);
    }

    #[test]
    fn a_nan_is_reported_wherever_it_stands() {
        let rows: Vec<Row> = (0..40)
            .map(|at| {
                let mut row = vec![f32::INFINITY; 37];
                let sign = if at % 2 == 0 { f32::NAN } else { -f32::NAN };
                row.iter_mut().skip(at).take(1).for_each(|logit| *logit = sign);
                let temperature = (at % 3) as f64;
                (row, Some((SamplingParams { temperature, ..SamplingParams::default() }, at)))
            })
            .collect();
        let expected = (0..40).map(|at| if at < 37 { NOT_A_NUMBER } else { 0 });
        assert!(drawn(&rows).into_iter().eq(expected));
    }

    #[test]
    fn rows_that_only_infinity_leads_give_their_first_leader() {
        let params = SamplingParams { temperature: 1.0, top_p: 0.5, ..SamplingParams::default() };
        let mut rows = vec![(vec![f32::NEG_INFINITY; 50], Some((params, 3))); 2];
        rows[1].0[40] = f32::INFINITY;
        assert_eq!(drawn(&rows), [0, 40]);
    }

    #[test]
    fn extreme_temperatures_equal_the_cpu() {
        let mut generator = ChaCha8Rng::seed_from_u64(4);
        let row = |temperature| {
            let params = SamplingParams { temperature, seed: 5, ..SamplingParams::default() };
            (logits(8, 300, &mut generator), Some((params, 9)))
        };
        let rows: Vec<Row> = [1e-300, 1e-30, 1e-3, 50.0, 1e6, 1e300].map(row).into();
        assert_as_on_the_cpu(&rows);
    }

    #[test]
    fn draws_a_fifth_of_a_millionth_from_a_boundary_are_the_cpus() {
        let mut generator = ChaCha8Rng::seed_from_u64(6);
        let mut rows = Vec::new();
        for position in 0..150 {
            let temperature = generator.random_range(0.1..2.0);
            let params = SamplingParams { temperature, seed: 8, ..SamplingParams::default() };
            let uniform = sampler::uniform(params.seed, position);
            // The first token has this share, between two that differ.
            for share in [uniform - 2e-7, uniform + 2e-7] {
                let odds = ((1.0 - share) / share).ln() * temperature;
                let base: f32 = generator.random_range(-1.0..1.0);
                let other = (f64::from(base) + odds) as f32;
                rows.push((vec![base, other], Some((params, position))));
            }
        }
        let uniform = |row: &Row| {
            let (params, position) = row.1.unwrap();
            let share = f64::from(row.0[1]) - f64::from(row.0[0]);
            let share = 1.0 / (1.0 + (share / params.temperature).exp());
            (sampler::uniform(params.seed, position) - share).abs()
        };
        rows.retain(|row| (1e-7..3e-7).contains(&uniform(row)));
        assert!(rows.len() > 250, "{}", rows.len());
        assert_as_on_the_cpu(&rows);
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let logits = vec![0.0, 2_f32.ln(), f32::NEG_INFINITY, 5_f32.ln()];
        let params = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
        let rows: Vec<Row> =
            (0..400).map(|position| (logits.clone(), Some((params, position)))).collect();
        let mut counts = [0_u32; 4];
        drawn(&rows).into_iter().for_each(|token| counts[token as usize] += 1);
        for (count, expected) in counts.iter().zip([50.0, 100.0, 0.0, 250.0]) {
            // Four standard deviations of the widest of them.
            assert!((f64::from(*count) - expected).abs() < 4.0 * 10.0, "{counts:?}");
        }
    }

    #[test]
    fn the_key_is_the_generators_own_and_positions_have_64_bits() {
        let key = |seed| {
            let params = Params::new(&SamplingParams { seed, ..SamplingParams::default() }, 0);
            let bytes: Vec<u8> = params.words()[8..].iter().flat_map(|w| w.to_le_bytes()).collect();
            <[u8; 32]>::try_from(bytes).unwrap()
        };
        for seed in [0, 1, u64::MAX] {
            let generator = ChaCha12Rng::seed_from_u64(seed);
            assert_eq!(ChaCha12Rng::from_seed(key(seed)), generator);
        }
        // Even logits: the token is the uniform number in steps of a thousandth.
        let rows: Vec<Row> = [7, 8, 1 << 31, 1 << 35, (1 << 40) + 5, usize::MAX >> 1]
            .map(|position| {
                let params = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
                (vec![0.0; 1000], Some((params, position)))
            })
            .into();
        assert_as_on_the_cpu(&rows);
    }

    #[test]
    fn accesses_stay_inside_the_buffers() {
        assert_clean("infer::cuda::kernels::sample::tests::a_few_rows_of_all_kinds_equal_the_cpu");
    }

    #[test]
    fn missing_barriers_are_noticed() {
        for nth in 0..5 {
            let test = a_few_rows_of_all_kinds_equal_the_cpu;
            assert!(!survives("sample.cu", "__syncthreads();", nth, "", test), "barrier {nth}");
        }
    }

    #[test]
    fn planted_faults_are_noticed() {
        let few: fn() = a_few_rows_of_all_kinds_equal_the_cpu;
        let survivors: Vec<&str> = [
            ("+ (old + low < old)", "", a_long_tail_is_summed_as_on_the_cpu as fn()),
            ("through > target", "through >= target", few),
            ("own < rank", "own <= rank", few),
            ("logit + 0.f", "logit", zeros_of_both_signs_are_equals),
            ("all - cut, wanted", "all, wanted", equals_are_cut_by_their_ids),
            ("mass : all - cut", "mass : all", equals_are_cut_by_their_ids),
        ]
        .into_iter()
        .filter(|(from, to, test)| survives("sample.cu", from, 0, to, test))
        .map(|(from, ..)| from)
        .collect();
        assert!(survivors.is_empty(), "{survivors:?}");
    }

    #[test]
    fn views_that_do_not_fit_are_refused_by_name() {
        let view = |element, len| View { ptr: 0, len, element };
        let refusal = |logits, params, out, vocab| {
            let (logits, params) = (view(Element::F32, logits), view(Element::I32, params));
            sample(logits, params, view(Element::U32, out), [2, vocab]).unwrap_err().0
        };
        assert!(refusal(193, 32, 2, 97).contains("logits must hold 194"));
        assert!(refusal(194, 31, 2, 97).contains("params must hold 32"));
        assert!(refusal(194, 32, 1, 97).contains("out must hold 2"));
        assert!(refusal(194, 32, 2, 0).contains("vocab 0"));
        assert!(refusal(194, 32, 2, 1 << 20).contains("vocab 1048576"));
    }
}
