//! The table that says what the KV memory of each engine holds, and whether the
//! loads of the run fitted into it.

use crate::stats::kv_capacity::{KvCapacity, KvPool, LoadFit};

use super::table::{Cell, Column, Table};

/// A row an engine; `None` where no engine says how large its pool is.
#[must_use]
pub fn table(capacities: &[KvCapacity]) -> Option<Table> {
    if capacities.iter().all(|capacity| capacity.pool.is_none()) {
        return None;
    }
    let mut table = Table {
        caption: "what the KV memory holds".to_owned(),
        columns: vec![
            Column::words("engine"),
            Column::numbers("pool", "tokens", 0),
            Column::words("divided into"),
            Column::numbers("context", "tokens", 0),
            Column::numbers("at once", "most", 1),
            Column::numbers("full length", "fit", 0),
            Column::numbers("load", "C", 0),
            Column::numbers("load", "tokens", 2),
            Column::numbers("load", "fit", 0),
        ],
        rows: capacities.iter().map(row).collect(),
        notes: capacities.iter().filter_map(note).collect(),
        continues: false,
    };
    table.drop_empty_columns();
    Some(table)
}

fn row(capacity: &KvCapacity) -> Vec<Cell> {
    let unsaid = "the engine does not say";
    let reason = capacity.reason.as_deref().unwrap_or(unsaid);
    let told = |value: Option<u64>, why: &str| Cell::or_absent(value.map(|v| v.to_string()), why);
    let load = capacity.tightest();
    let of_load = |of: fn(&LoadFit) -> Option<u64>, why: &str| told(load.and_then(of), why);
    let uncounted = "nobody counted the tokens of a closed load";
    vec![
        Cell::new(capacity.engine.as_str()),
        told(capacity.pool.map(KvPool::tokens), reason),
        Cell::or_absent(capacity.pool.map(divided), reason),
        told(capacity.max_model_len.map(u64::from), unsaid),
        told(capacity.max_num_seqs.map(u64::from), unsaid),
        told(capacity.full_length_fit, reason),
        of_load(|load| Some(load.concurrency.into()), uncounted),
        of_load(|load| Some(load.request_tokens), uncounted),
        of_load(|load| load.fit, if load.is_none() { uncounted } else { reason }),
    ]
}

fn divided(pool: KvPool) -> String {
    match pool {
        KvPool::Blocks { num_blocks, block_size } => format!("{num_blocks} blocks of {block_size}"),
        KvPool::Slots { num_slots, slot_tokens } => format!("{num_slots} slots of {slot_tokens}"),
    }
}

/// What does not fit, if anything: the worst load, and how many others.
fn note(capacity: &KvCapacity) -> Option<String> {
    let short = |load: &&LoadFit| load.fit.is_some_and(|fit| fit < load.concurrency.into());
    let load = capacity.tightest().filter(short)?;
    let others = match capacity.loads.iter().filter(short).count() - 1 {
        0 => String::new(),
        1 => "; another load neither".to_owned(),
        more => format!("; {more} other loads neither"),
    };
    Some(format!(
        "{}: of the {} requests of up to {} tokens that {} sends at once, {} fit at their full \
         length; the others wait, or are sent back and computed again{others}",
        capacity.engine,
        load.concurrency,
        load.request_tokens,
        load.experiment,
        load.fit.unwrap_or(0)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capacity(engine: &str, pool: Option<KvPool>) -> KvCapacity {
        let load = |concurrency, fit| LoadFit {
            experiment: "batched-warm".to_owned(),
            concurrency,
            request_tokens: 600,
            fit: pool.and(fit),
        };
        KvCapacity {
            engine: engine.to_owned(),
            pool,
            max_model_len: Some(4_096),
            max_num_seqs: pool.map(|_| 256),
            full_length_fit: pool.map(|_| 1),
            loads: vec![load(2, Some(13)), load(16, Some(13))],
            reason: pool.is_none().then(|| "it does not say".to_owned()),
        }
    }

    #[test]
    fn load_that_does_not_fit_is_told_in_a_sentence() {
        let pool = KvPool::Blocks { num_blocks: 500, block_size: 16 };
        let table = table(&[capacity("v", Some(pool)), capacity("o", None)]).unwrap();
        assert_eq!(table.rows[0][2].text, "500 blocks of 16");
        assert_eq!((table.rows[0][6].text.as_str(), table.rows[0][8].text.as_str()), ("16", "13"));
        assert_eq!(table.rows[1][1].reason.as_deref(), Some("it does not say"));
        let [note] = &table.notes[..] else { panic!("{:?}", table.notes) };
        assert!(note.starts_with("v: of the 16 requests of up to 600 tokens"), "{note}");
    }

    #[test]
    fn nothing_is_shown_where_no_pool_is_known() {
        assert_eq!(table(&[capacity("o", None)]), None);
    }
}
