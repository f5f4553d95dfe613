//! Checks how a load is spelled: every field in its range, none that would not be heeded.

use std::path::PathBuf;
use std::time::Duration;

use super::{Content, LoadPlan, Pace, Source, SourceFormat};
use crate::load::arrival::MAX_ARRIVALS;
use crate::load::{Extent, Process};
use crate::plan::load_spec::{LengthSpec, LoadSpec, SweepSpec};
use crate::plan::{Lengths, PlanError, Slo};

/// Length of a load that says neither requests nor duration.
const DEFAULT_DURATION: Duration = Duration::from_secs(30);
/// Bound on requests in flight in an open loop that states none.
const DEFAULT_MAX_IN_FLIGHT: u32 = 4_096;
/// Highest rate, in arrivals a second.
const MAX_RATE: f64 = 100_000.0;
/// Longest load.
const MAX_SECONDS: f64 = 86_400.0;
/// Bounds on counts of a load.
const MAX_COUNT: u32 = 65_536;
/// Rates of an automatic sweep double this often.
const DOUBLINGS: i32 = 10;

pub(super) fn check(spec: LoadSpec) -> Result<LoadPlan, PlanError> {
    let name = spec.name.clone().unwrap_or_else(|| default_name(&spec));
    let check = Check { name: &name, spec: &spec };
    let pace = check.pace()?;
    let extent = check.extent(&pace)?;
    let content = check.content(&pace)?;
    let slos = spec.slo.as_deref().map_or_else(|| Ok(Vec::new()), Slo::parse_list);
    let slos = slos.map_err(|what| check.error(&format!("slo: {what}")))?;
    let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 60 || !name.chars().all(named) {
        return Err(check.error("its name must be 1 to 60 of a-z, A-Z, 0-9, `-`, `_` and `.`"));
    }
    Ok(LoadPlan { name, pace, extent, content, slos, spec })
}

/// The arrival process, `closed` or `trace`: what stands first in a report.
fn default_name(spec: &LoadSpec) -> String {
    let arrival = spec.arrival.as_deref();
    let implied = if spec.trace.is_some() { "trace" } else { "poisson" };
    match arrival.unwrap_or(implied) {
        "closed" => "closed-loop".to_owned(),
        other if spec.sweep.is_some() => format!("{other}-sweep"),
        other => other.to_owned(),
    }
}

struct Check<'a> {
    name: &'a str,
    spec: &'a LoadSpec,
}

impl Check<'_> {
    fn error(&self, problem: &str) -> PlanError {
        PlanError::Load { load: self.name.to_owned(), problem: problem.to_owned() }
    }

    fn between(&self, field: &str, value: f64, least: f64, most: f64) -> Result<f64, PlanError> {
        let inside = value.is_finite() && value >= least && value <= most;
        let problem = || self.error(&format!("`{field}` is {value}: expected {least} to {most}"));
        inside.then_some(value).ok_or_else(problem)
    }

    fn count(&self, field: &str, value: Option<u32>, most: u32) -> Result<Option<u32>, PlanError> {
        let Some(value) = value else { return Ok(None) };
        self.between(field, value.into(), 1.0, most.into()).map(|_| Some(value))
    }

    /// Refuses fields that this kind of load would not heed.
    fn refuse(&self, kind: &str, fields: &[(&str, bool)]) -> Result<(), PlanError> {
        match fields.iter().find(|(_, given)| *given) {
            Some((field, _)) => {
                Err(self.error(&format!("`{field}` means nothing to {kind}: leave it out")))
            }
            None => Ok(()),
        }
    }

    fn pace(&self) -> Result<Pace, PlanError> {
        let spec = self.spec;
        let implied = if spec.trace.is_some() { "trace" } else { "poisson" };
        let arrival = spec.arrival.as_deref().unwrap_or(implied);
        let rated = [
            ("rate", spec.rate.is_some()),
            ("sweep", spec.sweep.is_some()),
            ("burstiness", spec.burstiness.is_some()),
            ("ramp_to", spec.ramp_to.is_some()),
            ("ramp_s", spec.ramp_s.is_some()),
        ];
        if arrival != "trace" {
            self.refuse(
                "arrivals that are not a trace's",
                &[("trace_format", spec.trace_format.is_some()), ("speed", spec.speed.is_some())],
            )?;
        }
        if arrival != "closed" {
            self.refuse("an open loop", &[("concurrency", spec.concurrency.is_some())])?;
        }
        match arrival {
            "closed" => {
                self.refuse("a closed loop", &rated)?;
                self.refuse(
                    "a closed loop",
                    &[
                        ("max_in_flight", spec.max_in_flight.is_some()),
                        ("duration_s", spec.duration_s.is_some()),
                    ],
                )?;
                let concurrency = self.count("concurrency", spec.concurrency, MAX_COUNT)?;
                Ok(Pace::Closed { concurrency: concurrency.unwrap_or(1) })
            }
            "trace" => {
                self.refuse("a trace, which has its own instants", &rated)?;
                let speed = self.between("speed", spec.speed.unwrap_or(1.0), 1e-3, 1e6)?;
                Ok(Pace::Recorded { speed, max_in_flight: self.max_in_flight()? })
            }
            "constant" => self.open(Process::Constant),
            "poisson" => self.open(Process::Poisson),
            "gamma" => {
                let shape = spec.burstiness.unwrap_or(1.0);
                let burstiness = self.between("burstiness", shape, 0.01, 1_000.0)?;
                self.open(Process::Gamma { burstiness })
            }
            other => Err(self.error(&format!(
                "`arrival` is `{other}`: expected constant, poisson, gamma, trace or closed"
            ))),
        }
    }

    fn max_in_flight(&self) -> Result<u32, PlanError> {
        let bound = self.count("max_in_flight", self.spec.max_in_flight, MAX_COUNT)?;
        Ok(bound.unwrap_or(DEFAULT_MAX_IN_FLIGHT))
    }

    fn open(&self, process: Process) -> Result<Pace, PlanError> {
        let spec = self.spec;
        if !matches!(process, Process::Gamma { .. }) {
            let given = [("burstiness", spec.burstiness.is_some())];
            self.refuse("arrivals that are not gamma", &given)?;
        }
        let (rates, search) = match (&spec.sweep, spec.rate) {
            (Some(SweepSpec::Rates(_)), Some(_)) => {
                return Err(self.error("it has `rate` and a list of rates in `sweep`: give one"));
            }
            (Some(SweepSpec::Rates(rates)), None) => (rates.clone(), false),
            (Some(SweepSpec::Word(word)), start) if word == "auto" => {
                let start = self.between("rate", start.unwrap_or(1.0), 1e-3, MAX_RATE)?;
                (search_rates(start), true)
            }
            (Some(SweepSpec::Word(word)), _) => {
                let problem = format!("`sweep` is `{word}`: expected auto or a list of rates");
                return Err(self.error(&problem));
            }
            (None, Some(rate)) => (vec![rate], false),
            (None, None) => return Err(self.error("it has no `rate`, in requests a second")),
        };
        if rates.is_empty() || rates.len() > 100 {
            return Err(
                self.error(&format!("`sweep` has {} rates: expected 1 to 100", rates.len()))
            );
        }
        for (i, rate) in rates.iter().enumerate() {
            self.between("rate", *rate, 1e-3, MAX_RATE)?;
            if rates[..i].contains(rate) {
                return Err(self.error(&format!("`sweep` has the rate {rate} twice")));
            }
        }
        let ramp = self.ramp(&rates)?;
        Ok(Pace::Open { process, rates, search, ramp, max_in_flight: self.max_in_flight()? })
    }

    fn ramp(&self, rates: &[f64]) -> Result<Option<(f64, Duration)>, PlanError> {
        let spec = self.spec;
        let Some(to) = spec.ramp_to else {
            self.refuse("a rate that stays", &[("ramp_s", spec.ramp_s.is_some())])?;
            return Ok(None);
        };
        if rates.len() > 1 {
            return Err(self.error("`ramp_to` and `sweep` exclude each other"));
        }
        let to = self.between("ramp_to", to, 1e-3, MAX_RATE)?;
        let Some(seconds) = spec.ramp_s.or(spec.duration_s) else {
            return Err(self.error("a ramp needs `ramp_s` or `duration_s`"));
        };
        let seconds = self.between("ramp_s", seconds, 1e-3, MAX_SECONDS)?;
        Ok(Some((to, Duration::from_secs_f64(seconds))))
    }

    fn extent(&self, pace: &Pace) -> Result<Extent, PlanError> {
        let spec = self.spec;
        let requests = self.count("requests", spec.requests, MAX_ARRIVALS)?;
        let seconds = spec.duration_s.map(|s| self.between("duration_s", s, 1e-3, MAX_SECONDS));
        let duration = seconds.transpose()?.map(Duration::from_secs_f64);
        let duration = match pace {
            Pace::Open { rates, ramp, .. } => {
                let open_end = duration.is_none() && requests.is_none();
                let duration = if open_end { Some(DEFAULT_DURATION) } else { duration };
                let fastest = rates.iter().copied().fold(ramp.map_or(0.0, |(to, _)| to), f64::max);
                let expected = duration.map_or(0.0, |duration| fastest * duration.as_secs_f64());
                let searched = matches!(pace, Pace::Open { search: true, .. });
                if requests.is_none() && !searched && expected > f64::from(MAX_ARRIVALS) {
                    return Err(self.error(&format!(
                        "a rate of {fastest} over its duration makes {expected:.0} requests: \
                         expected at most {MAX_ARRIVALS}"
                    )));
                }
                duration
            }
            Pace::Closed { .. } | Pace::Recorded { .. } => duration,
        };
        Ok(Extent { requests, duration })
    }

    fn content(&self, pace: &Pace) -> Result<Content, PlanError> {
        let spec = self.spec;
        let lengths = |field: &str, given: &Option<LengthSpec>| {
            let parsed = given.as_ref().map(|spec| spec.text().parse::<Lengths>());
            parsed.transpose().map_err(|what| self.error(&format!("`{field}`: {what}")))
        };
        let prompt_tokens = lengths("prompt_tokens", &spec.prompt_tokens)?;
        let output_tokens = lengths("output_tokens", &spec.output_tokens)?;
        let source = self.source(pace)?;
        let prefix = match (spec.prefix_groups, spec.prefix_tokens) {
            (None, None) => None,
            (groups, Some(tokens)) => {
                let groups = self.count("prefix_groups", groups, MAX_COUNT)?.unwrap_or(1);
                self.count("prefix_tokens", Some(tokens), 1 << 20)?.map(|tokens| (groups, tokens))
            }
            (Some(_), None) => {
                return Err(self.error("`prefix_groups` needs `prefix_tokens`, the length of each"));
            }
        };
        if prefix.is_some() && (prompt_tokens.is_none() || source.is_some()) {
            return Err(self.error(
                "shared prefixes need `prompt_tokens`, the length of what follows them, and no file",
            ));
        }
        let turns = self.count("turns", spec.turns, 1_000)?.unwrap_or(1);
        let think = self.between("think_s", spec.think_s.unwrap_or(0.0), 0.0, 3_600.0)?;
        if spec.think_s.is_some() && turns == 1 && spec.dataset.is_none() {
            return Err(self.error("`think_s` needs conversations: `turns` or `dataset`"));
        }
        if turns > 1 && matches!(pace, Pace::Closed { .. }) {
            return Err(self.error("`turns` need arrivals: a closed loop has no conversations"));
        }
        if turns > 1 && matches!(pace, Pace::Recorded { .. }) {
            return Err(self.error("a trace says which requests there are: leave `turns` out"));
        }
        if matches!(pace, Pace::Recorded { .. }) {
            self.refuse(
                "a trace, which has its own",
                &[("prompt_tokens", prompt_tokens.is_some())],
            )?;
        }
        let think = Duration::from_secs_f64(think);
        Ok(Content { prompt_tokens, output_tokens, prefix, turns, think, source })
    }

    fn source(&self, pace: &Pace) -> Result<Option<Source>, PlanError> {
        let spec = self.spec;
        let source = |path: &str, format| {
            Some(Source { path: PathBuf::from(path), format, conversations: None })
        };
        match (&spec.trace, &spec.dataset, pace) {
            (Some(_), Some(_), _) => Err(self.error("it has `trace` and `dataset`: give one")),
            (Some(path), None, Pace::Recorded { .. }) => {
                let Some(word) = spec.trace_format.as_deref() else {
                    return Ok(source(path, format_of(path)));
                };
                match SourceFormat::TRACES.into_iter().find(|format| format.as_str() == word) {
                    Some(format) => Ok(source(path, format)),
                    None => Err(self.error(&format!(
                        "`trace_format` is `{word}`: expected mooncake, burstgpt or requests"
                    ))),
                }
            }
            (None, _, Pace::Recorded { .. }) => {
                Err(self.error("a trace is replayed from `trace`, the path of its file"))
            }
            (Some(_), None, _) => {
                Err(self.error("`trace` is replayed at its own instants: expected arrival = trace"))
            }
            (None, Some(_), Pace::Closed { .. }) => {
                Err(self.error("`dataset` needs arrivals: a closed loop has no conversations"))
            }
            (None, Some(path), _) => Ok(source(path, SourceFormat::ShareGpt)),
            (None, None, _) => Ok(None),
        }
    }
}

/// By the name of the file: a CSV is BurstGPT's, our own has our name.
fn format_of(path: &str) -> SourceFormat {
    if path.ends_with(".csv") {
        SourceFormat::BurstGpt
    } else if path.ends_with("requests.jsonl") || !path.ends_with(".jsonl") {
        SourceFormat::Requests
    } else {
        SourceFormat::Mooncake
    }
}

/// Rates of a search in the order in which they are tried: doubled from the
/// start, then the middles of all octaves, then the quarters. What lies below a
/// rate that was sustained or above one that was not is left out as it runs.
fn search_rates(start: f64) -> Vec<f64> {
    let octaves = |fraction: f64, count: i32| {
        (0..count).map(move |octave| start * 2_f64.powf(f64::from(octave) + fraction))
    };
    // Three digits are enough for a rate, and make names that can be read.
    let round = |rate: f64| {
        let power = 10_f64.powf(2.0 - rate.log10().floor());
        (rate * power).round() / power
    };
    let rates = octaves(0.0, DOUBLINGS + 1)
        .chain(octaves(0.5, DOUBLINGS))
        .chain(octaves(0.25, DOUBLINGS))
        .chain(octaves(0.75, DOUBLINGS));
    rates.map(round).filter(|rate| *rate <= MAX_RATE).collect()
}
