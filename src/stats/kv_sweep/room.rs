//! How many sequences of a load a pool has room for at their full length: blocks
//! divided. What a scheduler does with them is no part of it.

use super::load::CaseLoad;
use crate::stats::distribution::mean;

/// Room in a pool.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Room {
    /// Blocks that a sequence holds at its end, on average, shared ones left out.
    pub(super) blocks_per_sequence: f64,
    /// Sequences that fit at their full length.
    pub(super) fits: u64,
}

/// Room for `load` in `num_blocks` blocks of `block_size` tokens, in which prompts
/// share the blocks of their common beginnings or do not; `None` without tokens.
pub(super) fn room(
    load: &CaseLoad,
    num_blocks: u64,
    block_size: u64,
    shares_prefixes: bool,
) -> Option<Room> {
    let (groups, prefix) = if shares_prefixes { load.prefixes } else { (0, 0) };
    let shared = u64::from(prefix).checked_div(block_size)?;
    let own = |(prompt, output)| {
        blocks_of(held_tokens(prompt, output), block_size).saturating_sub(shared) as f64
    };
    let blocks_per_sequence = mean(&load.lengths().map(own).collect::<Vec<_>>())?;
    let free = num_blocks.saturating_sub(u64::from(groups).saturating_mul(shared));
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a quotient of counts, not negative and below 2^53"
    )]
    let fits = (free as f64 / blocks_per_sequence.max(1.0)) as u64;
    Some(Room { blocks_per_sequence, fits })
}

/// Tokens whose K and V a sequence holds at its end: the last token that it
/// draws is never computed.
const fn held_tokens(prompt: u64, output: u64) -> u64 {
    prompt.saturating_add(output).saturating_sub(1)
}

/// Blocks for so many tokens.
pub(super) const fn blocks_of(tokens: u64, block_size: u64) -> u64 {
    if block_size == 0 { 0 } else { tokens.div_ceil(block_size) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::load::tests::closed;
    use super::*;
    use crate::infer::kv::{BlockManager, BlockTable};

    #[test]
    fn blocks_of_a_sequence_do_not_hold_its_last_token() {
        let of = |prompt, output| room(&closed(9, 9, (prompt, output)), 12, 16, true).unwrap();
        assert_eq!(of(32, 17), Room { blocks_per_sequence: 3.0, fits: 4 });
        assert_eq!(of(32, 18), Room { blocks_per_sequence: 4.0, fits: 3 });
        assert_eq!(of(300, 1).fits, 0);
        assert_eq!(room(&closed(1, 1, (1, 1)), 1, 0, true), None);
    }

    #[test]
    fn shared_beginnings_are_held_once_a_prefix() {
        let load = CaseLoad { prefixes: (2, 40), ..closed(9, 9, (50, 15)) };
        assert_eq!(room(&load, 20, 16, false).unwrap().fits, 5);
        // Two prefixes of two full blocks each, and two blocks of its own each.
        let shared = Room { blocks_per_sequence: 2.0, fits: 8 };
        assert_eq!(room(&load, 20, 16, true), Some(shared));
    }

    proptest! {
        #[test]
        fn what_fits_is_what_the_block_manager_takes(
            prompt in 1_u32..80, output in 1_u32..60, num_blocks in 1_u32..70, block_size in 1_u32..33,
        ) {
            let load = closed(1, 1, (prompt, output));
            let found = room(&load, num_blocks.into(), block_size.into(), true).unwrap();
            let mut manager = BlockManager::new(num_blocks as usize, block_size as usize);
            let held = (prompt + output - 1) as usize;
            let mut tables = Vec::new();
            loop {
                let mut table = BlockTable::new(block_size as usize);
                if !manager.can_append(&table, held) {
                    break;
                }
                manager.append(&mut table, held).unwrap();
                prop_assert!(table.capacity() - held < block_size as usize);
                tables.push(table);
            }
            prop_assert_eq!(found.fits, tables.len() as u64);
        }
    }
}
