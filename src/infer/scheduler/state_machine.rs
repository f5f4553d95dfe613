//! Any history of requests, steps and aborts against a naive engine: one that
//! remembers what was written to each slot, and generates every sample alone.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Action {
    Add(InferRequest),
    Step,
    Abort(usize),
    Drain,
}

/// What the naive engine knows of a sample.
struct Expected {
    prompt: Vec<u32>,
    max_len: usize,
    seed: u64,
    /// Tokens of the prompt's scores so far, where it is scored.
    scored: Option<Vec<u32>>,
}

/// The scheduler beside what it must come to.
struct Machine {
    scheduler: Scheduler,
    limits: SchedulerLimits,
    live: BTreeMap<(SequenceId, usize), Expected>,
    /// What each slot of the cache holds: the token and all before it.
    slots: HashMap<usize, Vec<u32>>,
    next_id: SequenceId,
}

/// The token that follows `tokens`, from a vocabulary of three: texts meet often.
fn next_token(tokens: &[u32], seed: u64) -> u32 {
    let next = |sum: u64, token: &u32| sum.wrapping_mul(7).wrapping_add(u64::from(*token) + 1);
    let sum = tokens.iter().fold(seed, next);
    u32::try_from(sum % 3).unwrap()
}

impl Expected {
    /// All tokens that the sample comes to, as far as `len`.
    fn tokens(&self, len: usize) -> Vec<u32> {
        let mut tokens = self.prompt.clone();
        while tokens.len() < len {
            tokens.push(next_token(&tokens, self.seed));
        }
        tokens
    }
}

impl Machine {
    fn new(limits: SchedulerLimits, hash: ChainHash) -> Self {
        Self {
            scheduler: Scheduler::with_hash(limits, hash),
            limits,
            live: BTreeMap::new(),
            slots: HashMap::new(),
            next_id: 0,
        }
    }

    fn add(&mut self, request: &InferRequest) {
        let limits = self.limits;
        let len = request.prompt_ids.len();
        let num_live = self.live.len();
        let result = self.scheduler.add(self.next_id, request);
        let (max_len, num_slots) = match request.max_tokens {
            0 => (len, len),
            n => ((len + n).min(limits.max_model_len), (len + n).min(limits.max_model_len) - 1),
        };
        let max_live = limits.max_num_seqs + limits.max_queue;
        let fits = len + request.max_tokens.min(1) <= limits.max_model_len
            && num_slots <= limits.num_blocks * limits.block_size
            && request.n <= max_live;
        match result {
            Ok(()) => {
                assert!(fits && num_live + request.n <= max_live);
                for sample in 0..request.n {
                    let expected = Expected {
                        prompt: request.prompt_ids.clone(),
                        max_len,
                        seed: request.sampling.seed + sample as u64,
                        scored: request.prompt_logprobs.filter(|_| sample == 0).map(|_| vec![]),
                    };
                    self.live.insert((self.next_id, sample), expected);
                }
            }
            Err(InferError::Request(_)) => assert!(!fits),
            Err(InferError::Busy { .. }) => assert!(fits && num_live + request.n > max_live),
            Err(other) => panic!("{other}"),
        }
        self.next_id += 1;
    }

    fn abort(&mut self, nth: usize) {
        let ids: BTreeSet<_> = self.live.keys().map(|(id, _)| *id).collect();
        let Some(id) = ids.into_iter().nth(nth) else { return };
        assert!(self.scheduler.remove(id).unwrap());
        self.live.retain(|(live, _), _| *live != id);
        self.check();
    }

    fn step(&mut self) {
        let chunks = self.scheduler.schedule().unwrap();
        self.scheduler.check_step(&chunks).unwrap();
        assert!(!chunks.is_empty() || self.live.is_empty(), "work, but an empty step");
        for chunk in &chunks {
            self.write(*chunk);
        }
        // Only now, as attention reads: a block that two write would show.
        for chunk in &chunks {
            self.read(*chunk);
        }
        let mut ended = Vec::new();
        for chunk in chunks {
            self.scheduler.advance(chunk);
            let sequence = &self.scheduler.running()[chunk.index];
            let name = (sequence.id, sequence.sample);
            let is_end = chunk.is_last
                && (sequence.is_score_only() || {
                    let token = next_token(&sequence.token_ids, sequence.sampling.seed);
                    self.scheduler.push_token(chunk.index, token).is_some()
                });
            if is_end {
                ended.push(name);
            }
        }
        for (id, sample) in ended {
            self.end(id, sample);
        }
        self.check();
    }

    /// What a forward does with a chunk: K and V, then the scores of its rows.
    fn write(&mut self, chunk: Chunk) {
        let sequence = &self.scheduler.running()[chunk.index];
        let start = sequence.num_computed_tokens;
        for position in start..start + chunk.num_tokens {
            let slot = sequence.block_table.slot(position).unwrap();
            self.slots.insert(slot, sequence.token_ids[..=position].to_vec());
        }
        let rows = sequence.scored_rows(chunk.num_tokens);
        assert_eq!(rows.len(), chunk.num_scored_rows);
        let expected = self.live.get_mut(&(sequence.id, sequence.sample)).unwrap();
        if let Some(scored) = &mut expected.scored {
            scored.extend(rows.map(|row| sequence.token_ids[row + 1]));
        } else {
            assert!(rows.is_empty());
        }
    }

    /// What a forward relies on: every slot up to the chunk's end holds the
    /// sequence's own text.
    fn read(&self, chunk: Chunk) {
        let sequence = &self.scheduler.running()[chunk.index];
        for position in 0..sequence.num_computed_tokens + chunk.num_tokens {
            let slot = sequence.block_table.slot(position).unwrap();
            let found = self.slots.get(&slot).map(Vec::as_slice);
            assert_eq!(found, Some(&sequence.token_ids[..=position]), "slot {slot}");
        }
    }

    fn end(&mut self, id: SequenceId, sample: usize) {
        let mut running = self.scheduler.running().iter();
        let sequence = running.find(|s| (s.id, s.sample) == (id, sample)).unwrap();
        let expected = self.live.remove(&(id, sample)).unwrap();
        assert_eq!(sequence.token_ids, expected.tokens(expected.max_len));
        if let Some(scored) = expected.scored {
            assert_eq!(scored, expected.prompt[1..], "each position once, in order");
        }
        assert!(self.scheduler.remove_sample(id, sample).unwrap());
    }

    /// What holds between steps, by sets and sums alone.
    fn check(&self) {
        let scheduler = &self.scheduler;
        scheduler.check_integrity().unwrap();
        let names: Vec<_> = scheduler
            .running()
            .iter()
            .chain(scheduler.waiting())
            .map(|sequence| (sequence.id, sequence.sample))
            .collect();
        assert!(names.iter().eq(self.live.keys()), "first come, first served: {names:?}");
        let mut held = BTreeMap::<_, u32>::new();
        for sequence in scheduler.running() {
            let expected = &self.live[&(sequence.id, sequence.sample)];
            assert_eq!(sequence.token_ids, expected.tokens(sequence.token_ids.len()));
            for block in sequence.block_table.blocks() {
                *held.entry(*block).or_default() += 1;
            }
        }
        let blocks = scheduler.blocks();
        assert_eq!(blocks.num_free() + held.len(), self.limits.num_blocks);
        assert!(blocks.num_cached() <= blocks.num_free());
        assert!(held.iter().all(|(block, count)| blocks.ref_count(*block) == *count));
    }

    /// The oldest sequence moves by a token at least in every step, so all
    /// tokens of all live sequences, computed again once per eviction by an
    /// older one, bound the number of steps.
    fn drain(&mut self) {
        let mut steps_left = (self.live.len() + 1) * 2 * self.limits.max_model_len;
        while self.scheduler.has_work() {
            assert!(steps_left > 0, "does not drain");
            steps_left -= 1;
            self.step();
        }
        assert!(self.live.is_empty());
        assert_eq!(self.scheduler.blocks().num_free(), self.limits.num_blocks);
    }
}

fn request() -> impl Strategy<Value = InferRequest> {
    let prompt = (0_u32..3, 0_u32..3, 1_usize..48);
    let scored = prop_oneof![3 => Just(None), 1 => Just(Some(0))];
    (prompt, 0_usize..24, prop_oneof![3 => Just(1), 1 => 2_usize..5], scored, 0_u64..2).prop_map(
        |((first, step, len), max_tokens, n, prompt_logprobs, seed)| {
            // Few different texts: most requests begin as another one does.
            let ids = (0..u32::try_from(len).unwrap()).map(|i| (first + i / 9 * step) % 3);
            let is_score_only = max_tokens == 0 && prompt_logprobs.is_some();
            InferRequest {
                n: if is_score_only { 1 } else { n },
                prompt_logprobs,
                sampling: super::super::sequence::SamplingParams { seed, ..Default::default() },
                ..InferRequest::new(ids.collect(), max_tokens.max(usize::from(!is_score_only)))
            }
        },
    )
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        12 => request().prop_map(Action::Add),
        20 => Just(Action::Step),
        4 => (0_usize..6).prop_map(Action::Abort),
        1 => Just(Action::Drain),
    ]
}

fn limits() -> impl Strategy<Value = SchedulerLimits> {
    let step = (1_usize..6, 1_usize..24, 1_usize..12);
    let pool = (1_usize..14, 1_usize..9, any::<bool>());
    (step, 2_usize..48, 1_usize..8, pool).prop_map(
        |((max_num_seqs, budget, max_scored_rows), max_model_len, max_queue, pool)| {
            let (num_blocks, block_size, enable_prefix_caching) = pool;
            SchedulerLimits {
                max_num_seqs,
                max_num_batched_tokens: budget,
                max_scored_rows,
                max_model_len,
                max_queue,
                num_blocks,
                block_size,
                enable_prefix_caching,
            }
        },
    )
}

/// The hash that is used, and two that collide often and always.
fn hash() -> impl Strategy<Value = ChainHash> {
    let full: ChainHash = chain_hash;
    let two_bits: ChainHash = |parent, tokens| chain_hash(parent, tokens) & 3;
    let none: ChainHash = |_, _| 0;
    prop_oneof![2 => Just(full), 1 => Just(two_bits), 1 => Just(none)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_history_keeps_the_invariants_and_gives_every_sample_its_own_tokens(
        limits in limits(),
        hash in hash(),
        actions in proptest::collection::vec(action(), 1..80),
    ) {
        let mut machine = Machine::new(limits, hash);
        for action in actions {
            match action {
                Action::Add(request) => machine.add(&request),
                Action::Step => machine.step(),
                Action::Abort(nth) => machine.abort(nth),
                Action::Drain => machine.drain(),
            }
        }
        machine.drain();
    }
}
