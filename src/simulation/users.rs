//! What arrives when, and how long it is: an open loop of arrivals, or users who
//! each wait for their answer, think, and ask again. A pure function of a seed.
//! Knows no engine; of time only the instants it is told.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Exp1};

use crate::clock::Timestamp;
use crate::load::arrival::{Arrivals, Extent};
use crate::plan::Lengths;
use crate::workload::lengths::draw;

/// What a user waits at least whose request was refused: without it one who does
/// not think would ask for ever at one instant.
const RETRY: Duration = Duration::from_secs(1);

/// Streams of one seed, so that the nth request is the same under any load.
const GAPS: u64 = 1;
const PROMPTS: u64 = 2;
const OUTPUTS: u64 = 3;
const THINKING: u64 = 4;

/// When requests are made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Load {
    /// Whatever has not been answered yet.
    Open(Arrivals),
    /// By users who wait for their answers.
    Closed {
        /// How many there are.
        users: u32,
        /// Mean of the exponential pauses before a user's requests; without pauses
        /// all begin at once.
        think: Duration,
    },
}

/// What requests hold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Content {
    /// Tokens of a prompt.
    pub prompt_tokens: Lengths,
    /// Tokens of an answer.
    pub output_tokens: Lengths,
    /// Tokens at the front of every prompt that are the same.
    pub prefix_tokens: u32,
}

/// A request on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// When.
    pub at: Timestamp,
    /// Whose; zero in an open loop.
    pub user: u32,
    /// Tokens of its prompt.
    pub prompt_tokens: u32,
    /// Tokens of its answer.
    pub output_tokens: u32,
}

/// Everybody who asks.
pub struct Users {
    pending: Pending,
    extent: Extent,
    num_asked: u64,
    content: Content,
    prompts: ChaCha8Rng,
    outputs: ChaCha8Rng,
}

enum Pending {
    Open {
        next: Timestamp,
        rest: Box<dyn Iterator<Item = Duration>>,
    },
    Closed {
        /// Who asks next and when.
        due: BinaryHeap<Reverse<(Timestamp, u32)>>,
        think: Duration,
        thoughts: Box<ChaCha8Rng>,
    },
}

impl Users {
    /// Those of `load`, before the first request.
    #[must_use]
    pub fn new(load: &Load, content: Content, extent: Extent, seed: u64) -> Self {
        let pending = match *load {
            Load::Open(arrivals) => {
                let mut rest = Box::new(arrivals.stream(seed, GAPS));
                Pending::Open { next: instant(rest.next().unwrap_or_default()), rest }
            }
            Load::Closed { users, think } => {
                let mut thoughts = Box::new(generator(seed, THINKING));
                let start = Timestamp::default();
                let due = (0..users)
                    .map(|user| Reverse((start.plus(thought(think, &mut thoughts)), user)));
                Pending::Closed { due: due.collect(), think, thoughts }
            }
        };
        Self {
            pending,
            extent,
            num_asked: 0,
            content,
            prompts: generator(seed, PROMPTS),
            outputs: generator(seed, OUTPUTS),
        }
    }

    /// When the next request is made; `None` if none is, or none before somebody
    /// is answered.
    #[must_use]
    pub fn next_at(&self) -> Option<Timestamp> {
        let most = self.extent.requests.map_or(u64::MAX, u64::from);
        let at = match &self.pending {
            Pending::Open { next, .. } => *next,
            Pending::Closed { due, .. } => due.peek()?.0.0,
        };
        let in_time = self.extent.duration.is_none_or(|duration| at < instant(duration));
        (self.num_asked < most && in_time).then_some(at)
    }

    /// The next request, if it is made until `now`.
    pub fn ask(&mut self, now: Timestamp) -> Option<Asked> {
        let at = self.next_at().filter(|at| *at <= now)?;
        let user = match &mut self.pending {
            Pending::Open { next, rest } => {
                *next = instant(rest.next().unwrap_or(Duration::MAX));
                0
            }
            Pending::Closed { due, .. } => due.pop()?.0.1,
        };
        self.num_asked += 1;
        Some(Asked {
            at,
            user,
            prompt_tokens: draw(&self.content.prompt_tokens, &mut self.prompts),
            output_tokens: draw(&self.content.output_tokens, &mut self.outputs),
        })
    }

    /// A user has its answer, and thinks.
    pub fn answered(&mut self, user: u32, at: Timestamp) {
        self.think(user, at, Duration::ZERO);
    }

    /// A user was refused, and thinks, but not too shortly.
    pub fn refused(&mut self, user: u32, at: Timestamp) {
        self.think(user, at, RETRY);
    }

    fn think(&mut self, user: u32, at: Timestamp, least: Duration) {
        if let Pending::Closed { due, think, thoughts } = &mut self.pending {
            let pause = thought(*think, thoughts).max(least);
            due.push(Reverse((at.plus(pause), user)));
        }
    }
}

/// Ids of the prompt of request `number`: after the shared beginning it has one
/// token that no other request has, so that no block of it is another's.
#[must_use]
pub fn prompt_ids(number: u64, prompt_tokens: u32, prefix_tokens: u32) -> Vec<u32> {
    let mut ids = vec![0; prompt_tokens as usize];
    if let Some(own) = ids.get_mut(prefix_tokens as usize) {
        // Four billion requests later an id returns.
        *own = u32::try_from(number % u64::from(u32::MAX)).unwrap_or_default() + 1;
    }
    ids
}

fn generator(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    generator.set_stream(stream);
    generator
}

fn thought(mean: Duration, generator: &mut ChaCha8Rng) -> Duration {
    if mean.is_zero() {
        return Duration::ZERO;
    }
    let share: f64 = Exp1.sample(generator);
    Duration::try_from_secs_f64(mean.as_secs_f64() * share).unwrap_or(Duration::MAX)
}

fn instant(since: Duration) -> Timestamp {
    Timestamp::default().plus(since)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::arrival::Process;

    const CONTENT: Content = Content {
        prompt_tokens: Lengths::Uniform { least: 5, most: 50 },
        output_tokens: Lengths::Fixed(3),
        prefix_tokens: 0,
    };

    fn poisson() -> Load {
        Load::Open(Arrivals { process: Process::Poisson, rate: 3.0, ramp: None })
    }

    fn all(load: &Load, extent: Extent) -> Vec<Asked> {
        let mut users = Users::new(load, CONTENT, extent, 7);
        std::iter::from_fn(|| users.ask(Timestamp::from_nanos(u64::MAX))).collect()
    }

    #[test]
    fn open_loop_ends_with_its_extent_and_repeats_itself() {
        let extent = Extent { requests: None, duration: Some(Duration::from_secs(40)) };
        let asked = all(&poisson(), extent);
        assert!((80..160).contains(&asked.len()), "{}", asked.len());
        assert!(asked.is_sorted_by_key(|asked| asked.at));
        assert_eq!(asked, all(&poisson(), extent));
        let extent = Extent { requests: Some(5), duration: None };
        assert_eq!(all(&poisson(), extent), asked[..5]);
    }

    #[test]
    fn nth_request_is_as_long_under_any_load() {
        let extent = Extent { requests: Some(20), duration: None };
        let closed = Load::Closed { users: 20, think: Duration::from_secs(9) };
        let lengths = |load| all(load, extent).iter().map(|a| a.prompt_tokens).collect::<Vec<_>>();
        assert_eq!(lengths(&poisson()), lengths(&closed));
    }

    #[test]
    fn user_asks_again_only_after_the_answer() {
        let load = Load::Closed { users: 2, think: Duration::ZERO };
        let mut users = Users::new(&load, CONTENT, Extent::default(), 1);
        let now = Timestamp::from_nanos(10);
        assert_eq!(users.ask(now).map(|asked| asked.user), Some(0));
        assert_eq!(users.ask(now).map(|asked| asked.user), Some(1));
        assert_eq!(users.ask(now), None);
        users.answered(1, Timestamp::from_nanos(20));
        assert_eq!(users.ask(now), None);
        let again = users.ask(Timestamp::from_nanos(20)).unwrap();
        assert_eq!((again.user, again.at), (1, Timestamp::from_nanos(20)));
        users.refused(1, Timestamp::from_nanos(30));
        assert_eq!(users.next_at(), Some(Timestamp::from_nanos(1_000_000_030)));
    }

    #[test]
    fn prompts_share_their_prefix_and_nothing_else() {
        assert_eq!(prompt_ids(6, 4, 2), [0, 0, 7, 0]);
        assert_eq!(prompt_ids(6, 2, 2), [0, 0]);
        assert_ne!(prompt_ids(6, 2, 0), prompt_ids(7, 2, 0));
    }
}
