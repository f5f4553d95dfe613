//! Accounting of KV blocks: ids, reference counts, which are free and what
//! they still hold. Knows no tensors and no sequences.
//!
//! A block that is freed keeps its content until it is handed out again, so
//! that a prompt that begins alike can take it back. Blocks without known
//! content go first, then those that were used longest ago; of one sequence
//! the tail goes before the head, since nobody can use it without.

use thiserror::Error;

use super::free_list::FreeList;
use super::prefix::{ChainHash, PrefixIndex};
use super::{BlockTable, SharedBlocks};

/// Index of a block in the pool.
pub type BlockId = u32;

/// Hands out the pool's blocks and takes them back.
#[derive(Debug)]
pub struct BlockManager {
    block_size: usize,
    ref_counts: Vec<u32>,
    /// Blocks with reference count zero, in the order in which they are handed out.
    free: FreeList,
    /// What full blocks hold; `None` if nothing is to be found again.
    prefixes: Option<PrefixIndex>,
    /// Free blocks whose content is known.
    num_cached: usize,
}

/// A request to the block manager that it cannot honour.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BlockError {
    /// Too few free blocks. Nothing was allocated.
    #[error("{needed} KV blocks are needed, {free} are free")]
    OutOfBlocks {
        /// Blocks asked for.
        needed: usize,
        /// Blocks there are.
        free: usize,
    },
    /// A block that is free was freed again, or shared.
    #[error("KV block {0} is used after it was freed")]
    AlreadyFree(BlockId),
    /// Counts that contradict each other.
    #[error("KV block accounting is broken: {0}")]
    Integrity(String),
}

impl BlockManager {
    /// A pool of `num_blocks` free blocks of `block_size` tokens, without prefix cache.
    #[must_use]
    pub fn new(num_blocks: usize, block_size: usize) -> Self {
        let num_blocks = u32::try_from(num_blocks).unwrap_or(u32::MAX);
        Self {
            block_size: block_size.max(1),
            ref_counts: vec![0; num_blocks as usize],
            free: FreeList::new(num_blocks),
            prefixes: None,
            num_cached: 0,
        }
    }

    /// The same pool, which finds full blocks again by their content.
    #[must_use]
    pub fn with_prefix_caching(mut self, hash: ChainHash) -> Self {
        self.prefixes = Some(PrefixIndex::new(self.ref_counts.len(), hash));
        self
    }

    /// Whether full blocks are found again.
    #[must_use]
    pub const fn has_prefix_caching(&self) -> bool {
        self.prefixes.is_some()
    }

    /// Blocks in the pool.
    #[must_use]
    pub const fn num_blocks(&self) -> usize {
        self.ref_counts.len()
    }

    /// Blocks that nobody holds, those with known content included.
    #[must_use]
    pub const fn num_free(&self) -> usize {
        self.free.len()
    }

    /// Blocks that nobody holds and whose content a prompt could use.
    #[must_use]
    pub const fn num_cached(&self) -> usize {
        self.num_cached
    }

    /// Tokens in a block.
    #[must_use]
    pub const fn block_size(&self) -> usize {
        self.block_size
    }

    /// Blocks that `num_tokens` tokens take.
    #[must_use]
    pub const fn blocks_for(&self, num_tokens: usize) -> usize {
        num_tokens.div_ceil(self.block_size)
    }

    /// Holders of a block; zero for one that is free or does not exist.
    #[must_use]
    pub fn ref_count(&self, block: BlockId) -> u32 {
        self.ref_counts.get(block as usize).copied().unwrap_or(0)
    }

    /// Whether `table` can be made to hold `num_tokens` tokens in all.
    #[must_use]
    pub fn can_append(&self, table: &BlockTable, num_tokens: usize) -> bool {
        self.missing(table, num_tokens) <= self.num_free()
    }

    /// Gives `table` the blocks it lacks to hold `num_tokens` tokens in all:
    /// every one of them, or none.
    ///
    /// # Errors
    /// [`BlockError::OutOfBlocks`]; the table is then as before.
    pub fn append(&mut self, table: &mut BlockTable, num_tokens: usize) -> Result<(), BlockError> {
        let needed = self.missing(table, num_tokens);
        let free = self.num_free();
        if needed > free {
            return Err(BlockError::OutOfBlocks { needed, free });
        }
        for _ in 0..needed {
            let Some(block) = self.free.pop_front() else {
                return Err(BlockError::Integrity(
                    "the free list is shorter than its length".into(),
                ));
            };
            if self.prefixes.as_mut().is_some_and(|prefixes| prefixes.remove(block)) {
                self.num_cached -= 1;
            }
            self.ref_counts[block as usize] = 1;
            table.push(block);
        }
        Ok(())
    }

    /// The longest run of known blocks that holds the beginning of `tokens`,
    /// at most `max_tokens` of them.
    #[must_use]
    pub fn find_cached(&self, tokens: &[u32], max_tokens: usize) -> SharedBlocks {
        let mut found = SharedBlocks::default();
        let Some(prefixes) = &self.prefixes else { return found };
        let tokens = &tokens[..tokens.len().min(max_tokens)];
        for tokens in tokens.chunks_exact(self.block_size) {
            let parent = found.prefixes.last().copied();
            let Some((block, prefix)) = prefixes.get(parent, tokens) else { break };
            found.blocks.push(block);
            found.prefixes.push(prefix);
        }
        found
    }

    /// Whether an empty table can take `shared` and be made to hold
    /// `num_tokens` tokens in all.
    #[must_use]
    pub fn can_begin(&self, shared: &SharedBlocks, num_tokens: usize) -> bool {
        let is_free = |block: &&BlockId| self.ref_count(**block) == 0;
        let revived = shared.blocks.iter().filter(is_free).count();
        let new = self.blocks_for(num_tokens).saturating_sub(shared.blocks.len());
        revived + new <= self.num_free()
    }

    /// Lets an empty `table` hold `shared` too. They are full: nobody writes to them.
    ///
    /// # Errors
    /// [`BlockError::AlreadyFree`] if one of them is free and its content
    /// unknown, [`BlockError::Integrity`] if the table is not empty; nothing is
    /// shared then.
    pub fn share(
        &mut self,
        table: &mut BlockTable,
        shared: &SharedBlocks,
    ) -> Result<(), BlockError> {
        if !table.blocks().is_empty() {
            return Err(BlockError::Integrity(
                "a table that holds blocks takes shared ones".into(),
            ));
        }
        let is_held = |block: BlockId| self.ref_count(block) > 0 || self.is_cached(block);
        if let Some(block) = shared.blocks.iter().find(|block| !is_held(**block)) {
            return Err(BlockError::AlreadyFree(*block));
        }
        for block in &shared.blocks {
            if self.free.remove(*block) {
                self.num_cached -= 1;
            }
            self.ref_counts[*block as usize] += 1;
            table.push(*block);
        }
        for prefix in &shared.prefixes {
            table.push_prefix(*prefix);
        }
        Ok(())
    }

    /// Notes that K and V of the first `num_computed` of `tokens` are in the
    /// blocks of `table`: those that became full can be found from now on.
    pub fn note_computed(&mut self, table: &mut BlockTable, tokens: &[u32], num_computed: usize) {
        let Some(prefixes) = &mut self.prefixes else { return };
        let num_full = num_computed.min(tokens.len()) / self.block_size;
        while table.num_hashed() < num_full.min(table.blocks().len()) {
            let nth = table.num_hashed();
            let tokens = &tokens[nth * self.block_size..(nth + 1) * self.block_size];
            let block = table.blocks()[nth];
            let (prefix, displaced) = prefixes.insert(block, table.last_prefix(), tokens);
            table.push_prefix(prefix);
            if displaced.is_some_and(|block| self.free.contains(block)) {
                self.num_cached -= 1;
            }
        }
    }

    /// Takes all blocks of `table` back, the last one first, so that the head
    /// of a sequence stays untouched longest.
    ///
    /// # Errors
    /// [`BlockError::AlreadyFree`] for a block that is free already; a debug
    /// build panics, since its caller's bookkeeping is wrong.
    pub fn free(&mut self, table: &mut BlockTable) -> Result<(), BlockError> {
        let mut result = Ok(());
        for block in table.take().into_iter().rev() {
            match self.ref_counts.get_mut(block as usize) {
                Some(count) if *count > 0 => {
                    *count -= 1;
                    if *count == 0 {
                        self.list_as_free(block);
                    }
                }
                _ => {
                    debug_assert!(false, "KV block {block} is freed twice");
                    result = Err(BlockError::AlreadyFree(block));
                }
            }
        }
        result
    }

    /// Checks that every block is either free, once, or referenced exactly as
    /// often as the live `tables` say, and that cached content is found where
    /// it is.
    ///
    /// # Errors
    /// [`BlockError::Integrity`] names the first block that disagrees.
    pub fn check_integrity<'a>(
        &self,
        tables: impl IntoIterator<Item = &'a BlockTable>,
    ) -> Result<(), BlockError> {
        let broken = |message: String| Err(BlockError::Integrity(message));
        let mut held = vec![0_u32; self.ref_counts.len()];
        for block in tables.into_iter().flat_map(BlockTable::blocks) {
            match held.get_mut(*block as usize) {
                Some(count) => *count += 1,
                None => return broken(format!("block {block} is unknown")),
            }
        }
        let mut listed = vec![0_u32; self.ref_counts.len()];
        for block in self.free.iter() {
            listed[block as usize] += 1;
        }
        for (block, count) in self.ref_counts.iter().enumerate() {
            let free = u32::from(*count == 0);
            if held[block] != *count || listed[block] != free {
                return broken(format!(
                    "block {block} has reference count {count}, is in {} tables and {} times in \
                     the free list",
                    held[block], listed[block]
                ));
            }
        }
        let num_cached = self.free.iter().filter(|block| self.is_cached(*block)).count();
        if num_cached != self.num_cached {
            return broken(format!("{num_cached} free blocks are cached, not {}", self.num_cached));
        }
        self.prefixes.as_ref().map_or(Ok(()), |p| p.check_integrity().or_else(broken))
    }

    fn list_as_free(&mut self, block: BlockId) {
        if self.is_cached(block) {
            self.num_cached += 1;
            self.free.push_back(block);
        } else {
            self.free.push_front(block);
        }
    }

    /// Whether the content of `block` is known, free or not.
    fn is_cached(&self, block: BlockId) -> bool {
        self.prefixes.as_ref().is_some_and(|prefixes| prefixes.contains(block))
    }

    fn missing(&self, table: &BlockTable, num_tokens: usize) -> usize {
        self.blocks_for(num_tokens).saturating_sub(table.blocks().len())
    }
}

#[cfg(test)]
mod tests {
    use super::super::prefix::chain_hash;
    use super::*;

    fn pool() -> (BlockManager, BlockTable) {
        (BlockManager::new(4, 16), BlockTable::new(16))
    }

    /// A pool of four blocks of two tokens that finds them again.
    fn caching() -> BlockManager {
        BlockManager::new(4, 2).with_prefix_caching(chain_hash)
    }

    /// A table that holds all of `tokens`, computed.
    fn computed(pool: &mut BlockManager, tokens: &[u32]) -> BlockTable {
        let mut table = BlockTable::new(pool.block_size());
        pool.append(&mut table, tokens.len()).unwrap();
        pool.note_computed(&mut table, tokens, tokens.len());
        table
    }

    #[test]
    fn append_is_all_or_nothing() {
        let (mut pool, mut table) = pool();
        pool.append(&mut table, 33).unwrap();
        assert_eq!((table.blocks().len(), pool.num_free()), (3, 1));
        let error = pool.append(&mut table, 81).unwrap_err();
        assert_eq!(error, BlockError::OutOfBlocks { needed: 3, free: 1 });
        assert_eq!((table.blocks().len(), pool.num_free()), (3, 1));
        pool.check_integrity([&table]).unwrap();
    }

    #[test]
    fn a_full_block_is_not_extended_before_it_overflows() {
        let (mut pool, mut table) = pool();
        pool.append(&mut table, 16).unwrap();
        pool.append(&mut table, 16).unwrap();
        assert_eq!(table.blocks().len(), 1);
        pool.append(&mut table, 17).unwrap();
        assert_eq!(table.blocks().len(), 2);
    }

    #[test]
    fn shared_blocks_are_free_only_after_their_last_holder() {
        let (mut pool, mut first) = pool();
        pool.append(&mut first, 40).unwrap();
        let mut second = BlockTable::new(16);
        pool.share(&mut second, &first.head(2)).unwrap();
        pool.check_integrity([&first, &second]).unwrap();
        pool.free(&mut first).unwrap();
        assert_eq!(pool.num_free(), 2);
        pool.free(&mut second).unwrap();
        assert_eq!(pool.num_free(), 4);
        pool.check_integrity([]).unwrap();
    }

    #[test]
    fn a_free_block_of_unknown_content_cannot_be_shared() {
        let (mut pool, mut first) = pool();
        pool.append(&mut first, 16).unwrap();
        let shared = first.head(1);
        pool.free(&mut first).unwrap();
        let error = pool.share(&mut BlockTable::new(16), &shared);
        assert_eq!(error, Err(BlockError::AlreadyFree(shared.blocks()[0])));
        pool.check_integrity([]).unwrap();
    }

    #[test]
    fn a_freed_block_is_found_again_until_it_is_handed_out() {
        let mut pool = caching();
        let mut table = computed(&mut pool, &[1, 2, 3, 4, 5]);
        let blocks = table.blocks().to_vec();
        pool.free(&mut table).unwrap();
        assert_eq!((pool.num_free(), pool.num_cached()), (4, 2));
        let found = pool.find_cached(&[1, 2, 3, 4, 9], 4);
        assert_eq!(found.blocks(), &blocks[..2]);
        assert_eq!(pool.find_cached(&[1, 2, 3, 4], 3).blocks(), &blocks[..1], "whole blocks");
        let mut again = BlockTable::new(2);
        pool.share(&mut again, &found).unwrap();
        assert_eq!((pool.num_free(), pool.num_cached()), (2, 0));
        pool.check_integrity([&again]).unwrap();
        pool.free(&mut again).unwrap();
        let all = computed(&mut pool, &[7; 8]);
        assert!(pool.find_cached(&[1, 2, 3, 4], 4).blocks().is_empty());
        pool.check_integrity([&all]).unwrap();
    }

    #[test]
    fn the_tail_of_what_was_used_longest_ago_goes_first() {
        let mut pool = caching();
        let mut old = computed(&mut pool, &[1, 2, 3, 4]);
        let mut new = computed(&mut pool, &[5, 6, 7, 8]);
        pool.free(&mut old).unwrap();
        pool.free(&mut new).unwrap();
        let cached = |pool: &BlockManager, tokens| pool.find_cached(tokens, 4).blocks().len();
        let mut taken = BlockTable::new(2);
        for (blocks, left) in [(1, (1, 2)), (2, (0, 2)), (3, (0, 1)), (4, (0, 0))] {
            pool.append(&mut taken, blocks * 2).unwrap();
            assert_eq!((cached(&pool, &[1, 2, 3, 4]), cached(&pool, &[5, 6, 7, 8])), left);
            pool.check_integrity([&taken]).unwrap();
        }
    }

    #[test]
    fn blocks_of_unknown_content_are_handed_out_before_cached_ones() {
        let mut pool = caching();
        let mut table = computed(&mut pool, &[1, 2, 3]);
        pool.free(&mut table).unwrap();
        let mut other = BlockTable::new(2);
        pool.append(&mut other, 6).unwrap();
        assert_eq!(pool.find_cached(&[1, 2], 2).blocks().len(), 1);
    }

    #[test]
    fn reviving_cached_blocks_counts_as_taking_free_ones() {
        let mut pool = caching();
        let mut table = computed(&mut pool, &[1, 2, 3, 4]);
        pool.free(&mut table).unwrap();
        let found = pool.find_cached(&[1, 2, 3, 4], 4);
        assert!(pool.can_begin(&found, 8));
        assert!(!pool.can_begin(&found, 9));
        let held = computed(&mut pool, &[9]);
        assert!(pool.can_begin(&found, 6) && !pool.can_begin(&found, 7));
        pool.check_integrity([&held]).unwrap();
    }

    #[test]
    fn a_cached_block_that_a_collision_displaces_is_counted_no_more() {
        let mut pool = BlockManager::new(4, 2).with_prefix_caching(|_, _| 1);
        let mut table = computed(&mut pool, &[1, 2]);
        pool.free(&mut table).unwrap();
        assert_eq!(pool.num_cached(), 1);
        let other = computed(&mut pool, &[3, 4]);
        assert_eq!(pool.num_cached(), 0);
        pool.check_integrity([&other]).unwrap();
    }

    #[test]
    #[cfg_attr(debug_assertions, should_panic(expected = "freed twice"))]
    fn freeing_twice_is_caught() {
        let (mut pool, mut table) = pool();
        pool.append(&mut table, 1).unwrap();
        let mut copy = table.clone();
        pool.free(&mut table).unwrap();
        let block = copy.blocks()[0];
        assert_eq!(pool.free(&mut copy), Err(BlockError::AlreadyFree(block)));
    }

    #[test]
    fn a_leaked_table_fails_the_integrity_check() {
        let (mut pool, mut table) = pool();
        pool.append(&mut table, 20).unwrap();
        assert!(pool.check_integrity([]).unwrap_err().to_string().contains("block 0"));
    }
}
