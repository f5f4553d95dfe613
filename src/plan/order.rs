//! In which order engines take their turns under a load, so that a machine that
//! drifts during the run favours none of them, nor one arm of a comparison of an
//! engine with itself.

use std::fmt;
use std::str::FromStr;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand::{Rng, RngCore};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Keeps these draws apart from those of prompts, lengths and arrivals, which
/// come of the seed as it is.
const OWN_DRAWS: u64 = 0x6f72_6465_7200_0000;

/// How turns are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// A B, B A, A B, ...: over two rounds nobody comes earlier on average.
    Mirrored,
    /// Drawn by the seed, anew for each load of each round.
    Shuffled,
}

/// An engine's turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turn {
    /// Index among the subjects.
    pub(super) engine: usize,
    /// Whether it is the second arm of a comparison of the engine with itself.
    pub(super) again: bool,
}

/// Which turns are asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Draw {
    /// The plan's seed.
    pub(super) seed: u64,
    /// The round.
    pub(super) round: u32,
    /// The load within the run; `None` where engines run a round at a stretch.
    pub(super) load: Option<u32>,
}

impl Order {
    /// The turns of `num_engines` engines. With `aa` each engine has two, and
    /// the second arms come in the opposite order of the first: A B B' A'.
    pub(super) fn turns(self, num_engines: usize, aa: bool, draw: Draw) -> Vec<Turn> {
        let mut engines: Vec<usize> = (0..num_engines).collect();
        let backwards = match self {
            Self::Mirrored => !draw.round.is_multiple_of(2),
            Self::Shuffled => {
                let mut generator = draw.generator();
                engines.shuffle(&mut generator);
                generator.random()
            }
        };
        let arm = |again| move |engine: &usize| Turn { engine: *engine, again };
        let mut turns: Vec<Turn> = engines.iter().map(arm(false)).collect();
        if aa {
            turns.extend(engines.iter().rev().map(arm(true)));
        }
        // So that no arm is always the earlier one either.
        if backwards {
            turns.reverse();
        }
        turns
    }
}

impl Draw {
    fn generator(self) -> impl RngCore {
        let mut generator = ChaCha8Rng::seed_from_u64(self.seed ^ OWN_DRAWS);
        generator.set_stream(match self.load {
            Some(load) => (1 << 32) | u64::from(load),
            None => u64::from(self.round),
        });
        generator
    }
}

impl FromStr for Order {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "mirrored" => Ok(Self::Mirrored),
            "shuffled" => Ok(Self::Shuffled),
            _ => Err(format!("order `{text}` is not known: expected mirrored or shuffled")),
        }
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mirrored => "mirrored",
            Self::Shuffled => "shuffled",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(order: Order, aa: bool, round: u32, load: u32) -> Vec<(usize, bool)> {
        let turns = order.turns(3, aa, Draw { seed: 7, round, load: Some(load) });
        turns.into_iter().map(|turn| (turn.engine, turn.again)).collect()
    }

    #[test]
    fn no_engine_and_no_arm_comes_earlier_on_average_over_two_mirrored_rounds() {
        for aa in [false, true] {
            let rounds = [turns(Order::Mirrored, aa, 0, 0), turns(Order::Mirrored, aa, 1, 1)];
            let sum = |of: &(usize, bool)| -> usize {
                rounds.iter().map(|round| round.iter().position(|turn| turn == of).unwrap()).sum()
            };
            let sums: Vec<_> = rounds[0].iter().map(sum).collect();
            assert!(sums.iter().all(|place| *place == rounds[0].len() - 1), "{sums:?}");
        }
    }

    #[test]
    fn shuffled_turns_come_of_the_seed_alone_and_differ_between_loads() {
        let drawn: Vec<_> = (0..200).map(|load| turns(Order::Shuffled, true, 0, load)).collect();
        let again: Vec<_> = (0..200).map(|load| turns(Order::Shuffled, true, 0, load)).collect();
        assert_eq!(drawn, again);
        let mut different = drawn.clone();
        different.sort();
        different.dedup();
        // Six orders of three engines, and which arm comes first.
        assert_eq!(different.len(), 12);
        for turns in drawn {
            let mut engines: Vec<_> = turns.clone();
            engines.sort_unstable();
            engines.dedup();
            assert_eq!(engines.len(), 6, "{turns:?}");
            assert!((0..3).all(|i| turns[i].0 == turns[5 - i].0), "{turns:?}");
        }
    }

    #[test]
    fn other_words_are_named() {
        assert_eq!("shuffled".parse(), Ok(Order::Shuffled));
        assert!("random".parse::<Order>().unwrap_err().contains("`random`"));
    }
}
