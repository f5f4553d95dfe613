//! What a step tells the device: ids, positions, slots, block tables, work lists
//! and sampling parameters, in one array of words that is copied at once.

use super::kernels::decode_attention::num_splits;
use super::kernels::{prefill_attention, sample};
use super::{LaunchError, View};
use crate::infer::batch::Batch;

/// Words that a section starts at a multiple of: 16 bytes.
const ALIGN: usize = 4;

/// A stretch of the words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section {
    start: usize,
    len: usize,
}

impl Section {
    /// Where it lies in the buffer that the words were copied to.
    ///
    /// # Errors
    /// [`LaunchError`] when the buffer is shorter.
    pub fn view(self, buffer: View) -> Result<View, LaunchError> {
        buffer.slice(self.start, self.len)
    }
}

/// Query tokens that attend one by one, few enough for the buffer of partial results.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Items {
    /// Row of each in the batch.
    pub row: Section,
    /// Keys that each sees.
    pub kv_len: Section,
    /// Where each one's block table starts.
    pub table_start: Section,
    /// Running number of splits, one more than items.
    pub split_start: Section,
    /// How many.
    pub num_items: usize,
    /// Most splits that all may have: those that they have, or in a step that is
    /// recorded, what the buffer of partial results holds.
    pub max_splits: usize,
}

/// Sequences with several query tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefill {
    /// First row of each.
    pub query_start: Section,
    /// Rows of each.
    pub query_len: Section,
    /// Keys of each, this step's included.
    pub seq_len: Section,
    /// Where each one's block table starts.
    pub table_start: Section,
    /// Sequence and first query token of each tile.
    pub tiles: Section,
    /// How many.
    pub num_tiles: usize,
}

/// The words of a step and where is what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inputs {
    /// To be copied to the front of the device's buffer.
    pub words: Vec<i32>,
    /// Rows computed, padding included.
    pub num_rows: usize,
    /// Rows whose logits are computed, padding included.
    pub num_logit_rows: usize,
    /// Token of each row.
    pub ids: Section,
    /// Position of each row.
    pub positions: Section,
    /// Slot of each row; -1 writes nothing.
    pub slots: Section,
    /// Row of each row of logits.
    pub logit_rows: Section,
    /// How each row of logits is drawn from.
    pub params: Section,
    /// Tokens that attend one by one.
    pub items: Vec<Items>,
    /// Tokens that attend in tiles.
    pub prefill: Option<Prefill>,
    /// Block tables, one after another; the last section.
    pub block_tables: Section,
}

/// How a batch is shaped for the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shaping {
    /// Query heads that share a K/V head.
    pub group: usize,
    /// Splits that the buffer of partial results holds.
    pub max_splits: usize,
    /// Whether tokens of a prompt attend in tiles; else one by one.
    pub tiles: bool,
    /// Rows to pad a step of single tokens to; 0 pads none.
    pub bucket: usize,
}

/// One query token that attends alone.
struct Item {
    row: usize,
    kv_len: usize,
    table_start: usize,
}

impl Inputs {
    /// The words of `batch`; `params` are those of its logit rows.
    ///
    /// # Errors
    /// [`LaunchError`] for a number that is no 32-bit one, or a token whose
    /// splits alone exceed the buffer of partial results.
    pub fn new(
        batch: &Batch,
        params: &[sample::Params],
        shaping: &Shaping,
    ) -> Result<Self, LaunchError> {
        let layout = &batch.layout;
        let mut tables = Vec::new();
        let mut items = Vec::new();
        let mut tiled = Vec::new();
        for (sequence, table) in layout.block_tables.iter().enumerate() {
            let rows = layout.query_start_loc[sequence]..layout.query_start_loc[sequence + 1];
            let table_start = tables.len();
            tables.extend_from_slice(table);
            let seq_len = layout.seq_lens[sequence];
            if shaping.tiles && rows.len() > 1 {
                tiled.push((rows, seq_len, table_start));
                continue;
            }
            let first_len = seq_len - rows.len() + 1;
            let item = |(index, row)| Item { row, kv_len: first_len + index, table_start };
            items.extend(rows.enumerate().map(item));
        }
        let num_rows = batch.input_ids.len().max(shaping.bucket);
        let num_logit_rows = batch.logit_rows.len().max(shaping.bucket);
        let mut words = Words(Vec::new());
        let ids = words.push(batch.input_ids.iter().map(|id| *id as usize), num_rows)?;
        let positions = words.push(batch.positions.iter().copied(), num_rows)?;
        let slots = words.push_padded(batch.slot_mapping.iter().copied(), num_rows, -1)?;
        let logit_rows =
            words.push(batch.logit_rows.iter().map(|row| *row as usize), num_logit_rows)?;
        let params = words.params(params, num_logit_rows);
        let items = words.items(&items, shaping)?;
        let prefill =
            if tiled.is_empty() { None } else { Some(words.prefill(&tiled, shaping.group)?) };
        let num_entries = tables.len();
        let block_tables = words.push(tables.iter().map(|block| *block as usize), num_entries)?;
        Ok(Self {
            words: words.0,
            num_rows,
            num_logit_rows,
            ids,
            positions,
            slots,
            logit_rows,
            params,
            items,
            prefill,
            block_tables,
        })
    }
}

/// Words as they are laid out.
struct Words(Vec<i32>);

impl Words {
    fn push(
        &mut self,
        values: impl ExactSizeIterator<Item = usize>,
        len: usize,
    ) -> Result<Section, LaunchError> {
        self.push_padded(values, len, 0)
    }

    /// A section of `len` words: `values`, then `padding`.
    fn push_padded(
        &mut self,
        values: impl ExactSizeIterator<Item = usize>,
        len: usize,
        padding: i32,
    ) -> Result<Section, LaunchError> {
        let start = self.0.len().next_multiple_of(ALIGN);
        self.0.resize(start, 0);
        for value in values {
            let word = i32::try_from(value)
                .map_err(|_| LaunchError(format!("{value} is no 32-bit number")))?;
            self.0.push(word);
        }
        self.0.resize(start + len, padding);
        Ok(Section { start, len })
    }

    fn params(&mut self, params: &[sample::Params], num_rows: usize) -> Section {
        let start = self.0.len().next_multiple_of(ALIGN);
        self.0.resize(start, 0);
        for row in 0..num_rows {
            let row = params.get(row).unwrap_or(&sample::PADDING);
            self.0.extend(row.words());
        }
        Section { start, len: self.0.len() - start }
    }

    /// Groups of items, each within the buffer of partial results. Padding sees
    /// no key.
    fn items(&mut self, items: &[Item], shaping: &Shaping) -> Result<Vec<Items>, LaunchError> {
        let mut groups = Vec::new();
        let mut rest = items;
        // A recorded step without a sequence attends all the same.
        while !rest.is_empty() || (groups.is_empty() && shaping.bucket > 0) {
            let mut split_start = vec![0];
            let mut total = 0;
            let mut len = 0;
            for item in rest {
                let splits = num_splits(item.kv_len);
                if total + splits > shaping.max_splits {
                    break;
                }
                total += splits;
                split_start.push(total);
                len += 1;
            }
            if len == 0 && !rest.is_empty() {
                let kv_len = rest[0].kv_len;
                return Err(LaunchError(format!(
                    "{kv_len} keys are more than {} splits",
                    shaping.max_splits
                )));
            }
            let (group, after) = rest.split_at(len);
            rest = after;
            let num_items = len.max(shaping.bucket);
            split_start.resize(num_items + 1, total);
            groups.push(Items {
                row: self.push(group.iter().map(|item| item.row), num_items)?,
                kv_len: self.push(group.iter().map(|item| item.kv_len), num_items)?,
                table_start: self.push(group.iter().map(|item| item.table_start), num_items)?,
                split_start: self.push(split_start.into_iter(), num_items + 1)?,
                num_items,
                max_splits: if shaping.bucket > 0 { shaping.max_splits } else { total },
            });
        }
        Ok(groups)
    }

    fn prefill(
        &mut self,
        tiled: &[(std::ops::Range<usize>, usize, usize)],
        group: usize,
    ) -> Result<Prefill, LaunchError> {
        let len = tiled.len();
        let query_lens: Vec<_> = tiled.iter().map(|(rows, ..)| rows.len()).collect();
        let seq_lens: Vec<_> = tiled.iter().map(|(_, seq_len, _)| *seq_len).collect();
        let tiles = prefill_attention::tiles(&query_lens, &seq_lens, group);
        let num_tiles = tiles.len();
        let pairs: Vec<_> = tiles.into_iter().flatten().collect();
        Ok(Prefill {
            query_start: self.push(tiled.iter().map(|(rows, ..)| rows.start), len)?,
            query_len: self.push(query_lens.iter().copied(), len)?,
            seq_len: self.push(seq_lens.iter().copied(), len)?,
            table_start: self.push(tiled.iter().map(|(_, _, start)| *start), len)?,
            tiles: self.push(pairs.into_iter(), 2 * num_tiles)?,
            num_tiles,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::infer::batch::BatchLayout;

    const SHAPING: Shaping = Shaping { group: 3, max_splits: 4, tiles: true, bucket: 0 };

    /// A batch of sequences of these query lengths and lengths, each with a table
    /// of its own.
    fn batch(sequences: &[(usize, usize)]) -> Batch {
        let mut query_start_loc = vec![0];
        let mut positions = Vec::new();
        for (rows, len) in sequences {
            positions.extend(len - rows..*len);
            query_start_loc.push(positions.len());
        }
        let num_tokens = positions.len();
        let table = |(index, (_, len)): (usize, &(usize, usize))| {
            (0..len.div_ceil(16)).map(|block| (100 * index + block) as u32).collect()
        };
        Batch {
            input_ids: (0..num_tokens).map(|row| row as u32 + 7).collect(),
            slot_mapping: positions.iter().map(|position| position + 1000).collect(),
            positions: positions.into(),
            logit_rows: query_start_loc[1..].iter().map(|end| *end as u32 - 1).collect(),
            layout: Arc::new(BatchLayout {
                query_start_loc,
                seq_lens: sequences.iter().map(|(_, len)| *len).collect(),
                block_tables: sequences.iter().enumerate().map(table).collect(),
            }),
        }
    }

    fn words(inputs: &Inputs, section: Section) -> &[i32] {
        assert!(section.start.is_multiple_of(ALIGN), "16 bytes are loaded at once");
        &inputs.words[section.start..section.start + section.len]
    }

    #[test]
    fn single_tokens_are_items_and_prompts_are_tiles() {
        let inputs = Inputs::new(&batch(&[(1, 300), (30, 40), (1, 5)]), &[], &SHAPING).unwrap();
        assert_eq!(words(&inputs, inputs.ids)[..3], [7, 8, 9]);
        assert_eq!(words(&inputs, inputs.positions)[..3], [299, 10, 11]);
        assert_eq!(words(&inputs, inputs.logit_rows), [0, 30, 31]);
        let [items] = &inputs.items[..] else { panic!("{:?}", inputs.items) };
        assert_eq!(words(&inputs, items.row), [0, 31]);
        assert_eq!(words(&inputs, items.kv_len), [300, 5]);
        assert_eq!(words(&inputs, items.table_start), [0, 19 + 3]);
        assert_eq!(words(&inputs, items.split_start), [0, 2, 3]);
        let prefill = inputs.prefill.as_ref().unwrap();
        assert_eq!(words(&inputs, prefill.query_start), [1]);
        assert_eq!(words(&inputs, prefill.query_len), [30]);
        assert_eq!(words(&inputs, prefill.seq_len), [40]);
        assert_eq!(words(&inputs, prefill.table_start), [19]);
        assert_eq!(words(&inputs, prefill.tiles).len(), 2 * prefill.num_tiles);
        assert_eq!(words(&inputs, inputs.block_tables)[19..], [100, 101, 102, 200]);
    }

    #[test]
    fn without_tiles_each_token_of_a_prompt_sees_its_own_keys() {
        let shaping = Shaping { tiles: false, ..SHAPING };
        let inputs = Inputs::new(&batch(&[(3, 10)]), &[], &shaping).unwrap();
        assert!(inputs.prefill.is_none());
        let [items] = &inputs.items[..] else { panic!("{:?}", inputs.items) };
        assert_eq!(words(&inputs, items.kv_len), [8, 9, 10]);
        assert_eq!(words(&inputs, items.table_start), [0, 0, 0]);
    }

    #[test]
    fn items_of_more_splits_than_the_buffer_holds_go_in_groups() {
        let inputs = Inputs::new(&batch(&[(1, 600), (1, 300), (1, 256)]), &[], &SHAPING).unwrap();
        let lens: Vec<_> = inputs.items.iter().map(|items| words(&inputs, items.kv_len)).collect();
        assert_eq!(lens, [&[600][..], &[300, 256]]);
        assert_eq!(words(&inputs, inputs.items[1].split_start), [0, 2, 3]);
        assert!(Inputs::new(&batch(&[(1, 1300)]), &[], &SHAPING).is_err());
    }

    #[test]
    fn padding_writes_nothing_sees_nothing_and_draws_nothing() {
        let shaping = Shaping { bucket: 4, ..SHAPING };
        let inputs = Inputs::new(&batch(&[(1, 20)]), &[], &shaping).unwrap();
        assert_eq!((inputs.num_rows, inputs.num_logit_rows), (4, 4));
        assert_eq!(words(&inputs, inputs.slots), [1019, -1, -1, -1]);
        let [items] = &inputs.items[..] else { panic!("{:?}", inputs.items) };
        assert_eq!(words(&inputs, items.kv_len), [20, 0, 0, 0]);
        assert_eq!(words(&inputs, items.split_start), [0, 1, 1, 1, 1]);
        assert_eq!(items.max_splits, 4, "a graph is replayed with any number of them");
        let params = words(&inputs, inputs.params).as_chunks::<{ sample::PARAM_WORDS }>().0;
        assert!(params.iter().all(|row| *row == sample::PADDING.words()));
    }

    #[test]
    fn sections_lie_at_the_same_place_in_every_step_of_a_bucket() {
        let shaping = Shaping { bucket: 4, ..SHAPING };
        let few = Inputs::new(&batch(&[(1, 20)]), &[], &shaping).unwrap();
        let many = Inputs::new(&batch(&[(1, 300), (1, 9), (1, 77)]), &[], &shaping).unwrap();
        let none = Inputs::new(&batch(&[]), &[], &shaping).unwrap();
        for inputs in [many, none] {
            let tables = Section { len: few.block_tables.len, ..inputs.block_tables };
            let words = few.words.clone();
            assert_eq!(Inputs { words, block_tables: tables, ..inputs }, few);
        }
    }
}
