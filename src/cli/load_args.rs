//! The options of `yardstick run` that describe a load beside the four
//! experiments. What they may be is the plan's to check.

use std::time::Duration;

use clap::Args;

use crate::plan::load_spec::{LengthSpec, LoadSpec, SweepSpec};
use crate::plan::{LoadPlan, Plan, PlanError};

/// A load, as one is described on the command line.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "A load instead of the experiments")]
pub struct LoadArgs {
    /// Send requests at this rate a second, whatever has not been answered yet
    #[arg(long, value_name = "R")]
    rate: Option<f64>,
    /// How requests arrive: poisson, constant, gamma, trace or closed [default: poisson]
    #[arg(long, value_name = "KIND")]
    arrival: Option<String>,
    /// Shape of gamma gaps: 1 is Poisson, less is burstier
    #[arg(long, value_name = "K")]
    burstiness: Option<f64>,
    /// Let the rate grow, or fall, from --rate to this over the duration
    #[arg(long, value_name = "R")]
    ramp_to: Option<f64>,
    /// No request arrives after it, such as 30s or 2m [default: 30s, or --requests]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    duration: Option<Duration>,
    /// Measure at each of these rates, or look for the capacity: R,R,... or auto
    #[arg(long, value_name = "R,R,...|auto", value_parser = sweep)]
    sweep_rates: Option<SweepSpec>,
    /// Requests in flight at most; what arrives beyond waits here and is recorded so [default: 4096]
    #[arg(long, value_name = "N")]
    max_in_flight: Option<u32>,
    /// Objectives, such as ttft_p90<500ms,tpot<50ms: goodput is what meets them
    #[arg(long, value_name = "SLO,...")]
    slo: Option<String>,
    /// Prompt lengths: N, uniform:LEAST-MOST, normal:MEAN,SD or lognormal:MEAN,SD
    #[arg(long, value_name = "LENGTHS")]
    prompt_lengths: Option<String>,
    /// Answer lengths, in the same words [default: --max-tokens]
    #[arg(long, value_name = "LENGTHS")]
    output_lengths: Option<String>,
    /// Let prompts begin with a shared prefix of so many tokens
    #[arg(long, value_name = "N")]
    prefix_tokens: Option<u32>,
    /// How many different shared prefixes there are [default: 1]
    #[arg(long, value_name = "N")]
    prefix_groups: Option<u32>,
    /// Turns of each conversation; each waits for the answer to the one before
    #[arg(long, value_name = "N")]
    turns: Option<u32>,
    /// Pause between an answer and the next turn, such as 2s
    #[arg(long, value_name = "TIME", value_parser = duration)]
    think: Option<Duration>,
    /// Take conversations from a file in ShareGPT's format
    #[arg(long, value_name = "FILE")]
    dataset: Option<String>,
    /// Replay a trace: Mooncake's JSONL, BurstGPT's CSV, or a run directory
    #[arg(long, value_name = "FILE|DIR")]
    trace: Option<String>,
    /// Format of the trace where its name does not tell: mooncake, burstgpt or requests
    #[arg(long, value_name = "FORMAT")]
    trace_format: Option<String>,
    /// Replay a trace so many times faster than recorded [default: 1]
    #[arg(long, value_name = "X")]
    speed: Option<f64>,
}

impl LoadArgs {
    /// Puts the load into `plan`, if one is described. `requests` and
    /// `prompt_tokens` are the options that experiments share with it.
    ///
    /// # Errors
    /// [`PlanError`] names the option by its name in a plan.
    pub fn apply(
        &self,
        plan: &mut Plan,
        requests: Option<u32>,
        prompt_tokens: Option<u32>,
        asked_for_experiments: bool,
    ) -> Result<(), PlanError> {
        let spec = self.spec();
        let bare = LoadSpec { slo: spec.slo.clone(), ..LoadSpec::default() };
        if spec == bare {
            return self.promise(plan);
        }
        let of_prompts = |tokens| LengthSpec::Fixed(tokens);
        let from_file = spec.dataset.is_some() || spec.trace.is_some();
        let prompt_tokens = prompt_tokens.filter(|_| !from_file).map(of_prompts);
        let closed = spec.arrival.as_deref() == Some("closed");
        let spec = LoadSpec {
            requests,
            prompt_tokens: spec.prompt_tokens.clone().or(prompt_tokens),
            concurrency: closed.then_some(plan.concurrency),
            ..spec
        };
        plan.loads = vec![LoadPlan::new(spec)?];
        if !asked_for_experiments {
            plan.experiments.clear();
        }
        Ok(())
    }

    /// Objectives for the loads of a plan.
    fn promise(&self, plan: &mut Plan) -> Result<(), PlanError> {
        let Some(slo) = &self.slo else { return Ok(()) };
        if plan.loads.is_empty() {
            let problem = "objectives need a load: --rate, --sweep-rates or --trace".to_owned();
            return Err(PlanError::Load { load: "--slo".to_owned(), problem });
        }
        for load in &mut plan.loads {
            *load = LoadPlan::new(LoadSpec { slo: Some(slo.clone()), ..load.spec.clone() })?;
        }
        Ok(())
    }

    fn spec(&self) -> LoadSpec {
        let seconds = |duration: Option<Duration>| duration.map(|d| d.as_secs_f64());
        let lengths = |text: &Option<String>| text.clone().map(LengthSpec::Text);
        LoadSpec {
            name: None,
            arrival: self.arrival.clone(),
            rate: self.rate,
            sweep: self.sweep_rates.clone(),
            burstiness: self.burstiness,
            ramp_to: self.ramp_to,
            ramp_s: None,
            requests: None,
            duration_s: seconds(self.duration),
            max_in_flight: self.max_in_flight,
            concurrency: None,
            prompt_tokens: lengths(&self.prompt_lengths),
            output_tokens: lengths(&self.output_lengths),
            prefix_groups: self.prefix_groups,
            prefix_tokens: self.prefix_tokens,
            turns: self.turns,
            think_s: seconds(self.think),
            dataset: self.dataset.clone(),
            trace: self.trace.clone(),
            trace_format: self.trace_format.clone(),
            speed: self.speed,
            slo: self.slo.clone(),
        }
    }
}

/// `500ms`, `30s`, `2m`, `1h`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("`{text}` is no time: expected a number with ms, s, m or h, such as 30s");
    let units = [("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3_600.0)];
    let found = units.iter().find_map(|(unit, seconds)| {
        text.strip_suffix(unit)?.trim().parse::<f64>().ok().map(|number| number * seconds)
    });
    Duration::try_from_secs_f64(found.ok_or_else(bad)?).map_err(|_| bad())
}

fn sweep(text: &str) -> Result<SweepSpec, String> {
    if text == "auto" {
        return Ok(SweepSpec::Word(text.to_owned()));
    }
    let rate = |part: &str| {
        let bad = || format!("`{part}` is no rate: expected auto, or numbers such as 1,2,4");
        part.trim().parse::<f64>().map_err(|_| bad())
    };
    text.split(',').map(rate).collect::<Result<_, _>>().map(SweepSpec::Rates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1_500)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for text in ["30", "-1s", "s", "nans", ""] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn load_replaces_the_experiments_unless_they_are_asked_for() {
        let args = LoadArgs { rate: Some(4.0), ..LoadArgs::default() };
        let mut plan = Plan::default();
        args.apply(&mut plan, None, None, true).unwrap();
        assert_eq!((plan.experiments.len(), plan.loads.len()), (4, 1));
        args.apply(&mut plan, None, None, false).unwrap();
        assert_eq!((plan.experiments.len(), plan.loads.len()), (0, 1));
    }

    #[test]
    fn objectives_alone_are_those_of_the_plans_loads() {
        let args = LoadArgs { slo: Some("ttft<1s".to_owned()), ..LoadArgs::default() };
        let error = args.apply(&mut Plan::default(), None, None, false).unwrap_err();
        assert!(error.to_string().contains("--rate"), "{error}");
        let mut plan = Plan::from_toml("[[load]]\nrate = 3\nduration_s = 2").unwrap();
        args.apply(&mut plan, None, None, false).unwrap();
        assert_eq!((plan.loads[0].slos.len(), plan.loads[0].spec.rate), (1, Some(3.0)));
    }
}
