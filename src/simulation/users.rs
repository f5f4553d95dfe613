//! What arrives when, and how long it is: an open loop of arrivals, or users who
//! each wait for their answer, think, and ask again; lengths are drawn, or given.
//! A pure function of a seed. Knows no engine; of time only the instants it is told.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Exp1};

use crate::clock::Timestamp;
use crate::load::arrival::{Arrivals, Extent};
use crate::plan::Lengths;
use crate::workload::lengths::draw;

/// What a user waits at least whose request was refused, where requests are drawn:
/// without it one who does not think would ask for ever at one instant.
const RETRY: Duration = Duration::from_secs(1);

/// Streams of one seed, so that the nth request is the same under any load.
const GAPS: u64 = 1;
const PROMPTS: u64 = 2;
const OUTPUTS: u64 = 3;
const THINKING: u64 = 4;

/// When requests are made.
#[derive(Debug, Clone, PartialEq)]
pub enum Load {
    /// Whatever has not been answered yet.
    Open(Arrivals),
    /// The same at these instants since the beginning, in ascending order.
    Given(Arc<[Duration]>),
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
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// Lengths are drawn; no two prompts have more in common than their beginning.
    Drawn {
        /// Tokens of a prompt.
        prompt_tokens: Lengths,
        /// Tokens of an answer.
        output_tokens: Lengths,
        /// Tokens at the front of every prompt that are the same.
        prefix_tokens: u32,
    },
    /// The nth request is the nth of these, and there are no more.
    Given(Arc<[Request]>),
}

/// A request by its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Request {
    /// What is computed first.
    pub prompt: Prompt,
    /// Tokens of the answer, at least one.
    pub output_tokens: u32,
}

/// A prompt by its length and by what it has in common with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Prompt {
    /// Tokens in all, at least one.
    pub tokens: u32,
    /// Of these, tokens at the front that it has in common with its group.
    pub prefix_tokens: u32,
    /// Number of that group.
    pub group: u32,
    /// Number of what follows them: equal prompts have the same, and no others.
    pub text: u32,
}

/// A request on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// When.
    pub at: Timestamp,
    /// Whose; zero in an open loop.
    pub user: u32,
    /// What.
    pub request: Request,
}

/// Everybody who asks.
pub struct Users {
    pending: Pending,
    /// Requests that are made at most, and the instant from which on none is.
    most: u32,
    until: Option<Timestamp>,
    num_asked: u32,
    content: Content,
    prompts: ChaCha8Rng,
    outputs: ChaCha8Rng,
}

enum Pending {
    Open {
        next: Option<Timestamp>,
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
    pub fn new(load: &Load, content: &Content, extent: Extent, seed: u64) -> Self {
        let pending = match load {
            Load::Open(arrivals) => Pending::open(arrivals.stream(seed, GAPS)),
            Load::Given(instants) => {
                let instants = Arc::clone(instants);
                Pending::open((0..instants.len()).map(move |i| instants[i]))
            }
            Load::Closed { users, think } => {
                let mut thoughts = Box::new(generator(seed, THINKING));
                let start = Timestamp::default();
                let due = (0..*users)
                    .map(|user| Reverse((start.plus(thought(*think, &mut thoughts)), user)));
                Pending::Closed { due: due.collect(), think: *think, thoughts }
            }
        };
        let given = match content {
            Content::Drawn { .. } => u32::MAX,
            Content::Given(requests) => u32::try_from(requests.len()).unwrap_or(u32::MAX),
        };
        Self {
            pending,
            most: extent.requests.unwrap_or(u32::MAX).min(given),
            until: extent.duration.map(instant),
            num_asked: 0,
            content: content.clone(),
            prompts: generator(seed, PROMPTS),
            outputs: generator(seed, OUTPUTS),
        }
    }

    /// When the next request is made; `None` if none is, or none before somebody
    /// is answered.
    #[must_use]
    pub fn next_at(&self) -> Option<Timestamp> {
        let at = match &self.pending {
            Pending::Open { next, .. } => (*next)?,
            Pending::Closed { due, .. } => due.peek()?.0.0,
        };
        let in_time = self.until.is_none_or(|until| at < until);
        (self.num_asked < self.most && in_time).then_some(at)
    }

    /// The next request, if it is made until `now`.
    pub fn ask(&mut self, now: Timestamp) -> Option<Asked> {
        let at = self.next_at().filter(|at| *at <= now)?;
        let user = match &mut self.pending {
            Pending::Open { next, rest } => {
                *next = rest.next().map(instant);
                0
            }
            Pending::Closed { due, .. } => due.pop()?.0.1,
        };
        let number = self.num_asked;
        self.num_asked += 1;
        let request = match &self.content {
            Content::Drawn { prompt_tokens, output_tokens, prefix_tokens } => Request {
                prompt: Prompt {
                    tokens: draw(prompt_tokens, &mut self.prompts),
                    prefix_tokens: *prefix_tokens,
                    group: 0,
                    text: number,
                },
                output_tokens: draw(output_tokens, &mut self.outputs),
            },
            Content::Given(requests) => *requests.get(number as usize)?,
        };
        Some(Asked { at, user, request })
    }

    /// A user has its answer, and thinks.
    pub fn answered(&mut self, user: u32, at: Timestamp) {
        self.think(user, at, Duration::ZERO);
    }

    /// A user was refused, and thinks, but not too shortly. Requests that are given
    /// come to an end, however soon the next one follows.
    pub fn refused(&mut self, user: u32, at: Timestamp) {
        let least = match self.content {
            Content::Drawn { .. } => RETRY,
            Content::Given(_) => Duration::ZERO,
        };
        self.think(user, at, least);
    }

    fn think(&mut self, user: u32, at: Timestamp, least: Duration) {
        if let Pending::Closed { due, think, thoughts } = &mut self.pending {
            let pause = thought(*think, thoughts).max(least);
            due.push(Reverse((at.plus(pause), user)));
        }
    }
}

impl Pending {
    fn open(mut instants: impl Iterator<Item = Duration> + 'static) -> Self {
        Self::Open { next: instants.next().map(instant), rest: Box::new(instants) }
    }
}

impl Prompt {
    /// Its token ids: after the common beginning one that no other text has, so
    /// that no block of it is another's.
    #[must_use]
    pub fn ids(&self) -> Vec<u32> {
        let mut ids = vec![0; self.tokens as usize];
        if let Some(first) = ids.first_mut() {
            *first = self.group;
        }
        if let Some(own) = ids.get_mut(self.prefix_tokens as usize) {
            *own = self.text.saturating_add(1);
        }
        ids
    }
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

    const CONTENT: Content = Content::Drawn {
        prompt_tokens: Lengths::Uniform { least: 5, most: 50 },
        output_tokens: Lengths::Fixed(3),
        prefix_tokens: 0,
    };

    fn poisson() -> Load {
        Load::Open(Arrivals { process: Process::Poisson, rate: 3.0, ramp: None })
    }

    fn all(load: &Load, extent: Extent) -> Vec<Asked> {
        let mut users = Users::new(load, &CONTENT, extent, 7);
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
        let lengths =
            |load| all(load, extent).iter().map(|a| a.request.prompt.tokens).collect::<Vec<_>>();
        assert_eq!(lengths(&poisson()), lengths(&closed));
    }

    #[test]
    fn user_asks_again_only_after_the_answer() {
        let load = Load::Closed { users: 2, think: Duration::ZERO };
        let mut users = Users::new(&load, &CONTENT, Extent::default(), 1);
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

    /// Requests of one to `n` tokens and an answer of one.
    fn given(n: u32) -> Content {
        let request = |tokens| Request {
            prompt: Prompt { tokens, text: tokens, ..Prompt::default() },
            output_tokens: 1,
        };
        Content::Given((1..=n).map(request).collect())
    }

    #[test]
    fn given_requests_are_made_in_their_order_at_their_instants_and_then_no_more() {
        let load = Load::Given([3, 3, 8].map(Duration::from_millis).into());
        let of = |content: &Content| {
            let mut users = Users::new(&load, content, Extent::default(), 1);
            std::iter::from_fn(|| users.ask(Timestamp::from_nanos(u64::MAX)))
                .map(|asked| (asked.at.as_nanos() / 1_000_000, asked.request.prompt.tokens))
                .collect::<Vec<_>>()
        };
        assert_eq!(of(&given(9)), [(3, 1), (3, 2), (8, 3)]);
        assert_eq!(of(&given(2)), [(3, 1), (3, 2)]);
    }

    #[test]
    fn user_whose_given_request_was_refused_makes_the_next_at_once() {
        let load = Load::Closed { users: 1, think: Duration::ZERO };
        let mut users = Users::new(&load, &given(2), Extent::default(), 1);
        let now = Timestamp::from_nanos(10);
        users.ask(now).unwrap();
        users.refused(0, now);
        assert_eq!(users.ask(now).unwrap().request.prompt.tokens, 2);
        users.refused(0, now);
        assert_eq!(users.next_at(), None);
    }

    #[test]
    fn prompts_share_the_prefix_of_their_group_and_nothing_else() {
        let ids = |tokens, prefix_tokens, group, text| {
            Prompt { tokens, prefix_tokens, group, text }.ids()
        };
        assert_eq!(ids(4, 2, 0, 6), [0, 0, 7, 0]);
        assert_eq!(ids(4, 2, 5, 6), [5, 0, 7, 0]);
        assert_eq!(ids(2, 2, 5, 6), [5, 0]);
        assert_ne!(ids(2, 0, 0, 6), ids(2, 0, 0, 7));
        assert_eq!(ids(0, 0, 0, u32::MAX), [] as [u32; 0]);
    }
}
