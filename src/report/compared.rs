//! What `yardstick compare` says: comparisons, gates, what was not compared and
//! what to doubt; the shape of its JSON, and its sheet for people.

use std::fmt::{self, Write};

use serde::Serialize;

use crate::record::SCHEMA_VERSION;
use crate::stats::compare::Verdict;
use crate::stats::compare::cells::Compared;
use crate::stats::compare::gate::GateResult;
use crate::stats::compare::verdict::percent;

use super::comparison::{sentence, tables};
use super::table::Table;
use super::{markdown, terminal};

/// One of the directories.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RunLabel {
    /// As it was given.
    pub run: String,
    /// Name in its manifest.
    pub name: String,
    /// When it was measured.
    pub started_at: String,
}

/// Everything that a comparison of runs found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ComparedRuns {
    /// Schema of the run files.
    pub schema_version: u32,
    /// What is compared with.
    pub base: RunLabel,
    /// What is compared; absent where the engines of one run are.
    pub candidate: Option<RunLabel>,
    /// Half-width of sameness, a share.
    pub margin: f64,
    /// Comparisons, and what is in none.
    #[serde(flatten)]
    pub compared: Compared,
    /// What differs between the runs beside the engines.
    pub doubts: Vec<String>,
    /// Gates in the order in which they were given.
    pub gates: Vec<GateResult>,
}

/// A page of tables and lists under headings, before any format.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sheet {
    /// What it is.
    pub title: String,
    /// Label and value.
    pub facts: Vec<(&'static str, String)>,
    /// Tables with their captions.
    pub tables: Vec<Table>,
    /// Headings with a sentence an item; none is empty.
    pub lists: Vec<(&'static str, Vec<String>)>,
}

impl ComparedRuns {
    /// Of finished comparisons.
    #[must_use]
    pub fn new(
        base: RunLabel,
        candidate: Option<RunLabel>,
        margin: f64,
        compared: Compared,
    ) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            base,
            candidate,
            margin,
            compared,
            doubts: Vec::new(),
            gates: Vec::new(),
        }
    }

    /// Writes it for a terminal `width` columns wide.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn render_terminal(&self, color: bool, width: usize, out: &mut impl Write) -> fmt::Result {
        terminal::render_sheet(&self.sheet(), color, width, out)
    }

    /// Writes it as GitHub-flavoured markdown.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn render_markdown(&self, out: &mut impl Write) -> fmt::Result {
        markdown::render_sheet(&self.sheet(), out)
    }

    fn sheet(&self) -> Sheet {
        let label =
            |run: &RunLabel| format!("{}, {}, measured {}", run.run, run.name, run.started_at);
        let mut facts = vec![("base", label(&self.base))];
        facts.extend(self.candidate.iter().map(|run| ("candidate", label(run))));
        facts.push(("verdicts", self.counts()));
        let tables = tables(&self.compared.comparisons);
        let mut lists = Vec::new();
        let missing: Vec<_> = self.compared.not_compared.iter().map(sentence).collect();
        for (heading, items) in [
            ("gates", self.gate_lines()),
            ("not compared", missing),
            ("beware", self.doubts.clone()),
        ] {
            if !items.is_empty() {
                lists.push((heading, items));
            }
        }
        Sheet { title: "comparison".to_owned(), facts, tables, lists }
    }

    /// `3 same within 3 %, 1 different, 2 undecided`.
    fn counts(&self) -> String {
        let count =
            |verdict| self.compared.comparisons.iter().filter(|c| c.verdict == verdict).count();
        format!(
            "{} same within {}, {} different, {} undecided",
            count(Verdict::Same),
            percent(self.margin),
            count(Verdict::Different),
            count(Verdict::Undecided)
        )
    }

    fn gate_lines(&self) -> Vec<String> {
        let cells = self
            .gates
            .iter()
            .flat_map(|gate| gate.cells.iter().map(move |cell| (&gate.gate, cell)));
        cells
            .map(|(gate, cell)| {
                format!(
                    "{}: {gate}, {} C = {}, {}: {}",
                    cell.outcome.as_str(),
                    cell.experiment,
                    cell.concurrency,
                    cell.candidate,
                    cell.reason
                )
            })
            .collect()
    }
}
