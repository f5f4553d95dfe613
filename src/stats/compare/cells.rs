//! From measured cases to comparisons: which rounds may be compared, what values
//! they gave, who stands beside whom within one run. What cannot be compared is
//! listed with its reason.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::bootstrap::Design;
use super::comparison::{Comparison, Contender, Terms, compare};
use super::metric::{Metric, Quantity};
use super::sample::{Block, Sample};
use crate::record::RequestRecord;
use crate::stats::case::CaseRequests;
use crate::stats::cell::{Cell, cells};
use crate::stats::summary::CaseSummary;
use crate::stats::{latency, open_loop, throughput, window};

/// What is asked of cells.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// Metrics; where there are none, the headline of the load.
    pub metrics: &'a [Metric],
    /// Further ones, asked of the loads that can have them.
    pub also: &'a [Metric],
    /// Half-width of sameness, a share.
    pub margin: f64,
}

impl Question<'_> {
    /// The metrics of a load.
    fn of(&self, cell: &Cell<'_>) -> Vec<Metric> {
        let mut metrics = match self.metrics {
            [] => Metric::headline(cell.is_cold(), cell.is_open()),
            asked => asked.to_vec(),
        };
        for metric in self.also {
            if !metrics.contains(metric) && metric.is_of(cell.is_cold(), cell.is_open()) {
                metrics.push(*metric);
            }
        }
        metrics
    }
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Compared {
    /// Metrics that were compared.
    pub comparisons: Vec<Comparison>,
    /// What was not.
    pub not_compared: Vec<NotCompared>,
}

/// A load, a metric of it or a round of it that is in no comparison.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotCompared {
    /// Engine that it is about; with another, the base.
    pub engine: String,
    /// The engine that it would have been compared with, where it is about both.
    pub candidate: Option<String>,
    /// Experiment name.
    pub experiment: String,
    /// Requests in flight at once.
    pub concurrency: u32,
    /// The round that is left out; `None` for all.
    pub round: Option<u32>,
    /// The metric; `None` for all.
    pub metric: Option<Metric>,
    /// Why.
    pub reason: String,
}

/// A run's cells with the raw records that their values come from.
#[derive(Debug)]
pub struct Measured<'a> {
    grouped: &'a [CaseRequests<'a>],
    /// Requests of its cases over the beginnings that their answers have in common, where
    /// engines answered at different lengths.
    beginnings: BTreeMap<u32, Vec<RequestRecord>>,
    /// One engine under one load each.
    pub cells: Vec<Cell<'a>>,
}

impl<'a> Measured<'a> {
    /// Of a run's cases: all of them in `grouped`, those that were measured in `cases`.
    #[must_use]
    pub fn new(grouped: &'a [CaseRequests<'a>], cases: &'a [CaseSummary]) -> Self {
        let cut = window::cut(grouped, cases);
        let beginnings = cut.into_iter().map(|(group, requests)| (group.case, requests)).collect();
        Self { grouped, beginnings, cells: cells(cases) }
    }

    /// Leaves out all experiments but these.
    pub fn keep_experiments(&mut self, names: &[String]) {
        self.cells.retain(|cell| is_named(cell.experiment, names));
    }

    /// The cells that are compared: second arms are for the noise floor alone.
    pub fn first_arms(&self) -> impl Iterator<Item = &Cell<'a>> {
        self.cells.iter().filter(|cell| !cell.again)
    }

    fn requests(&self, case: &CaseSummary) -> &[&'a RequestRecord] {
        let found = self.grouped.iter().find(|group| group.case == case.case);
        found.map_or(&[], |group| &group.requests)
    }

    /// The rounds of a cell that may be compared, and why others may not.
    fn usable(&self, cell: &Cell<'a>) -> (Vec<&'a CaseSummary>, Vec<(u32, String)>) {
        let (mut usable, mut left_out) = (Vec::new(), Vec::new());
        for case in &cell.rounds {
            if let Some(invalid) = case.invalid.first() {
                left_out.push((case.round, format!("invalid: {}", invalid.reason)));
            } else {
                usable.push(*case);
            }
        }
        (usable, left_out)
    }

    /// Values over the common beginnings, for metrics that lengthen with the answer and
    /// arms of one run; of others, over whole answers.
    fn values(&self, metric: Metric, case: &CaseSummary, design: Design) -> Vec<f64> {
        let whole = || values(metric, case, self.requests(case));
        if design == Design::Unpaired {
            return whole();
        }
        let Some(cut) = self.beginnings.get(&case.case) else { return whole() };
        match metric.quantity() {
            Quantity::E2el => cut.iter().filter_map(latency::e2el_ms).collect(),
            Quantity::OutputTokensPerS => {
                let requests: Vec<&RequestRecord> = cut.iter().collect();
                throughput::output_tokens_per_s(&requests).into_iter().collect()
            }
            _ => whole(),
        }
    }

    /// Whether a metric of a cell is over the common beginnings.
    fn is_cut(&self, cell: &Cell<'_>, metric: Metric, design: Design) -> bool {
        design != Design::Unpaired
            && matches!(metric.quantity(), Quantity::E2el | Quantity::OutputTokensPerS)
            && cell.rounds.iter().any(|case| self.beginnings.contains_key(&case.case))
    }

    fn sample(
        &self,
        rounds: &[&CaseSummary],
        metric: Metric,
        design: Design,
    ) -> Result<(Sample, Vec<(u32, String)>), String> {
        let (mut blocks, mut left_out) = (Vec::new(), Vec::new());
        for case in rounds {
            match Block::new(case.round, self.values(metric, case, design)) {
                Some(block) => blocks.push(block),
                None => left_out.push((case.round, absence(metric, case))),
            }
        }
        if blocks.is_empty() {
            let reason = left_out.first().map(|(_, reason)| reason.clone());
            return Err(reason.unwrap_or_else(|| "no round may be compared".to_owned()));
        }
        Ok((Sample::new(blocks, metric.quantile().share())?, left_out))
    }

    fn contender(
        &self,
        cell: &Cell<'a>,
        rounds: &[&CaseSummary],
        metric: Metric,
        design: Design,
    ) -> Result<(Contender<'a>, Vec<(u32, String)>), String> {
        let (sample, left_out) = self.sample(rounds, metric, design)?;
        let again = self
            .cells
            .iter()
            .find(|other| other.again && other.engine == cell.engine && other.is_same_load(cell));
        let again = again.and_then(|cell| self.sample(&self.usable(cell).0, metric, design).ok());
        let engine = cell.engine;
        let survivors = survivors(metric, engine, rounds);
        let again = again.map(|(sample, _)| sample);
        Ok((Contender { engine, sample, again, survivors }, left_out))
    }
}

/// Whether an experiment is among the names; a sweep's name stands for all of its rates.
#[must_use]
pub fn is_named(experiment: &str, names: &[String]) -> bool {
    let load = experiment.split_once('@').map_or(experiment, |(load, _)| load);
    names.iter().any(|name| name == experiment || name == load)
}

/// Compares two cells of the same load, metric by metric.
pub fn compare_cells<'a>(
    base: (&Measured<'a>, &Cell<'a>),
    candidate: (&Measured<'a>, &Cell<'a>),
    design: Design,
    question: &Question<'_>,
    out: &mut Compared,
) {
    let (mine, left_out) = base.0.usable(base.1);
    out.leave_out(base.1, None, left_out);
    let (others, left_out) = candidate.0.usable(candidate.1);
    if design != Design::Itself {
        out.leave_out(candidate.1, None, left_out);
    }
    let cell = base.1;
    for metric in question.of(cell) {
        let contenders = base.0.contender(base.1, &mine, metric, design).and_then(|mine| {
            let others = candidate.0.contender(candidate.1, &others, metric, design)?;
            Ok((mine, others))
        });
        let terms = Terms {
            experiment: cell.experiment,
            concurrency: cell.concurrency,
            metric,
            common_window: base.0.is_cut(base.1, metric, design),
            design,
            margin: question.margin,
        };
        let compared = contenders.and_then(|((mine, without), (others, without_others))| {
            out.leave_out(base.1, Some(metric), without);
            out.leave_out(candidate.1, Some(metric), without_others);
            compare(&mine, &others, &terms)
        });
        match compared {
            Ok(comparison) => out.comparisons.push(comparison),
            Err(reason) => out.not_compared.push(NotCompared {
                candidate: Some(candidate.1.engine.to_owned()),
                metric: Some(metric),
                ..NotCompared::all_of(cell, reason)
            }),
        }
    }
}

/// Compares the engines of one run with each other, load by load: with `baseline`,
/// or else with the first engine that has the load.
#[must_use]
pub fn compare_engines(
    run: &Measured<'_>,
    baseline: Option<&str>,
    question: &Question<'_>,
) -> Compared {
    let mut out = Compared::default();
    for cell in run.first_arms() {
        let of_load = || run.first_arms().filter(|other| other.is_same_load(cell));
        let base = match baseline {
            Some(name) => of_load().find(|other| other.engine == name),
            None => of_load().next(),
        };
        match base {
            Some(base) if base.engine == cell.engine => {
                if of_load().count() == 1 {
                    let reason = "no other engine was measured under this load".to_owned();
                    out.not_compared.push(NotCompared::all_of(cell, reason));
                }
            }
            Some(base) => {
                compare_cells((run, base), (run, cell), Design::Paired, question, &mut out);
            }
            None => {
                let name = baseline.unwrap_or_default();
                let reason = format!("{name} was not measured under this load");
                out.not_compared.push(NotCompared::all_of(cell, reason));
            }
        }
    }
    out
}

impl Compared {
    fn leave_out(&mut self, cell: &Cell<'_>, metric: Option<Metric>, rounds: Vec<(u32, String)>) {
        for (round, reason) in rounds {
            let found =
                NotCompared { round: Some(round), metric, ..NotCompared::all_of(cell, reason) };
            // A base is met once for each candidate.
            if !self.not_compared.contains(&found) {
                self.not_compared.push(found);
            }
        }
    }
}

impl NotCompared {
    /// All rounds and metrics of a cell.
    #[must_use]
    pub fn all_of(cell: &Cell<'_>, reason: String) -> Self {
        Self {
            engine: cell.engine.to_owned(),
            candidate: None,
            experiment: cell.experiment.to_owned(),
            concurrency: cell.concurrency,
            round: None,
            metric: None,
            reason,
        }
    }
}

fn survivors(metric: Metric, engine: &str, rounds: &[&CaseSummary]) -> Option<String> {
    // Goodput counts failed requests as what they are.
    if metric.quantity() == Quantity::GoodputPerS {
        return None;
    }
    let n: u64 = rounds.iter().map(|case| case.n).sum();
    let failed = n - rounds.iter().map(|case| case.num_ok).sum::<u64>();
    (failed > 0)
        .then(|| format!("{failed} of {n} requests of {engine} failed: the rest are survivors"))
}

fn values(metric: Metric, case: &CaseSummary, requests: &[&RequestRecord]) -> Vec<f64> {
    let completed = || requests.iter().copied().filter(|request| request.outcome.is_ok());
    let each = |of: fn(&RequestRecord) -> Option<f64>| completed().filter_map(of).collect();
    let one = |value: Option<f64>| value.into_iter().collect();
    match metric.quantity() {
        Quantity::Ttft => each(latency::ttft_ms),
        Quantity::Tpot => each(latency::tpot_ms),
        Quantity::Itl => completed().flat_map(latency::itl_ms).collect(),
        Quantity::E2el => each(latency::e2el_ms),
        Quantity::TtftFromIntended if case.under_load.open_loop.is_some() => {
            each(open_loop::ttft_from_intended_ms)
        }
        Quantity::E2elFromIntended if case.under_load.open_loop.is_some() => {
            each(open_loop::e2el_from_intended_ms)
        }
        Quantity::TtftFromIntended | Quantity::E2elFromIntended => Vec::new(),
        Quantity::ColdTtft => one(case.cold_ttft_ms),
        Quantity::DecodeTokensPerS => each(|request| Some(1e3 / latency::tpot_ms(request)?)),
        Quantity::OutputTokensPerS => one(case.output_tokens_per_s),
        Quantity::SteadyOutputTokensPerS => one(case.steady_output_tokens_per_s),
        Quantity::RequestsPerS => one(case.requests_per_s),
        Quantity::GoodputPerS => one(case.under_load.goodput_per_s),
    }
}

/// Why a round has no value of a metric.
fn absence(metric: Metric, case: &CaseSummary) -> String {
    let of = |distribution: &crate::stats::summary::Distribution| {
        distribution.reasons.get("p50").cloned().unwrap_or_else(|| "not measured".to_owned())
    };
    match metric.quantity() {
        Quantity::Ttft => of(&case.ttft_ms),
        Quantity::Tpot => of(&case.tpot_ms),
        Quantity::Itl => of(&case.itl_ms),
        Quantity::E2el => of(&case.e2el_ms),
        Quantity::DecodeTokensPerS => of(&case.decode_tokens_per_s),
        Quantity::TtftFromIntended | Quantity::E2elFromIntended => {
            "it is no open loop, or no request completed".to_owned()
        }
        Quantity::ColdTtft if case.cold => {
            "the first request to the cold engine gave no token".to_owned()
        }
        Quantity::ColdTtft => "the engine was not cold".to_owned(),
        Quantity::OutputTokensPerS => "no counted tokens over the case".to_owned(),
        Quantity::SteadyOutputTokensPerS => {
            case.steady_absent.clone().unwrap_or_else(|| "no steady window".to_owned())
        }
        Quantity::RequestsPerS => "no request completed".to_owned(),
        Quantity::GoodputPerS => "the load has no objectives".to_owned(),
    }
}
