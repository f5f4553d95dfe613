//! Accounting of KV blocks: ids, reference counts, the free list. Knows no
//! tensors and no sequences.

use thiserror::Error;

use super::BlockTable;

/// Index of a block in the pool.
pub type BlockId = u32;

/// Hands out the pool's blocks and takes them back.
#[derive(Debug)]
pub struct BlockManager {
    block_size: usize,
    ref_counts: Vec<u32>,
    /// Blocks with reference count zero; the last one is handed out next.
    free: Vec<BlockId>,
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
    /// A pool of `num_blocks` free blocks of `block_size` tokens.
    #[must_use]
    pub fn new(num_blocks: usize, block_size: usize) -> Self {
        let num_blocks = u32::try_from(num_blocks).unwrap_or(u32::MAX);
        Self {
            block_size: block_size.max(1),
            ref_counts: vec![0; num_blocks as usize],
            free: (0..num_blocks).rev().collect(),
        }
    }

    /// Blocks in the pool.
    #[must_use]
    pub const fn num_blocks(&self) -> usize {
        self.ref_counts.len()
    }

    /// Blocks that nobody holds.
    #[must_use]
    pub const fn num_free(&self) -> usize {
        self.free.len()
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
        self.missing(table, num_tokens) <= self.free.len()
    }

    /// Gives `table` the blocks it lacks to hold `num_tokens` tokens in all:
    /// every one of them, or none.
    ///
    /// # Errors
    /// [`BlockError::OutOfBlocks`]; the table is then as before.
    pub fn append(&mut self, table: &mut BlockTable, num_tokens: usize) -> Result<(), BlockError> {
        let needed = self.missing(table, num_tokens);
        let free = self.free.len();
        let Some(rest) = free.checked_sub(needed) else {
            return Err(BlockError::OutOfBlocks { needed, free });
        };
        let blocks = self.free.split_off(rest);
        for block in &blocks {
            self.ref_counts[*block as usize] = 1;
        }
        table.extend(blocks.into_iter().rev());
        Ok(())
    }

    /// Lets another table hold the same blocks. Shared blocks must be full:
    /// nobody may write to them.
    ///
    /// # Errors
    /// [`BlockError::AlreadyFree`] if one of them is free; nothing is shared then.
    pub fn share(&mut self, table: &BlockTable) -> Result<BlockTable, BlockError> {
        if let Some(block) = table.blocks().iter().find(|block| self.ref_count(**block) == 0) {
            return Err(BlockError::AlreadyFree(*block));
        }
        for block in table.blocks() {
            self.ref_counts[*block as usize] += 1;
        }
        Ok(table.clone())
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
                        self.free.push(block);
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
    /// often as the live `tables` say.
    ///
    /// # Errors
    /// [`BlockError::Integrity`] names the first block that disagrees.
    pub fn check_integrity<'a>(
        &self,
        tables: impl IntoIterator<Item = &'a BlockTable>,
    ) -> Result<(), BlockError> {
        let mut held = vec![0_u32; self.ref_counts.len()];
        for block in tables.into_iter().flat_map(BlockTable::blocks) {
            match held.get_mut(*block as usize) {
                Some(count) => *count += 1,
                None => return Err(BlockError::Integrity(format!("block {block} is unknown"))),
            }
        }
        let mut listed = vec![0_u32; self.ref_counts.len()];
        for block in &self.free {
            listed[*block as usize] += 1;
        }
        for (block, count) in self.ref_counts.iter().enumerate() {
            let free = u32::from(*count == 0);
            if held[block] != *count || listed[block] != free {
                return Err(BlockError::Integrity(format!(
                    "block {block} has reference count {count}, is in {} tables and {} times in \
                     the free list",
                    held[block], listed[block]
                )));
            }
        }
        Ok(())
    }

    fn missing(&self, table: &BlockTable, num_tokens: usize) -> usize {
        self.blocks_for(num_tokens).saturating_sub(table.blocks().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> (BlockManager, BlockTable) {
        (BlockManager::new(4, 16), BlockTable::new(16))
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
        pool.append(&mut first, 32).unwrap();
        let mut second = pool.share(&first).unwrap();
        pool.check_integrity([&first, &second]).unwrap();
        pool.free(&mut first).unwrap();
        assert_eq!(pool.num_free(), 2);
        pool.free(&mut second).unwrap();
        assert_eq!(pool.num_free(), 4);
        pool.check_integrity([]).unwrap();
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
