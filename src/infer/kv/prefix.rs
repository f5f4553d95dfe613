//! Which block holds which beginning of a text: a hash chain over full blocks.
//! A block is found by its parent and its own tokens; the hash only says where
//! to look. Knows neither reference counts nor which blocks are free.

use std::collections::HashMap;

use super::BlockId;

/// Hash of a block's tokens and of all tokens before them, given the hash of
/// those; 0 where there are none.
pub type ChainHash = fn(parent: u64, tokens: &[u32]) -> u64;

/// Names a beginning of a text, a whole number of blocks long. Two of them are
/// equal only if all their tokens are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// Given once: a beginning that was forgotten returns under another one,
    /// so that no block can be taken for the child of what replaced its parent.
    id: u64,
    hash: u64,
}

/// Full blocks by the text that they end.
#[derive(Debug)]
pub struct PrefixIndex {
    hash: ChainHash,
    /// What each block holds: `[num_blocks]`.
    entries: Vec<Option<Entry>>,
    by_hash: HashMap<u64, BlockId>,
    next_id: u64,
}

#[derive(Debug)]
struct Entry {
    prefix: Prefix,
    /// Id of the prefix before this block.
    parent: Option<u64>,
    tokens: Box<[u32]>,
}

impl Entry {
    fn holds(&self, parent: Option<Prefix>, tokens: &[u32]) -> bool {
        self.parent == parent.map(|parent| parent.id) && *self.tokens == *tokens
    }
}

impl PrefixIndex {
    /// An index of `num_blocks` blocks that hold nothing.
    #[must_use]
    pub fn new(num_blocks: usize, hash: ChainHash) -> Self {
        let entries = std::iter::repeat_with(|| None).take(num_blocks).collect();
        Self { hash, entries, by_hash: HashMap::new(), next_id: 0 }
    }

    /// The block that holds `tokens` after `parent`, and what the two are together.
    #[must_use]
    pub fn get(&self, parent: Option<Prefix>, tokens: &[u32]) -> Option<(BlockId, Prefix)> {
        let block = *self.by_hash.get(&self.hash_of(parent, tokens))?;
        let entry = self.entries.get(block as usize)?.as_ref()?;
        // Another text may have the same hash.
        entry.holds(parent, tokens).then_some((block, entry.prefix))
    }

    /// Notes that `block` holds `tokens` after `parent`, and names the text
    /// that ends there. If another block holds the same, that one stays and
    /// `block` is not noted. A different text with the same hash is forgotten:
    /// its block comes second.
    pub fn insert(
        &mut self,
        block: BlockId,
        parent: Option<Prefix>,
        tokens: &[u32],
    ) -> (Prefix, Option<BlockId>) {
        if let Some((_, prefix)) = self.get(parent, tokens) {
            return (prefix, None);
        }
        self.remove(block);
        let hash = self.hash_of(parent, tokens);
        let prefix = Prefix { id: self.next_id, hash };
        let Some(slot) = self.entries.get_mut(block as usize) else { return (prefix, None) };
        let parent = parent.map(|parent| parent.id);
        *slot = Some(Entry { prefix, parent, tokens: tokens.into() });
        self.next_id += 1;
        let displaced = self.by_hash.insert(hash, block);
        if let Some(displaced) = displaced {
            self.entries[displaced as usize] = None;
        }
        (prefix, displaced)
    }

    /// Forgets what `block` holds; false if it was not noted.
    pub fn remove(&mut self, block: BlockId) -> bool {
        match self.entries.get_mut(block as usize).and_then(Option::take) {
            Some(entry) => {
                self.by_hash.remove(&entry.prefix.hash);
                true
            }
            None => false,
        }
    }

    /// Whether it is known what `block` holds.
    #[must_use]
    pub fn contains(&self, block: BlockId) -> bool {
        self.entries.get(block as usize).is_some_and(Option::is_some)
    }

    /// Checks that every block that holds something is found under its hash,
    /// and nothing else is.
    ///
    /// # Errors
    /// Names the first block that is not.
    pub fn check_integrity(&self) -> Result<(), String> {
        let mut num_noted = 0;
        for (block, entry) in self.entries.iter().enumerate() {
            let Some(entry) = entry else { continue };
            num_noted += 1;
            let found = self.by_hash.get(&entry.prefix.hash).copied();
            if found.map(|found| found as usize) != Some(block) {
                return Err(format!("block {block} is cached, its hash leads to {found:?}"));
            }
        }
        if num_noted != self.by_hash.len() {
            let hashes = self.by_hash.len();
            return Err(format!("{num_noted} blocks are cached under {hashes} hashes"));
        }
        Ok(())
    }

    fn hash_of(&self, parent: Option<Prefix>, tokens: &[u32]) -> u64 {
        (self.hash)(parent.map_or(0, |parent| parent.hash), tokens)
    }
}

/// The hash that is used: multiply and fold, a token at a time. A collision
/// costs a hit, never a wrong one.
#[must_use]
pub fn chain_hash(parent: u64, tokens: &[u32]) -> u64 {
    const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |state: u64, value: u64| {
        let product = u128::from(state ^ value) * u128::from(MULTIPLIER);
        #[expect(clippy::cast_possible_truncation, reason = "both halves are folded into one")]
        let folded = (product >> 64) as u64 ^ product as u64;
        folded.wrapping_add(MULTIPLIER)
    };
    tokens.iter().fold(mix(parent, tokens.len() as u64), |state, token| {
        // A zero token must move the state too.
        mix(state.rotate_left(23), u64::from(*token) + 1)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn index(hash: ChainHash) -> PrefixIndex {
        PrefixIndex::new(8, hash)
    }

    #[test]
    fn a_block_is_found_only_after_its_own_parent() {
        let mut index = index(chain_hash);
        let (first, _) = index.insert(3, None, &[1, 2]);
        let (second, _) = index.insert(5, Some(first), &[1, 2]);
        assert_eq!(index.get(None, &[1, 2]), Some((3, first)));
        assert_eq!(index.get(Some(first), &[1, 2]), Some((5, second)));
        assert_eq!(index.get(Some(second), &[1, 2]), None);
        assert_eq!(index.get(None, &[2, 1]), None);
        index.check_integrity().unwrap();
    }

    #[test]
    fn the_first_of_two_equal_blocks_stays() {
        let mut index = index(chain_hash);
        let (first, _) = index.insert(0, None, &[7]);
        assert_eq!(index.insert(1, None, &[7]), (first, None));
        assert!(index.contains(0) && !index.contains(1));
        index.check_integrity().unwrap();
    }

    #[test]
    fn a_collision_is_a_miss_and_never_a_wrong_block() {
        let mut index = index(|_, _| 42);
        let (first, _) = index.insert(0, None, &[1]);
        assert_eq!(index.get(None, &[2]), None, "other tokens");
        assert_eq!(index.get(Some(first), &[1]), None, "another parent");
        let (_, displaced) = index.insert(1, None, &[2]);
        assert_eq!(displaced, Some(0));
        assert_eq!(index.get(None, &[1]), None);
        assert!(index.get(None, &[2]).is_some());
        index.check_integrity().unwrap();
    }

    #[test]
    fn the_child_of_a_forgotten_parent_is_not_the_child_of_its_successor() {
        let mut index = index(chain_hash);
        let (parent, _) = index.insert(0, None, &[1]);
        index.insert(1, Some(parent), &[2]);
        assert!(index.remove(0));
        let (again, _) = index.insert(0, None, &[1]);
        assert_eq!(index.get(Some(again), &[2]), None);
        let (_, displaced) = index.insert(2, Some(again), &[2]);
        assert_eq!(displaced, Some(1), "the orphan gives way");
        index.check_integrity().unwrap();
    }

    #[test]
    fn the_hash_tells_short_texts_apart() {
        let mut seen = HashSet::new();
        for a in 0..50 {
            for b in 0..50 {
                assert!(seen.insert(chain_hash(0, &[a, b])));
                assert!(seen.insert(chain_hash(chain_hash(0, &[a]), &[b])));
            }
        }
        assert_ne!(chain_hash(0, &[0]), chain_hash(0, &[0, 0]));
    }
}
