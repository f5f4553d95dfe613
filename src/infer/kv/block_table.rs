//! Which blocks hold a sequence's K and V, and where in the pool a position
//! lies. Only the block manager adds or takes blocks.

use std::ops::Range;

use super::BlockId;
use super::prefix::Prefix;

/// The blocks of one sequence, in the order of its tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockTable {
    blocks: Vec<BlockId>,
    /// What ends with each of the first blocks: those that the prefix cache knows.
    prefixes: Vec<Prefix>,
    block_size: usize,
}

/// Full blocks that hold the beginning of a text and belong to others, or to
/// nobody any more. Nothing is counted until a table takes them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SharedBlocks {
    pub(super) blocks: Vec<BlockId>,
    pub(super) prefixes: Vec<Prefix>,
}

impl SharedBlocks {
    /// Block ids, first token first.
    #[must_use]
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }
}

impl BlockTable {
    /// A table without blocks, for blocks of `block_size` tokens.
    #[must_use]
    pub const fn new(block_size: usize) -> Self {
        Self { blocks: Vec::new(), prefixes: Vec::new(), block_size }
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
    pub fn slot_mapping(
        &self,
        positions: Range<usize>,
    ) -> Option<impl ExactSizeIterator<Item = usize>> {
        let has_room = positions.is_empty() || positions.end <= self.capacity();
        let slot = |position: usize| {
            let block = self.blocks[position / self.block_size];
            block as usize * self.block_size + position % self.block_size
        };
        has_room.then(|| positions.map(slot))
    }

    /// The first `num_blocks` blocks, for another table to share. They must be
    /// full and computed.
    #[must_use]
    pub fn head(&self, num_blocks: usize) -> SharedBlocks {
        SharedBlocks {
            blocks: self.blocks[..num_blocks.min(self.blocks.len())].to_vec(),
            prefixes: self.prefixes[..num_blocks.min(self.prefixes.len())].to_vec(),
        }
    }

    /// Blocks at the front that the prefix cache knows.
    pub(super) const fn num_hashed(&self) -> usize {
        self.prefixes.len()
    }

    /// What ends with the last block that the prefix cache knows.
    pub(super) fn last_prefix(&self) -> Option<Prefix> {
        self.prefixes.last().copied()
    }

    pub(super) fn push(&mut self, block: BlockId) {
        self.blocks.push(block);
    }

    pub(super) fn push_prefix(&mut self, prefix: Prefix) {
        self.prefixes.push(prefix);
    }

    pub(super) fn take(&mut self) -> Vec<BlockId> {
        self.prefixes.clear();
        std::mem::take(&mut self.blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_follow_the_blocks_not_each_other() {
        let mut table = BlockTable::new(4);
        table.push(7);
        table.push(2);
        let slots: Vec<_> = table.slot_mapping(2..6).unwrap().collect();
        assert_eq!(slots, [30, 31, 8, 9]);
        assert_eq!(table.slot(5), Some(9));
        assert_eq!(table.slot(8), None);
        assert!(table.slot_mapping(7..9).is_none());
        assert_eq!(table.capacity(), 8);
    }
}
