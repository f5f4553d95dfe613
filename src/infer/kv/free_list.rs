//! Free blocks in the order in which they are handed out: a ring threaded
//! through an array by block id, so that any block leaves it in constant time.
//! Knows neither reference counts nor what a block holds.

use super::BlockId;

/// Block ids, each at most once.
#[derive(Debug)]
pub(super) struct FreeList {
    /// Neighbours of each block; the last entry is the ring's head. A block
    /// that is not listed is its own neighbour.
    links: Vec<Link>,
    len: usize,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    prev: BlockId,
    next: BlockId,
}

impl FreeList {
    /// All of `0..num_blocks`, the lowest first.
    pub(super) fn new(num_blocks: BlockId) -> Self {
        let links = (0..=num_blocks).map(|id| Link { prev: id, next: id }).collect();
        let mut list = Self { links, len: 0 };
        for block in 0..num_blocks {
            list.push_back(block);
        }
        list
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) fn contains(&self, block: BlockId) -> bool {
        block != self.head() && self.links.get(block as usize).is_some_and(|l| l.next != block)
    }

    /// Lists `block` to be handed out next, unless it is listed.
    pub(super) fn push_front(&mut self, block: BlockId) {
        let head = self.head();
        self.insert(block, head, self.links[head as usize].next);
    }

    /// Lists `block` to be handed out last, unless it is listed.
    pub(super) fn push_back(&mut self, block: BlockId) {
        let head = self.head();
        self.insert(block, self.links[head as usize].prev, head);
    }

    pub(super) fn pop_front(&mut self) -> Option<BlockId> {
        let first = self.links[self.head() as usize].next;
        self.remove(first).then_some(first)
    }

    /// Unlists `block`; false if it was not listed.
    pub(super) fn remove(&mut self, block: BlockId) -> bool {
        if !self.contains(block) {
            return false;
        }
        let Link { prev, next } = self.links[block as usize];
        self.links[prev as usize].next = next;
        self.links[next as usize].prev = prev;
        self.links[block as usize] = Link { prev: block, next: block };
        self.len -= 1;
        true
    }

    /// From the first to the last, at most as many as there are: a broken ring
    /// ends too.
    pub(super) fn iter(&self) -> impl Iterator<Item = BlockId> {
        let head = self.head();
        let next = |block: &BlockId| Some(self.links[*block as usize].next);
        let ids = std::iter::successors(next(&head), next).take_while(move |id| *id != head);
        ids.take(self.links.len())
    }

    fn insert(&mut self, block: BlockId, prev: BlockId, next: BlockId) {
        if block >= self.head() || self.contains(block) {
            return;
        }
        self.links[block as usize] = Link { prev, next };
        self.links[prev as usize].next = block;
        self.links[next as usize].prev = block;
        self.len += 1;
    }

    /// Index of the entry that is no block.
    #[expect(clippy::cast_possible_truncation, reason = "made of a u32 and one")]
    const fn head(&self) -> BlockId {
        (self.links.len() - 1) as BlockId
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_behaves_as_a_queue_from_which_anything_may_leave(
            num_blocks in 0_u32..6,
            actions in proptest::collection::vec((0_u32..4, 0_u32..7), 0..60),
        ) {
            let mut list = FreeList::new(num_blocks);
            let mut model: VecDeque<u32> = (0..num_blocks).collect();
            for (action, block) in actions {
                let listed = model.contains(&block);
                match action {
                    0 => prop_assert_eq!(list.pop_front(), model.pop_front()),
                    1 => {
                        prop_assert_eq!(list.remove(block), listed);
                        model.retain(|id| *id != block);
                    }
                    2 => {
                        list.push_front(block);
                        if !listed && block < num_blocks {
                            model.push_front(block);
                        }
                    }
                    _ => {
                        list.push_back(block);
                        if !listed && block < num_blocks {
                            model.push_back(block);
                        }
                    }
                }
                prop_assert!(list.iter().eq(model.iter().copied()));
                prop_assert_eq!(list.len(), model.len());
                prop_assert!((0..7).all(|id| list.contains(id) == model.contains(&id)));
            }
        }
    }
}
