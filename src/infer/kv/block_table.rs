//! Which blocks hold a sequence's K and V, and where in the pool a position
//! lies. Only the block manager adds or takes blocks.

use super::BlockId;

/// The blocks of one sequence, in the order of its tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockTable {
    blocks: Vec<BlockId>,
    block_size: usize,
}

impl BlockTable {
    /// A table without blocks, for blocks of `block_size` tokens.
    #[must_use]
    pub const fn new(block_size: usize) -> Self {
        Self { blocks: Vec::new(), block_size }
    }

    /// Block ids, first token first.
    #[must_use]
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Tokens that the blocks have room for.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.blocks.len() * self.block_size
    }

    /// `block_id * block_size + offset` of a position; `None` past the last block.
    #[must_use]
    pub fn slot(&self, position: usize) -> Option<usize> {
        let block = *self.blocks.get(position / self.block_size)?;
        Some(block as usize * self.block_size + position % self.block_size)
    }

    /// Slots of `positions`, in order: the slot mapping of one sequence's share
    /// of a step. `None` if a position lies past the last block.
    #[must_use]
    pub fn slot_mapping(&self, positions: std::ops::Range<usize>) -> Option<Vec<usize>> {
        positions.map(|position| self.slot(position)).collect()
    }

    pub(super) fn extend(&mut self, blocks: impl IntoIterator<Item = BlockId>) {
        self.blocks.extend(blocks);
    }

    pub(super) fn take(&mut self) -> Vec<BlockId> {
        std::mem::take(&mut self.blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_follow_the_blocks_not_each_other() {
        let mut table = BlockTable::new(4);
        table.extend([7, 2]);
        assert_eq!(table.slot_mapping(2..6), Some(vec![30, 31, 8, 9]));
        assert_eq!(table.slot(8), None);
        assert_eq!(table.capacity(), 8);
    }
}
