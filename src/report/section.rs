//! What a report says after its experiments: headings over tables, in the order
//! in which every format has them.

use super::table::Table;
use super::{cold_start, comparison, gates, inside, kv_capacity, kv_table, load_table, resources};
use crate::record::RunData;
use crate::stats::Summary;

/// A heading over tables; there is at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// What it is about.
    pub topic: Topic,
    /// Its tables.
    pub tables: Vec<Table>,
}

/// What a section is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    /// What was required, and whether it was shown.
    Requirements,
    /// Engines compared over rounds.
    Comparison,
    /// Sweeps over rates.
    Capacity,
    /// What the KV memory of each engine holds.
    KvSizing,
    /// Sweeps over KV settings.
    KvPool,
    /// Cold starts by phase.
    ColdStarts,
    /// The embedded engine over HTTP against itself.
    HttpCost,
    /// What engines in this process told of themselves.
    Inside,
    /// What was used while cases were measured.
    Resources,
}

impl Topic {
    /// Its heading, lower case.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Requirements => "requirements",
            Self::Comparison => "comparison",
            Self::Capacity => "capacity",
            Self::KvSizing => "KV sizing",
            Self::KvPool => "KV pool",
            Self::ColdStarts => "cold starts",
            Self::HttpCost => "the cost of HTTP",
            Self::Inside => "inside the engine",
            Self::Resources => "what was used",
        }
    }

    /// Its anchor in a page.
    #[must_use]
    pub const fn id(self) -> &'static str {
        match self {
            Self::Requirements => "requirements",
            Self::Comparison => "comparison",
            Self::Capacity => "capacity",
            Self::KvSizing => "kv-sizing",
            Self::KvPool => "kv-sweep",
            Self::ColdStarts => "cold-starts",
            Self::HttpCost => "http-cost",
            Self::Inside => "inside",
            Self::Resources => "resources",
        }
    }
}

/// The sections of a run that have something to say.
#[must_use]
pub fn sections(run: &RunData, summary: &Summary) -> Vec<Section> {
    let all = [
        (Topic::Requirements, gates::tables(run, &summary.gates)),
        (Topic::Comparison, comparison::tables_of(summary)),
        (Topic::Capacity, load_table::capacity_tables(&summary.capacity)),
        (Topic::KvSizing, Vec::from_iter(kv_capacity::table(&summary.kv_capacity))),
        (Topic::KvPool, kv_table::tables(&summary.kv_sweep)),
        (Topic::ColdStarts, cold_start::tables(&summary.cold_starts)),
        (Topic::HttpCost, super::http_cost::tables(&summary.http_cost)),
        (Topic::Inside, inside::tables(&summary.inside)),
        (Topic::Resources, resources::tables(summary.resources.as_ref())),
    ];
    let said = all.into_iter().filter(|(_, tables)| !tables.is_empty());
    said.map(|(topic, tables)| Section { topic, tables }).collect()
}
