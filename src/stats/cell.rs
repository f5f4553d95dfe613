//! One engine under one load over all rounds of a run: the unit that is compared.

use super::summary::CaseSummary;

/// The rounds of one engine under one load.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell<'a> {
    /// Engine name.
    pub engine: &'a str,
    /// Experiment name.
    pub experiment: &'a str,
    /// Requests in flight at once, of the first round.
    pub concurrency: u32,
    /// Whether it is the second arm of a comparison of the engine with itself.
    pub again: bool,
    /// In order; invalid ones are among them.
    pub rounds: Vec<&'a CaseSummary>,
}

impl<'a> Cell<'a> {
    /// The rounds whose numbers may be compared.
    pub fn valid(&self) -> impl Iterator<Item = &'a CaseSummary> {
        self.rounds.iter().copied().filter(|case| case.invalid.is_empty())
    }

    /// Whether requests arrive at instants of their own.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.rounds.iter().any(|case| case.under_load.open_loop.is_some())
    }

    /// Whether the engine is cold at the start of each round.
    #[must_use]
    pub fn is_cold(&self) -> bool {
        self.rounds.iter().any(|case| case.cold)
    }

    /// Whether both are of the same load, whoever bears it.
    #[must_use]
    pub fn is_same_load(&self, other: &Cell<'_>) -> bool {
        self.experiment == other.experiment
            && (self.is_open() || self.concurrency == other.concurrency)
    }
}

/// The cells of a run, in the order in which their first rounds were measured.
#[must_use]
pub fn cells(cases: &[CaseSummary]) -> Vec<Cell<'_>> {
    let mut cells: Vec<Cell<'_>> = Vec::new();
    for case in cases {
        match cells.iter_mut().find(|cell| is_of(cell, case)) {
            Some(cell) => cell.rounds.push(case),
            None => cells.push(Cell {
                engine: &case.engine,
                experiment: &case.experiment,
                concurrency: case.concurrency,
                again: case.again,
                rounds: vec![case],
            }),
        }
    }
    for cell in &mut cells {
        cell.rounds.sort_by_key(|case| case.round);
    }
    cells
}

/// An open loop's most requests in flight depend on how many happened to
/// arrive; its experiment's name tells it apart from others.
fn is_of(cell: &Cell<'_>, case: &CaseSummary) -> bool {
    let is_open = case.under_load.open_loop.is_some();
    cell.engine == case.engine
        && cell.experiment == case.experiment
        && cell.again == case.again
        && (is_open || cell.concurrency == case.concurrency)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::case;
    use crate::stats::case::tests::{group, record, request};

    #[test]
    fn rounds_of_a_load_are_one_cell_and_its_second_arm_is_another() {
        let requests = [request(0, 0, &[20, 25])];
        let of = |engine: &str, round, again| {
            let mut record = record(engine, "concurrent-warm", 1);
            (record.round, record.again) = (round, again);
            case::summarise(&group(&record, &requests), &[])
        };
        let cases = [
            of("a", 0, false),
            of("b", 0, false),
            of("a", 0, true),
            of("b", 1, false),
            of("a", 1, false),
        ];
        let found: Vec<_> =
            cells(&cases).iter().map(|c| (c.engine, c.again, c.rounds.len())).collect();
        assert_eq!(found, [("a", false, 2), ("b", false, 2), ("a", true, 1)]);
    }

    #[test]
    fn invalid_rounds_are_kept_and_not_compared() {
        let requests = [request(0, 0, &[20, 25])];
        let record = record("a", "concurrent-warm", 1);
        let mut cases = vec![case::summarise(&group(&record, &requests), &[]); 2];
        cases[1].invalid.push(crate::stats::summary::Invalid {
            class: crate::stats::warnings::WarningClass::ShortOutputs,
            reason: "3 of 64 tokens".to_owned(),
        });
        let cells = cells(&cases);
        assert_eq!((cells[0].rounds.len(), cells[0].valid().count()), (2, 1));
    }
}
