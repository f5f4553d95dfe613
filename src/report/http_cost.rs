//! Tables of what HTTP adds: a row a pair of cases.

use std::collections::BTreeMap;

use super::numbers::write_difference;
use super::table::{Cell, Column, Table};
use crate::stats::summary::HttpCost;

/// A table a pair of engines.
#[must_use]
pub fn tables(costs: &[HttpCost]) -> Vec<Table> {
    let mut tables: BTreeMap<(&str, &str), Table> = BTreeMap::new();
    for cost in costs {
        let table = tables.entry((&cost.over_http, &cost.in_process)).or_insert_with(|| Table {
            caption: format!(
                "{} minus {}, differences of medians",
                cost.over_http, cost.in_process
            ),
            columns: vec![
                Column::words("experiment"),
                Column::numbers("C", "", 0),
                Column::numbers("TTFT", "ms", 0),
                Column::numbers("TPOT", "ms", 0),
                Column::numbers("E2EL", "ms", 0),
                Column::words("TTFT told apart"),
            ],
            ..Table::default()
        });
        let difference = |value: Option<f64>| {
            Cell::or_absent(value.map(write_difference), "one of the two has no median")
        };
        table.rows.push(vec![
            Cell::new(cost.experiment.as_str()),
            Cell::new(cost.concurrency.to_string()),
            difference(cost.ttft_ms),
            difference(cost.tpot_ms),
            difference(cost.e2el_ms),
            Cell::new(match cost.ttft_intervals_overlap {
                Some(true) => "no, may be noise",
                Some(false) => "yes",
                None if cost.concurrency > 1 => "one burst each",
                None => "n too small",
            }),
        ]);
    }
    tables.into_values().collect()
}
