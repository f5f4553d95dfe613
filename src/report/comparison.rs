//! Comparisons as tables, one for each experiment and pair of engines. Knows
//! finished comparisons, no format.

use crate::stats::Summary;
use crate::stats::compare::cells::NotCompared;
use crate::stats::compare::verdict::percent;
use crate::stats::compare::{Comparison, Design, Verdict};
use crate::units::format_significant;

use super::prose::list;
use super::table::{Cell, Column, Table};

/// More metrics than this that share a reason are named together.
const MAX_NAMED: usize = 5;

/// The tables of comparisons, in the order in which their pairs first come.
#[must_use]
pub fn tables(comparisons: &[Comparison]) -> Vec<Table> {
    groups(comparisons).iter().map(|group| table(group)).collect()
}

/// The tables of a run's own comparisons; what is in none is noted under the last.
#[must_use]
pub fn tables_of(summary: &Summary) -> Vec<Table> {
    let mut tables = tables(&summary.comparisons);
    if let Some(last) = tables.last_mut() {
        let missing = summary.not_compared.iter();
        last.notes.extend(missing.map(|missing| format!("not compared: {}", sentence(missing))));
    }
    tables
}

/// Comparisons by experiment and pair of engines.
#[must_use]
pub fn groups(comparisons: &[Comparison]) -> Vec<Vec<&Comparison>> {
    let key =
        |c: &Comparison| (c.experiment.clone(), c.base.engine.clone(), c.candidate.engine.clone());
    let mut groups: Vec<Vec<&Comparison>> = Vec::new();
    for comparison in comparisons {
        match groups.iter_mut().find(|group| key(group[0]) == key(comparison)) {
            Some(group) => group.push(comparison),
            None => groups.push(vec![comparison]),
        }
    }
    groups
}

/// What a group is of: `concurrent-warm: vllm against ollama, 8 rounds`.
#[must_use]
pub fn caption(group: &[&Comparison]) -> String {
    let Some(first) = group.first() else { return String::new() };
    let (base, candidate) = (&first.base, &first.candidate);
    let rounds = match (first.design, base.rounds == candidate.rounds) {
        (Design::Itself, _) => "the same measurement".to_owned(),
        (Design::Paired, _) => format!("{} in the same run", rounds(base.rounds)),
        (Design::Unpaired, true) => format!("{} each", rounds(base.rounds)),
        (Design::Unpaired, false) => {
            format!("{} against {}", candidate.rounds, rounds(base.rounds))
        }
    };
    let at = match levels(group).as_slice() {
        [one] => format!(" at C = {one}"),
        _ => String::new(),
    };
    format!("{}{at}: {} against {}, {rounds}", first.experiment, candidate.engine, base.engine)
}

/// What is in no comparison, a sentence each.
#[must_use]
pub fn sentence(missing: &NotCompared) -> String {
    let mut about = match &missing.candidate {
        Some(candidate) if *candidate != missing.engine => {
            format!("{candidate} against {}", missing.engine)
        }
        _ => missing.engine.clone(),
    };
    about.push_str(&format!(", {} C = {}", missing.experiment, missing.concurrency));
    if let Some(round) = missing.round {
        about.push_str(&format!(", round {round}"));
    }
    if let Some(metric) = missing.metric {
        about.push_str(&format!(", {metric}"));
    }
    format!("{about}: {}", missing.reason)
}

/// A ratio with three digits after the point, one where there are two before it.
#[must_use]
pub fn write_ratio(ratio: f64) -> String {
    if ratio < 10.0 { format!("{ratio:.3}") } else { format!("{ratio:.1}") }
}

/// A ratio's interval, where it has one.
#[must_use]
pub fn write_interval(comparison: &Comparison) -> Option<String> {
    let interval = comparison.interval.as_ref()?;
    Some(format!("{}–{}", write_ratio(interval.low), write_ratio(interval.high)))
}

/// A p; below a thousandth that alone.
#[must_use]
pub fn write_p(p: f64) -> String {
    if p < 0.001 { "<0.001".to_owned() } else { format!("{p:.3}") }
}

fn rounds(number: usize) -> String {
    if number == 1 { "1 round".to_owned() } else { format!("{number} rounds") }
}

fn levels(group: &[&Comparison]) -> Vec<u32> {
    let mut levels: Vec<u32> = group.iter().map(|c| c.concurrency).collect();
    levels.sort_unstable();
    levels.dedup();
    levels
}

fn table(group: &[&Comparison]) -> Table {
    let several = levels(group).len() > 1;
    let columns = vec![
        Column::words("metric"),
        Column::numbers("base", "", 0),
        Column::numbers("candidate", "", 0),
        Column::numbers("ratio", "95 %", 0),
        Column::numbers("p", "", 2),
        Column::numbers("noise", "floor", 1),
        Column::words("verdict"),
    ];
    let rows = group.iter().map(|comparison| row(comparison, several)).collect();
    let mut table = Table { caption: caption(group), columns, rows, ..Table::default() };
    table.notes = notes(group);
    if group.iter().any(|comparison| comparison.common_window) {
        table.notes.push(
            "answers differ in length: E2EL and output are over the tokens that all engines gave"
                .to_owned(),
        );
    }
    table
}

fn row(comparison: &Comparison, several: bool) -> Vec<Cell> {
    let unit = if several {
        format!("{}, C = {}", comparison.unit, comparison.concurrency)
    } else {
        comparison.unit.clone()
    };
    let noise = comparison.noise().map_or_else(
        || Cell::absent("one round cannot tell"),
        |floor| Cell::detailed(percent(floor.share), floor.source.as_str()),
    );
    let better = comparison.winning_name().map(|name| format!("{name} better"));
    vec![
        Cell::detailed(comparison.metric.label(), unit),
        Cell::new(format_significant(comparison.base.value)),
        Cell::new(format_significant(comparison.candidate.value)),
        Cell::detailed(
            write_ratio(comparison.ratio),
            write_interval(comparison).unwrap_or_default(),
        ),
        Cell::new(write_p(comparison.p)),
        noise,
        Cell::detailed(comparison.verdict.as_str(), better.unwrap_or_default()),
    ]
}

/// What verdicts mean, and why there is none where there is none: a reason once,
/// however many metrics it holds for.
fn notes(group: &[&Comparison]) -> Vec<String> {
    let Some(first) = group.first() else { return Vec::new() };
    let mut reasons: Vec<(&str, Vec<String>)> = Vec::new();
    let several = levels(group).len() > 1;
    for comparison in group.iter().filter(|c| c.verdict == Verdict::Undecided) {
        let mut label = comparison.metric.label();
        if several {
            label.push_str(&format!(" at C = {}", comparison.concurrency));
        }
        match reasons.iter_mut().find(|(reason, _)| *reason == comparison.reason) {
            Some((_, labels)) => labels.push(label),
            None => reasons.push((&comparison.reason, vec![label])),
        }
    }
    let all = |labels: &[String]| labels.len() == group.len() && labels.len() > MAX_NAMED;
    let named = |(reason, labels): (&str, Vec<String>)| {
        let which = if all(&labels) { "every metric".to_owned() } else { list(&labels) };
        format!("undecided, {which}: {reason}")
    };
    let mut notes: Vec<String> = reasons.into_iter().map(named).collect();
    notes.push(format!("ratio is candidate / base; same means within {}", percent(first.margin)));
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_and_chances_are_written_in_few_digits() {
        assert_eq!((write_ratio(1.0).as_str(), write_ratio(12.34).as_str()), ("1.000", "12.3"));
        assert_eq!((write_p(0.0004).as_str(), write_p(0.03).as_str()), ("<0.001", "0.030"));
    }
}
