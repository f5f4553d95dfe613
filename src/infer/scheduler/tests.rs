//! Claims about single situations; what holds in all of them is the state
//! machine's business.

use super::*;

pub(super) const LIMITS: SchedulerLimits = SchedulerLimits {
    max_num_seqs: 4,
    max_num_batched_tokens: 16,
    max_scored_rows: 8,
    max_model_len: 40,
    max_queue: 6,
    num_blocks: 10,
    block_size: 4,
    enable_prefix_caching: true,
};

/// A request whose prompt no other one shares.
fn request(prompt: usize, max_tokens: usize) -> InferRequest {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(100);
    let first = NEXT.fetch_add(1, Ordering::Relaxed);
    InferRequest::new(vec![first; prompt], max_tokens)
}

fn prompt(ids: &[u32], max_tokens: usize) -> InferRequest {
    InferRequest::new(ids.to_vec(), max_tokens)
}

/// Runs one step in which every complete sequence draws token 9, and takes
/// those out that ended.
fn step(scheduler: &mut Scheduler) -> Vec<Chunk> {
    let chunks = scheduler.schedule().unwrap();
    scheduler.check_step(&chunks).unwrap();
    let mut ended = Vec::new();
    for chunk in &chunks {
        scheduler.advance(*chunk);
        let sequence = &scheduler.running()[chunk.index];
        let name = (sequence.id, sequence.sample);
        if chunk.is_last
            && (sequence.is_score_only() || scheduler.push_token(chunk.index, 9).is_some())
        {
            ended.push(name);
        }
    }
    for (id, sample) in ended {
        assert!(scheduler.remove_sample(id, sample).unwrap());
    }
    scheduler.check_integrity().unwrap();
    chunks
}

fn drain(scheduler: &mut Scheduler) {
    for _ in 0..500 {
        if !scheduler.has_work() {
            assert_eq!(scheduler.blocks().num_free(), scheduler.limits().num_blocks);
            return;
        }
        step(scheduler);
    }
    panic!("does not drain");
}

#[test]
fn a_step_mixes_decodes_with_the_chunk_of_a_prompt() {
    let mut scheduler = Scheduler::new(LIMITS);
    scheduler.add(0, &request(3, 9)).unwrap();
    step(&mut scheduler);
    scheduler.add(1, &request(20, 2)).unwrap();
    let chunk =
        |index, num_tokens, is_last| Chunk { index, num_tokens, num_scored_rows: 0, is_last };
    assert_eq!(scheduler.schedule().unwrap(), [chunk(0, 1, true), chunk(1, 15, false)]);
}

#[test]
fn the_last_one_in_is_preempted_first_and_keeps_no_blocks() {
    let mut scheduler = Scheduler::new(SchedulerLimits { num_blocks: 4, ..LIMITS });
    scheduler.add(0, &request(7, 9)).unwrap();
    scheduler.add(1, &request(8, 8)).unwrap();
    step(&mut scheduler);
    assert_eq!(scheduler.running().len(), 2);
    step(&mut scheduler);
    step(&mut scheduler);
    assert_eq!(scheduler.num_preemptions(), 1);
    let waiting = scheduler.waiting().next().unwrap();
    assert_eq!((waiting.id, waiting.num_computed_tokens), (1, 0));
    assert!(waiting.block_table.blocks().is_empty());
    assert!(waiting.token_ids.len() > 8, "what it generated is kept");
    drain(&mut scheduler);
}

#[test]
fn what_can_never_fit_is_refused_with_numbers() {
    let mut scheduler = Scheduler::new(LIMITS);
    let refused = |scheduler: &mut Scheduler, request: InferRequest| {
        scheduler.add(0, &request).unwrap_err().to_string()
    };
    let message = refused(&mut scheduler, request(40, 1));
    assert!(message.contains("40 tokens") && message.contains("39"), "{message}");
    let message = refused(&mut scheduler, InferRequest { n: 11, ..request(1, 1) });
    assert!(message.contains("n is 11") && message.contains("most 10"), "{message}");
    let mut small = Scheduler::new(SchedulerLimits { num_blocks: 2, ..LIMITS });
    let message = refused(&mut small, request(8, 2));
    assert!(message.contains("3 KV blocks") && message.contains("has 2"), "{message}");
    assert!(small.add(0, &request(8, 1)).is_ok());
    assert!(scheduler.add(1, &request(39, usize::MAX)).is_ok());
    drain(&mut scheduler);
}

#[test]
fn the_queue_is_bounded_in_samples() {
    let mut scheduler = Scheduler::new(LIMITS);
    scheduler.add(0, &InferRequest { n: 7, ..request(1, 1) }).unwrap();
    let error = scheduler.add(1, &InferRequest { n: 4, ..request(1, 1) }).unwrap_err();
    assert!(matches!(error, InferError::Busy { waiting: 3, limit: 6 }), "{error}");
    scheduler.add(1, &InferRequest { n: 3, ..request(1, 1) }).unwrap();
    let error = scheduler.add(2, &request(1, 1)).unwrap_err();
    assert!(matches!(error, InferError::Busy { waiting: 6, limit: 6 }), "{error}");
    drain(&mut scheduler);
}

#[test]
fn an_aborted_sequence_frees_its_blocks_wherever_it_is() {
    let mut scheduler = Scheduler::new(SchedulerLimits { max_num_seqs: 1, ..LIMITS });
    scheduler.add(0, &request(20, 9)).unwrap();
    scheduler.add(1, &request(5, 9)).unwrap();
    step(&mut scheduler);
    assert!(scheduler.remove(0).unwrap());
    assert!(scheduler.remove(1).unwrap());
    assert!(!scheduler.remove(1).unwrap());
    assert_eq!(scheduler.blocks().num_free(), LIMITS.num_blocks);
    assert!(!scheduler.has_work());
}

#[test]
fn a_prompt_that_begins_alike_takes_full_blocks_and_computes_the_rest() {
    let mut scheduler = Scheduler::new(LIMITS);
    let ids: Vec<u32> = (0..12).collect();
    scheduler.add(0, &prompt(&ids, 1)).unwrap();
    drain(&mut scheduler);
    assert_eq!(scheduler.blocks().num_cached(), 3);
    scheduler.add(1, &prompt(&ids, 5)).unwrap();
    let chunks = step(&mut scheduler);
    assert_eq!(chunks[0].num_tokens, 4, "a full hit computes the last block again");
    assert_eq!(scheduler.running()[0].num_cached_tokens, Some(8));
    assert_eq!((scheduler.prefix_query_tokens(), scheduler.prefix_hit_tokens()), (24, 8));
    let other: Vec<u32> = (0..6).chain(50..56).collect();
    scheduler.add(2, &prompt(&other, 1)).unwrap();
    let chunks = step(&mut scheduler);
    assert_eq!(chunks[1].num_tokens, 8, "only whole blocks are shared");
    drain(&mut scheduler);
}

#[test]
fn generated_tokens_are_found_by_the_next_turn() {
    let mut scheduler = Scheduler::new(LIMITS);
    scheduler.add(0, &prompt(&[1, 2, 3], 6)).unwrap();
    drain(&mut scheduler);
    // Nine tokens, of which the last was never fed back.
    let next = [1, 2, 3, 9, 9, 9, 9, 9, 9, 5];
    scheduler.add(1, &prompt(&next, 1)).unwrap();
    assert_eq!(step(&mut scheduler)[0].num_tokens, 2);
    drain(&mut scheduler);
}

#[test]
fn a_block_is_shared_only_once_it_is_computed() {
    let limits = SchedulerLimits { max_num_batched_tokens: 6, ..LIMITS };
    let mut scheduler = Scheduler::new(limits);
    let ids: Vec<u32> = (0..9).collect();
    scheduler.add(0, &prompt(&ids, 4)).unwrap();
    assert_eq!(step(&mut scheduler)[0].num_tokens, 6);
    scheduler.add(1, &prompt(&ids, 4)).unwrap();
    step(&mut scheduler);
    let shared = &scheduler.running()[1];
    assert_eq!(shared.num_cached_tokens, Some(4), "the second block was in this very step");
    drain(&mut scheduler);
}

#[test]
fn a_preempted_sequence_finds_its_own_blocks_again() {
    let mut scheduler = Scheduler::new(SchedulerLimits { num_blocks: 6, ..LIMITS });
    scheduler.add(0, &request(8, 3)).unwrap();
    scheduler.add(1, &request(9, 6)).unwrap();
    step(&mut scheduler);
    step(&mut scheduler);
    // Room is taken from outside: what a longer neighbour would do.
    let before = scheduler.running()[1].num_computed_tokens;
    scheduler.preempt_last().unwrap();
    scheduler.check_integrity().unwrap();
    let chunks = scheduler.schedule().unwrap();
    assert_eq!(scheduler.running()[1].num_computed_tokens, before / 4 * 4);
    assert_eq!(chunks[1].num_tokens, before % 4 + 1);
    assert_eq!(scheduler.prefix_query_tokens(), 17, "counted when first admitted");
    for id in 0..2 {
        scheduler.remove(id).unwrap();
    }
    scheduler.check_integrity().unwrap();
    assert_eq!(scheduler.blocks().num_free(), 6);
}

#[test]
fn without_prefix_caching_nothing_is_found() {
    let limits = SchedulerLimits { enable_prefix_caching: false, ..LIMITS };
    let mut scheduler = Scheduler::new(limits);
    let ids: Vec<u32> = (0..12).collect();
    for id in 0..2 {
        scheduler.add(id, &prompt(&ids, 1)).unwrap();
        assert_eq!(step(&mut scheduler)[0].num_tokens, 12);
    }
    assert_eq!(scheduler.blocks().num_cached(), 0);
    assert_eq!((scheduler.prefix_query_tokens(), scheduler.prefix_hit_tokens()), (0, 0));
}

#[test]
fn samples_share_the_prompts_full_blocks_and_compute_its_tail() {
    for enable_prefix_caching in [false, true] {
        let mut scheduler = Scheduler::new(SchedulerLimits { enable_prefix_caching, ..LIMITS });
        scheduler.add(0, &InferRequest { n: 3, ..request(10, 4) }).unwrap();
        let chunks = step(&mut scheduler);
        assert_eq!(chunks.len(), 1, "siblings wait for the prompt");
        let chunks = step(&mut scheduler);
        let lens: Vec<_> = chunks.iter().map(|chunk| chunk.num_tokens).collect();
        assert_eq!(lens, [1, 2, 2]);
        let tables: Vec<_> =
            scheduler.running().iter().map(|s| s.block_table.blocks().to_vec()).collect();
        assert!(tables.iter().all(|table| table[..2] == tables[0][..2]));
        assert_eq!(scheduler.blocks().ref_count(tables[0][0]), 3);
        assert_eq!(LIMITS.num_blocks - scheduler.blocks().num_free(), 5);
        let seeds: Vec<_> = scheduler.running().iter().map(|s| s.sampling.seed).collect();
        assert_eq!(seeds, [0, 1, 2]);
        assert_eq!(scheduler.running()[1].num_cached_tokens, Some(0), "shared, not cached");
        drain(&mut scheduler);
    }
}

#[test]
fn samples_whose_sibling_is_gone_compute_the_prompt_themselves() {
    for (enable_prefix_caching, num_tokens) in [(false, 10), (true, 2)] {
        let limits = SchedulerLimits { enable_prefix_caching, max_num_seqs: 1, ..LIMITS };
        let mut scheduler = Scheduler::new(limits);
        scheduler.add(0, &InferRequest { n: 2, ..request(10, 1) }).unwrap();
        step(&mut scheduler);
        assert_eq!(step(&mut scheduler)[0].num_tokens, num_tokens);
        assert!(!scheduler.has_work());
    }
}

#[test]
fn a_preempted_sample_hurts_no_sibling() {
    for enable_prefix_caching in [false, true] {
        let limits = SchedulerLimits { num_blocks: 5, enable_prefix_caching, ..LIMITS };
        let mut scheduler = Scheduler::new(limits);
        scheduler.add(0, &InferRequest { n: 3, ..request(9, 8) }).unwrap();
        drain(&mut scheduler);
        assert!(scheduler.num_preemptions() > 0, "nothing was preempted");
    }
}

#[test]
fn an_abort_ends_all_samples() {
    let mut scheduler = Scheduler::new(SchedulerLimits { max_num_seqs: 2, ..LIMITS });
    scheduler.add(0, &InferRequest { n: 4, ..request(9, 8) }).unwrap();
    scheduler.add(1, &request(3, 2)).unwrap();
    step(&mut scheduler);
    step(&mut scheduler);
    assert!(scheduler.remove(0).unwrap());
    assert_eq!(scheduler.running().len() + scheduler.waiting().len(), 1);
    drain(&mut scheduler);
}

#[test]
fn scored_rows_are_bounded_and_no_prefix_is_taken_before_they_are_scored() {
    let mut scheduler = Scheduler::new(LIMITS);
    let ids: Vec<u32> = (0..16).collect();
    scheduler.add(0, &prompt(&ids, 1)).unwrap();
    drain(&mut scheduler);
    let scored = InferRequest { prompt_logprobs: Some(2), max_tokens: 0, ..prompt(&ids, 0) };
    scheduler.add(1, &scored).unwrap();
    scheduler.add(2, &scored).unwrap();
    let rows = |chunks: Vec<Chunk>| -> Vec<_> {
        chunks.iter().map(|c| (c.num_tokens, c.num_scored_rows, c.is_last)).collect()
    };
    assert_eq!(rows(step(&mut scheduler)), [(8, 8, false)], "the other waits for rows");
    assert_eq!(rows(step(&mut scheduler)), [(8, 7, true), (1, 1, false)]);
    assert_eq!(rows(step(&mut scheduler)), [(8, 8, false)]);
    assert_eq!(rows(step(&mut scheduler)), [(7, 6, true)]);
    assert!(!scheduler.has_work());
    assert_eq!(scheduler.prefix_query_tokens(), 16);
}

#[test]
fn a_scored_prompt_may_be_as_long_as_the_model_allows() {
    let mut scheduler = Scheduler::new(LIMITS);
    let scored = |len| InferRequest { prompt_logprobs: Some(0), ..request(len, 0) };
    let message = scheduler.add(0, &scored(41)).unwrap_err().to_string();
    assert!(message.contains("41 tokens") && message.contains("is 40"), "{message}");
    scheduler.add(0, &scored(40)).unwrap();
    drain(&mut scheduler);
}
