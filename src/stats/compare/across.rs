//! Two runs beside each other: which engines and loads belong together, what has
//! no counterpart, and whether the two are one and the same run.

use super::bootstrap::Design;
use super::cells::{Compared, Measured, NotCompared, Question, compare_cells};
use super::doubts;
use crate::engine::EngineInfo;
use crate::record::RunData;
use crate::stats::Summary;
use crate::stats::cell::Cell;

/// One of the two runs.
#[derive(Debug, Clone, Copy)]
pub struct RunSide<'a> {
    /// The run.
    pub data: &'a RunData,
    /// What is derived from it.
    pub summary: &'a Summary,
    /// Its cells.
    pub measured: &'a Measured<'a>,
    /// The one engine that was asked for; all if `None`.
    pub engine: Option<&'a str>,
}

/// Comparisons over two runs, and what makes them doubtful.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Across {
    /// What was compared and what was not.
    pub compared: Compared,
    /// What differs between the runs beside the engines.
    pub doubts: Vec<String>,
}

impl<'a> RunSide<'a> {
    /// Names of the engines that take part.
    #[must_use]
    pub fn engines(&self) -> Vec<&'a str> {
        match self.engine {
            Some(name) => vec![name],
            None => self.data.manifest.engines.iter().map(|e| e.spec.name.as_str()).collect(),
        }
    }

    fn info(&self, engine: &str) -> Option<&'a EngineInfo> {
        let engines = &self.data.manifest.engines;
        engines.iter().find(|known| known.spec.name == engine)?.info.as_ref()
    }

    fn cells_of<'b>(&'b self, engine: &'b str) -> impl Iterator<Item = &'b Cell<'a>> {
        self.measured.first_arms().filter(move |cell| cell.engine == engine)
    }
}

/// Compares the engines of two runs.
///
/// # Errors
/// When it cannot be told which engines belong together.
pub fn compare_runs(
    base: &RunSide<'_>,
    candidate: &RunSide<'_>,
    question: &Question<'_>,
) -> Result<Across, String> {
    let is_same_run = is_same_run(base.data, candidate.data);
    let mut found = Across::default();
    if !is_same_run {
        found.doubts = doubts::of_runs(
            (&base.data.manifest, base.summary),
            (&candidate.data.manifest, candidate.summary),
        );
    }
    let is_named = base.engine.is_some() || candidate.engine.is_some();
    for pair in pairs(&base.engines(), &candidate.engines())? {
        match pair {
            // Who names an engine asks about no other.
            Pair::Alone(..) if is_named => {}
            Pair::Both(mine, others) => {
                let design = match (is_same_run, mine == others) {
                    (true, true) => Design::Itself,
                    (true, false) => Design::Paired,
                    (false, _) => Design::Unpaired,
                };
                let info = ((mine, base.info(mine)), (others, candidate.info(others)));
                found.doubts.extend(doubts::of_engines(info.0, info.1));
                compare_pair((base, mine), (candidate, others), design, question, &mut found);
            }
            Pair::Alone(side, engine) => {
                let side = if side == 0 { base } else { candidate };
                let reason = "the other run has no engine of this name".to_owned();
                for cell in side.cells_of(engine) {
                    let alone = NotCompared::all_of(cell, reason.clone());
                    found.compared.not_compared.push(alone);
                }
            }
        }
    }
    Ok(found)
}

/// Whether both directories hold one run: a copy, or the same one given twice.
fn is_same_run(base: &RunData, candidate: &RunData) -> bool {
    let (mine, others) = (&base.manifest, &candidate.manifest);
    (&mine.started_at, mine.seed, &mine.plan_sha256)
        == (&others.started_at, others.seed, &others.plan_sha256)
        && base.requests == candidate.requests
}

/// Engines that belong together, or one that has no counterpart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pair<'a> {
    Both(&'a str, &'a str),
    /// Of the base (0) or of the candidate (1).
    Alone(u8, &'a str),
}

fn pairs<'a>(base: &[&'a str], candidate: &[&'a str]) -> Result<Vec<Pair<'a>>, String> {
    if let ([mine], [others]) = (base, candidate) {
        return Ok(vec![Pair::Both(mine, others)]);
    }
    let both: Vec<_> = base.iter().filter(|name| candidate.contains(name)).collect();
    if both.is_empty() {
        return Err(format!(
            "no engine is in both runs: the base has {}, the candidate {}",
            base.join(", "),
            candidate.join(", ")
        ));
    }
    let alone = |side, names: &[&'a str], others: &[&str]| {
        let alone = names.iter().filter(|name| !others.contains(name));
        alone.map(|name| Pair::Alone(side, name)).collect::<Vec<_>>()
    };
    let both = both.into_iter().map(|name| Pair::Both(name, name));
    Ok(both.chain(alone(0, base, candidate)).chain(alone(1, candidate, base)).collect())
}

fn compare_pair(
    base: (&RunSide<'_>, &str),
    candidate: (&RunSide<'_>, &str),
    design: Design,
    question: &Question<'_>,
    found: &mut Across,
) {
    for cell in base.0.cells_of(base.1) {
        match candidate.0.cells_of(candidate.1).find(|other| other.is_same_load(cell)) {
            Some(other) => {
                found.doubts.extend(doubts::of_cells(cell, other));
                compare_cells(
                    (base.0.measured, cell),
                    (candidate.0.measured, other),
                    design,
                    question,
                    &mut found.compared,
                );
            }
            None => {
                let reason = without("candidate", candidate, cell);
                found.compared.not_compared.push(NotCompared::all_of(cell, reason));
            }
        }
    }
    for cell in candidate.0.cells_of(candidate.1) {
        if !base.0.cells_of(base.1).any(|other| other.is_same_load(cell)) {
            let reason = without("base", base, cell);
            found.compared.not_compared.push(NotCompared::all_of(cell, reason));
        }
    }
}

/// Why a side lacks a load that the other has.
fn without(side: &str, (run, engine): (&RunSide<'_>, &str), cell: &Cell<'_>) -> String {
    let absent = run.summary.absent.iter().find(|absent| {
        absent.engine == engine
            && absent.experiment == cell.experiment
            && (cell.is_open() || absent.concurrency == cell.concurrency)
    });
    match absent {
        Some(absent) => format!("not measured in the {side}: {}", absent.reason),
        None => format!("the {side} has no such load"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_pair_by_name_and_two_alone_whatever_their_names() {
        use Pair::{Alone, Both};
        assert_eq!(pairs(&["a"], &["b"]), Ok(vec![Both("a", "b")]));
        assert_eq!(
            pairs(&["a", "b"], &["c", "b"]),
            Ok(vec![Both("b", "b"), Alone(0, "a"), Alone(1, "c")])
        );
        assert!(pairs(&["a", "b"], &["c"]).unwrap_err().contains("no engine is in both runs"));
    }
}
