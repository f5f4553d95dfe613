//! The options of `yardstick run` that say how its cases are arranged, what is
//! required of them, and what its exit code makes of that.

use clap::Args;

use super::{ExitStatus, output};
use crate::experiment::Ended;
use crate::plan::{Order, Plan, Requirement, WarmUp};
use crate::record::{JournalEvent, RunData};
use crate::report::gates;
use crate::stats::Summary;
use crate::stats::gate::Verdict;

/// How rounds are made comparable, and what they have to show.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Rounds and requirements")]
pub struct ArrangementArgs {
    /// In which order engines take their turns: mirrored (A B, B A) or shuffled
    /// by the seed [default: mirrored]
    #[arg(long, value_name = "ORDER")]
    order: Option<Order>,
    /// Measure each engine a second time within each round, on other prompts
    /// (A B, then B A again), to see how much it differs from itself; doubles
    /// the time
    #[arg(long)]
    aa: bool,
    /// Bursts before warm cases: until-flat (4 to 16 of them, no more than 30 s),
    /// or a number; 0 sends none [default: until-flat]
    #[arg(long, value_name = "until-flat|N")]
    warm_up: Option<WarmUp>,
    /// What every warm case has to show, such as ttft_p90<=500ms@99%: a bound on
    /// ttft, tpot or e2el, with which confidence (99 % unless said); NAME: before
    /// it means that experiment or load alone, cold or warm; repeatable. Exits
    /// with 1 if one is missed
    #[arg(long = "require", value_name = "REQUIREMENT")]
    requirements: Vec<Requirement>,
    /// End a case's load once all that is required of it is decided, by a test
    /// that may be looked at after every request; not in sweeps over rates
    #[arg(long)]
    stop_when_decided: bool,
    /// Exit with 1 also if a requirement is left undecided, for want of requests
    #[arg(long)]
    strict: bool,
}

impl ArrangementArgs {
    /// Lets what was given override what `plan` says.
    pub fn apply(&self, plan: &mut Plan) {
        plan.order = self.order.unwrap_or(plan.order);
        plan.warm_up = self.warm_up.unwrap_or(plan.warm_up);
        plan.aa |= self.aa;
        plan.stop_when_decided |= self.stop_when_decided;
        if !self.requirements.is_empty() {
            plan.requirements.clone_from(&self.requirements);
        }
    }

    /// How a run ends for who called it. Says on stderr which requirements were
    /// not met.
    #[must_use]
    pub fn exit_status(&self, ended: &Ended, data: &RunData, summary: &Summary) -> ExitStatus {
        let mut unmet = false;
        for gate in &summary.gates {
            let (failing, how) = match gate.verdict {
                Verdict::Met => continue,
                Verdict::Missed => (true, format!("missed: {} of {} over", gate.num_over, gate.n)),
                Verdict::Undecided => {
                    let lacks = gates::lacks(gate).unwrap_or_default();
                    (self.strict, format!("undecided: {lacks}"))
                }
            };
            unmet |= failing;
            output::note(&format!("{} {how}", gates::name(gate)));
        }
        match ended {
            Ended::Interrupted => ExitStatus::Interrupted,
            Ended::RecorderStopped => ExitStatus::Failure,
            Ended::Complete => {
                let silent = summary.cases.iter().any(|case| case.num_ok == 0);
                let failed = data
                    .journal
                    .iter()
                    .any(|entry| matches!(entry.event, JournalEvent::CaseFailed { .. }));
                if summary.cases.is_empty() || silent || failed || unmet {
                    ExitStatus::Failure
                } else {
                    ExitStatus::Success
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_override_the_plan_and_leave_the_rest_of_it() {
        let text = "order = 'shuffled'\nwarm_up = 2\nrequire = ['ttft_p90<1s']\naa = true\n";
        let mut plan = Plan::from_toml(text).unwrap();
        ArrangementArgs::default().apply(&mut plan);
        assert_eq!(plan, Plan::from_toml(text).unwrap());
        let args = ArrangementArgs {
            warm_up: Some(WarmUp::UntilFlat),
            requirements: vec!["e2el_p50<2s".parse().unwrap()],
            ..ArrangementArgs::default()
        };
        args.apply(&mut plan);
        assert_eq!((plan.order, plan.warm_up), (Order::Shuffled, WarmUp::UntilFlat));
        assert_eq!(plan.requirements, args.requirements);
    }
}
