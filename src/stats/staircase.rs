//! The queueing staircase: a server with fewer slots than requests answers a
//! burst in steps of one generation each, `TTFT_k = base + floor(k / slots) *
//! T_gen`. Seen in Ollama with `OLLAMA_NUM_PARALLEL` below the concurrency.

use super::distribution::{mean, median};
use super::summary::Staircase;

/// First token and end of one request of a burst, in ms since the release.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stream {
    /// First token.
    pub first_ms: f64,
    /// End of the response.
    pub done_ms: f64,
}

/// Levels must be this many times further apart than the widest one is wide.
const MIN_SEPARATION: f64 = 2.0;
/// A step is between these multiples of the median time from first token to end.
const STEP_OVER_GENERATION: (f64, f64) = (0.5, 2.0);

/// Finds the number of slots, only where the shape is beyond doubt: level
/// after level of `slots` requests, levels much further apart than wide, each
/// step about as high as a generation is long, and never more than `slots`
/// streams running as a queued one gets its first token. A ramp of prefills
/// under continuous batching fails the last two; one late request alone is
/// taken for a straggler.
#[must_use]
pub fn detect(burst: &[Stream]) -> Option<Staircase> {
    let mut streams = burst.to_vec();
    streams.sort_by(|a, b| a.first_ms.total_cmp(&b.first_ms));
    (1..streams.len()).find_map(|slots| fit(&streams, slots))
}

fn fit(sorted: &[Stream], slots: usize) -> Option<Staircase> {
    let levels: Vec<&[Stream]> = sorted.chunks(slots).collect();
    let queued = sorted.len() - slots;
    if levels.len() < 2 || (levels.len() == 2 && queued < 2) {
        return None;
    }
    let generation = median(sorted.iter().map(|s| s.done_ms - s.first_ms))?;
    let width = levels.iter().map(|l| l[l.len() - 1].first_ms - l[0].first_ms).fold(0.0, f64::max);
    let middles: Vec<f64> =
        levels.iter().filter_map(|l| median(l.iter().map(|s| s.first_ms))).collect();
    let mut steps = Vec::new();
    for (pair, middle) in levels.windows(2).zip(middles.windows(2)) {
        let (below, above) = (pair[0], pair[1]);
        let gap = above[0].first_ms - below[below.len() - 1].first_ms;
        let step = middle[1] - middle[0];
        let (low, high) = STEP_OVER_GENERATION;
        if gap <= MIN_SEPARATION * width || !(low * generation..=high * generation).contains(&step)
        {
            return None;
        }
        steps.push(step);
    }
    let waited_for_a_slot = sorted[slots..].iter().all(|late| {
        let running = sorted
            .iter()
            .filter(|other| other.first_ms < late.first_ms && other.done_ms > late.first_ms);
        running.count() < slots
    });
    let slots = u32::try_from(slots).ok()?;
    let step_ms = mean(&steps)?;
    (waited_for_a_slot && step_ms > 0.0).then_some(Staircase { slots, step_ms })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn streams(pairs: &[(f64, f64)]) -> Vec<Stream> {
        pairs
            .iter()
            .map(|(first, done)| Stream { first_ms: first * 1e3, done_ms: done * 1e3 })
            .collect()
    }

    /// The published L4 study, Ollama with four slots and ten requests, in seconds.
    fn study() -> Vec<Stream> {
        streams(&[
            (0.40, 6.8),
            (0.41, 7.2),
            (0.42, 7.7),
            (0.43, 8.1),
            (6.9, 14.5),
            (7.3, 14.9),
            (7.8, 15.2),
            (8.2, 16.0),
            (14.6, 21.5),
            (15.3, 22.4),
        ])
    }

    #[test]
    fn four_slots_are_found_in_the_published_study() {
        let found = detect(&study()).unwrap();
        assert_eq!(found.slots, 4);
        assert!((6_500.0..8_000.0).contains(&found.step_ms), "{}", found.step_ms);
    }

    #[test]
    fn order_of_the_requests_does_not_matter() {
        let mut shuffled = study();
        shuffled.reverse();
        shuffled.swap(1, 7);
        assert_eq!(detect(&shuffled), detect(&study()));
    }

    #[test]
    fn one_slot_is_a_stair_for_each_request() {
        let queue: Vec<_> =
            (0..6).map(|k| (0.1 + f64::from(k) * 2.0, f64::from(k + 1) * 2.0)).collect();
        let found = detect(&streams(&queue)).unwrap();
        assert_eq!(found.slots, 1);
        assert!((found.step_ms - 2_000.0).abs() < 1.0);
    }

    #[test]
    fn flat_first_tokens_are_no_stair() {
        let flat: Vec<_> = (0..10).map(|k| (0.40 + f64::from(k) * 0.004, 7.0)).collect();
        assert_eq!(detect(&streams(&flat)), None);
        assert_eq!(detect(&streams(&[(0.4, 7.0); 10])), None);
    }

    #[test]
    fn a_ramp_of_prefills_is_no_stair() {
        // Long answers: steps far below a generation.
        let ramp: Vec<_> = (0..10).map(|k| (0.1 * f64::from(k + 1), 7.0)).collect();
        assert_eq!(detect(&streams(&ramp)), None);
        // Short answers: steps as long as a generation, but the streams overlap.
        let ramp: Vec<_> =
            (0..10).map(|k| (0.1 * f64::from(k + 1), 0.1 * f64::from(k + 1) + 0.15)).collect();
        assert_eq!(detect(&streams(&ramp)), None);
    }

    #[test]
    fn a_single_straggler_is_no_stair() {
        let mut burst = vec![(0.4, 7.0); 4];
        burst.push((7.5, 14.0));
        assert_eq!(detect(&streams(&burst)), None);
    }

    #[test]
    fn too_few_requests_are_no_stair() {
        assert_eq!(detect(&[]), None);
        assert_eq!(detect(&streams(&[(0.4, 7.0)])), None);
        assert_eq!(detect(&streams(&[(0.4, 7.0), (7.4, 14.0)])), None);
    }
}
