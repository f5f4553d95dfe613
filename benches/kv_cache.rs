//! Accounting of the paged KV cache, without a tensor: handing blocks out,
//! growing a table a token at a time, finding a prefix, preempting and coming
//! back. Rates are blocks or tokens a second.
#![expect(clippy::unwrap_used, reason = "a bench that cannot run must say so and stop")]

mod support;

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use yardstick::infer::kv::prefix::chain_hash;
use yardstick::infer::kv::{BlockManager, BlockTable};

const BLOCK_SIZE: usize = 16;
/// Room for eight sequences.
const NUM_BLOCKS: usize = 1024;
const TOKENS: usize = 2048;
const BLOCKS: u64 = (TOKENS / BLOCK_SIZE) as u64;

fn pool() -> BlockManager {
    BlockManager::new(NUM_BLOCKS, BLOCK_SIZE)
}

fn caching_pool() -> BlockManager {
    pool().with_prefix_caching(chain_hash)
}

/// A text of [`TOKENS`] tokens that differs from every other from its first on.
fn text(nth: u32) -> Vec<u32> {
    (0..TOKENS as u32).map(|position| nth * 10_000 + position).collect()
}

/// A table that holds all of `tokens`, computed.
fn computed(pool: &mut BlockManager, tokens: &[u32]) -> BlockTable {
    let mut table = BlockTable::new(BLOCK_SIZE);
    pool.append(&mut table, tokens.len()).unwrap();
    pool.note_computed(&mut table, tokens, tokens.len());
    table
}

/// A pool whose free blocks all hold something: every block that it hands out
/// is forgotten first.
fn full_of_content() -> BlockManager {
    let mut pool = caching_pool();
    let mut tables: Vec<_> = (0..(NUM_BLOCKS / BLOCKS as usize) as u32)
        .map(|nth| computed(&mut pool, &text(nth)))
        .collect();
    for table in &mut tables {
        pool.free(table).unwrap();
    }
    assert_eq!(pool.num_cached(), NUM_BLOCKS);
    pool
}

fn allocate(c: &mut Criterion) {
    let mut group = support::group(c, "kv_cache/allocate_and_free", 1.0);
    group.throughput(Throughput::Elements(BLOCKS));
    let mut allocate = |name: &str, mut pool: BlockManager| {
        let mut table = BlockTable::new(BLOCK_SIZE);
        group.bench_function(name, |b| {
            b.iter(|| {
                pool.append(&mut table, TOKENS).unwrap();
                pool.free(&mut table).unwrap();
            });
        });
    };
    allocate("uncached", pool());
    allocate("cached", caching_pool());
    group.bench_function("evicting", |b| {
        b.iter_batched_ref(
            full_of_content,
            |pool| pool.append(&mut BlockTable::new(BLOCK_SIZE), TOKENS).unwrap(),
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

/// What decoding asks of the pool: one slot more, [`TOKENS`] times.
fn append(c: &mut Criterion) {
    let tokens = text(0);
    let mut group = support::group(c, "kv_cache/append", 1.0);
    group.throughput(Throughput::Elements(TOKENS as u64));
    for (name, pool) in [("uncached", pool as fn() -> _), ("cached", caching_pool as fn() -> _)] {
        group.bench_function(name, |b| {
            b.iter_batched_ref(
                pool,
                |pool: &mut BlockManager| {
                    let mut table = BlockTable::new(BLOCK_SIZE);
                    for len in 1..=TOKENS {
                        assert!(pool.can_append(&table, len));
                        pool.append(&mut table, len).unwrap();
                        pool.note_computed(&mut table, &tokens, len);
                    }
                },
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

fn prefix_lookup(c: &mut Criterion) {
    let mut pool = full_of_content();
    let hit = text(3);
    let mut late_miss = hit.clone();
    late_miss[TOKENS - 1] += 1;
    let miss = text(9999);
    let mut group = support::group(c, "kv_cache/prefix_lookup", 1.0);
    group.throughput(Throughput::Elements(TOKENS as u64));
    for (name, tokens, blocks) in
        [("hit", &hit, BLOCKS), ("late_miss", &late_miss, BLOCKS - 1), ("miss", &miss, 0)]
    {
        assert_eq!(pool.find_cached(tokens, TOKENS).blocks().len() as u64, blocks);
        group.bench_function(name, |b| b.iter(|| pool.find_cached(black_box(tokens), TOKENS)));
    }
    // With the reference counts, as admission does.
    let mut table = BlockTable::new(BLOCK_SIZE);
    group.bench_function("hit_and_take", |b| {
        b.iter(|| {
            let found = pool.find_cached(black_box(&hit), TOKENS);
            pool.share(&mut table, &found).unwrap();
            pool.free(&mut table).unwrap();
        });
    });
    group.finish();
}

/// A sequence gives all of its blocks back and finds them again.
fn preempt(c: &mut Criterion) {
    let tokens = text(0);
    let mut group = support::group(c, "kv_cache/preempt_and_readmit", 1.0);
    group.throughput(Throughput::Elements(TOKENS as u64));
    for (name, mut pool) in [("uncached", pool()), ("cached", caching_pool())] {
        let mut table = computed(&mut pool, &tokens);
        group.bench_function(name, |b| {
            b.iter(|| {
                pool.free(&mut table).unwrap();
                let found = pool.find_cached(&tokens, TOKENS - 1);
                assert!(pool.can_begin(&found, TOKENS));
                pool.share(&mut table, &found).unwrap();
                pool.append(&mut table, TOKENS).unwrap();
                pool.note_computed(&mut table, &tokens, TOKENS);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, allocate, append, prefix_lookup, preempt);
criterion_main!(benches);
