//! From a plan and the engines that answered to an ordered list of cases.
//! Engines take turns within each load, in the plan's order.

use super::load::points;
use super::order::{Draw, Turn};
use super::{Experiment, Lengths, LoadPlan, LoadShape, Plan, PromptPlan, Requirement, Residency};
use crate::record::{CaseRecord, LoadRecord};

/// An engine as far as planning cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Name of the engine.
    pub name: String,
    /// Why it cannot be measured at all.
    pub unusable: Option<String>,
    /// Why it cannot be made cold.
    pub no_cold: Option<String>,
    /// Longest sequence in tokens, where it is a point of a sweep over KV
    /// settings, of which some may be too small for a load.
    pub holds: Option<u32>,
}

/// One engine under one load, once.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// Index of the engine among the subjects.
    pub engine: usize,
    /// Name of the experiment.
    pub experiment: String,
    /// Whether the engine is made cold before it.
    pub cold: bool,
    /// Which repetition of the plan, from 0.
    pub round: u32,
    /// Whether it is the second arm of a comparison of the engine with itself.
    pub again: bool,
    /// When its requests are released.
    pub shape: LoadShape,
    /// Requests in all.
    pub num_requests: u32,
    /// Why it is not measured; `None` if it is.
    pub absent: Option<String>,
    /// Cases with the same load share this number, and so their prompts and arrivals.
    pub load: u32,
    /// Which of the plan's loads it is of; `None` for the experiments.
    pub load_plan: Option<usize>,
    /// Whether it is left out where a search over rates does not need it.
    pub search: bool,
    /// What the manifest says of that load.
    pub told: Option<LoadRecord>,
    /// What is required of it.
    pub requirements: Vec<Requirement>,
    /// Whether its load ends once all of that is decided.
    pub stop_when_decided: bool,
}

/// Most requests of a warm-up burst before an open loop, which has no burst of its own.
const OPEN_WARM_UP: u32 = 4;

impl Case {
    /// Most requests in flight at once.
    #[must_use]
    pub const fn concurrency(&self) -> u32 {
        match self.shape {
            LoadShape::Closed { concurrency } => concurrency,
            LoadShape::Open { max_in_flight, .. } => {
                if max_in_flight < self.num_requests {
                    max_in_flight
                } else {
                    self.num_requests
                }
            }
        }
    }

    /// In a few characters: `C=10` in a closed loop, `4/s` in an open one.
    #[must_use]
    pub fn pace(&self) -> String {
        match (&self.shape, self.told.as_ref().and_then(|told| told.rate_per_s)) {
            (LoadShape::Closed { concurrency }, _) => format!("C={concurrency}"),
            (LoadShape::Open { .. }, Some(rate)) => format!("{rate}/s"),
            (LoadShape::Open { .. }, None) => "trace".to_owned(),
        }
    }

    /// Requests of the burst that warms an engine up for it.
    #[must_use]
    pub fn burst(&self) -> u32 {
        match self.shape {
            LoadShape::Closed { concurrency } => concurrency,
            LoadShape::Open { .. } => self.concurrency().min(OPEN_WARM_UP),
        }
    }

    /// As it stands in the manifest.
    #[must_use]
    pub fn record(&self, subjects: &[Subject]) -> CaseRecord {
        CaseRecord { engine: subjects[self.engine].name.clone(), ..self.nameless_record() }
    }

    /// The same without the name of its engine.
    #[must_use]
    pub fn nameless_record(&self) -> CaseRecord {
        CaseRecord {
            engine: String::new(),
            experiment: self.experiment.clone(),
            round: self.round,
            again: self.again,
            concurrency: self.concurrency(),
            num_requests: self.num_requests,
            cold: self.cold,
            absent: self.absent.clone(),
            load: self.told.clone(),
            requirements: self.requirements.iter().map(ToString::to_string).collect(),
            stop_when_decided: self.stop_when_decided,
        }
    }
}

/// Every case of `plan` over `subjects`, in the order in which they run. Each
/// round has prompts of its own, and so has the second arm of a comparison of
/// engines with themselves; within an arm of a round engines share them.
#[must_use]
pub fn expand(plan: &Plan, subjects: &[Subject]) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut loads = Loads { plan, subjects, next: 0 };
    for round in 0..plan.rounds {
        for &experiment in &plan.experiments {
            for concurrency in levels(experiment, plan.concurrency) {
                cases.extend(loads.of_experiment(experiment, concurrency, round));
            }
        }
        for (index, of) in plan.loads.iter().enumerate() {
            cases.extend(loads.of_plan(index, of, round));
        }
    }
    if plan.residency() == Residency::One {
        // Each change of engine costs a start or a load: an engine runs its part
        // of a round at a stretch, each arm one. The sort is stable.
        let place = |case: &Case| {
            let turn = Turn { engine: case.engine, again: case.again };
            loads.turns(case.round, None).iter().position(|known| *known == turn)
        };
        cases.sort_by_cached_key(|case| (case.round, place(case)));
    }
    cases
}

/// Makes the cases of one load after another.
struct Loads<'a> {
    plan: &'a Plan,
    subjects: &'a [Subject],
    /// Number of the next load.
    next: u32,
}

impl Loads<'_> {
    fn of_experiment(&mut self, experiment: Experiment, concurrency: u32, round: u32) -> Vec<Case> {
        let (name, cold) = (experiment.as_str(), experiment.is_cold());
        let case = |turn: Turn, load: u32| {
            let subject = &self.subjects[turn.engine];
            let no_cold = subject.no_cold.clone().filter(|_| cold);
            Case {
                engine: turn.engine,
                experiment: name.to_owned(),
                cold,
                round,
                again: turn.again,
                shape: LoadShape::Closed { concurrency },
                num_requests: num_requests(experiment, concurrency, self.plan.requests),
                absent: subject
                    .unusable
                    .clone()
                    .or(no_cold)
                    .or_else(|| too_long(subject, self.plan, None)),
                load,
                load_plan: None,
                search: false,
                told: None,
                requirements: self.requirements(turn, name, None, cold),
                stop_when_decided: self.plan.stop_when_decided,
            }
        };
        let cases = self.in_turn(round, case);
        self.next += self.num_arms();
        cases
    }

    fn of_plan(&mut self, index: usize, of: &LoadPlan, round: u32) -> Vec<Case> {
        let mut cases = Vec::new();
        for point in points(of) {
            let empty = "its trace has no request in the time asked for";
            let case = |turn: Turn, load: u32| {
                let num_requests = point.num_requests(of, self.plan.seed.unwrap_or(0), load);
                let subject = &self.subjects[turn.engine];
                let unusable = subject.unusable.clone();
                let unusable = unusable.or_else(|| too_long(subject, self.plan, Some(of)));
                Case {
                    engine: turn.engine,
                    experiment: point.name.clone(),
                    cold: false,
                    round,
                    again: turn.again,
                    shape: point.shape.clone(),
                    num_requests,
                    absent: unusable.or_else(|| (num_requests == 0).then(|| empty.to_owned())),
                    load,
                    load_plan: Some(index),
                    search: of.is_search(),
                    told: Some(point.tell(of)),
                    requirements: self.requirements(turn, &point.name, Some(&of.name), false),
                    // Whether a rate is sustained shows over its whole load.
                    stop_when_decided: self.plan.stop_when_decided && !of.is_sweep(),
                }
            };
            cases.extend(self.in_turn(round, case));
            self.next += self.num_arms();
        }
        cases
    }

    /// A case for each turn under the next load, or loads: each arm has its own.
    fn in_turn(&self, round: u32, case: impl Fn(Turn, u32) -> Case) -> Vec<Case> {
        let turns = self.turns(round, Some(self.next)).into_iter();
        turns.map(|turn| case(turn, self.next + u32::from(turn.again))).collect()
    }

    fn turns(&self, round: u32, load: Option<u32>) -> Vec<Turn> {
        let draw = Draw { seed: self.plan.seed.unwrap_or(0), round, load };
        self.plan.order.turns(self.subjects.len(), self.plan.aa, draw)
    }

    const fn num_arms(&self) -> u32 {
        if self.plan.aa { 2 } else { 1 }
    }

    /// What is required of a case. The second arm is there to be compared with the first.
    fn requirements(
        &self,
        turn: Turn,
        experiment: &str,
        load: Option<&str>,
        cold: bool,
    ) -> Vec<Requirement> {
        let all = self.plan.requirements.iter().filter(|_| !turn.again);
        all.filter(|requirement| requirement.applies(experiment, load, cold)).cloned().collect()
    }
}

/// Why a point of a sweep cannot hold the longest request of a load, where that
/// is known before it is measured. Of an engine that was named as it is each
/// request says so itself.
fn too_long(subject: &Subject, plan: &Plan, load: Option<&LoadPlan>) -> Option<String> {
    let holds = subject.holds?;
    let content = load.map(|load| &load.content);
    if content.is_some_and(|content| content.turns > 1 || content.source.is_some()) {
        return None;
    }
    let bound = |lengths: Lengths| match lengths {
        Lengths::Fixed(tokens) | Lengths::Uniform { most: tokens, .. } => Some(tokens),
        Lengths::Normal { .. } | Lengths::Lognormal { .. } => None,
    };
    let prompt = match (content.and_then(|content| content.prompt_tokens), &plan.prompt) {
        (Some(lengths), _) => bound(lengths)?,
        (None, PromptPlan::Synthetic { num_tokens }) => *num_tokens,
        (None, PromptPlan::Question(_)) => return None,
    };
    let prefix = content.and_then(|content| content.prefix).map_or(0, |(_, tokens)| tokens);
    let prompt = prompt.saturating_add(prefix);
    let output = match content.and_then(|content| content.output_tokens) {
        Some(lengths) => bound(lengths)?,
        None => plan.max_tokens,
    };
    (prompt.saturating_add(output) > holds).then(|| {
        format!(
            "it holds sequences of {holds} tokens at most, and the load has {prompt} of prompt and \
             {output} of output"
        )
    })
}

fn levels(experiment: Experiment, concurrency: u32) -> std::ops::RangeInclusive<u32> {
    match experiment {
        Experiment::SequentialCold => 1..=1,
        Experiment::ConcurrentCold | Experiment::ConcurrentWarm => concurrency..=concurrency,
        Experiment::BatchedWarm => 1..=concurrency,
    }
}

/// The study sent 10 in sequence and one burst otherwise. A number that the
/// user gives holds for every case, but never leaves a burst incomplete.
fn num_requests(experiment: Experiment, concurrency: u32, requests: Option<u32>) -> u32 {
    match (experiment, requests) {
        (Experiment::SequentialCold, None) => 10,
        (_, None) => concurrency,
        (_, Some(requests)) => requests.max(concurrency),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Order;

    fn subjects() -> Vec<Subject> {
        let subject = |name: &str, no_cold: Option<&str>| Subject {
            name: name.to_owned(),
            unusable: None,
            no_cold: no_cold.map(str::to_owned),
            holds: None,
        };
        vec![subject("embedded", None), subject("vllm", Some("not ours to stop"))]
    }

    #[test]
    fn defaults_are_the_study() {
        let cases = expand(&Plan::default(), &subjects());
        let of = |experiment| {
            let of_it = |c: &&Case| c.engine == 0 && c.experiment == Experiment::as_str(experiment);
            cases.iter().filter(of_it).collect::<Vec<_>>()
        };
        let sequential = of(Experiment::SequentialCold);
        assert_eq!((sequential[0].concurrency(), sequential[0].num_requests), (1, 10));
        assert_eq!(of(Experiment::ConcurrentWarm)[0].num_requests, 10);
        let batched = of(Experiment::BatchedWarm);
        assert_eq!(batched.len(), 10);
        assert!(batched.iter().all(|case| case.num_requests == case.concurrency()));
    }

    #[test]
    fn engine_that_cannot_be_cold_is_absent_with_its_reason_only_from_cold_cases() {
        let cases = expand(&Plan::default(), &subjects());
        for case in cases.iter().filter(|case| case.engine == 1) {
            let reason = case.absent.as_deref();
            assert_eq!(reason, case.cold.then_some("not ours to stop"));
        }
    }

    #[test]
    fn engines_alternate_and_share_the_prompts_of_a_load() {
        let cases = expand(&Plan::default(), &subjects());
        for pair in cases.chunks(2) {
            assert_eq!((pair[0].engine, pair[1].engine), (0, 1));
            assert_eq!(pair[0].load, pair[1].load);
        }
        assert_ne!(cases[0].load, cases[2].load);
    }

    #[test]
    fn rounds_turn_the_engines_round_and_repeat_no_prompt() {
        let plan = Plan { rounds: 2, ..Plan::default() };
        let cases = expand(&plan, &subjects());
        let (first, second) = cases.split_at(cases.len() / 2);
        for (pair, again) in first.chunks(2).zip(second.chunks(2)) {
            assert_eq!([pair[0].engine, pair[1].engine], [again[1].engine, again[0].engine]);
            assert_eq!((pair[0].round, again[0].round), (0, 1));
            assert_ne!(pair[0].load, again[0].load);
        }
    }

    #[test]
    fn engines_that_may_not_be_resident_together_run_a_round_each_at_a_stretch() {
        let resident = Some(Residency::One);
        let plan = Plan { rounds: 2, resident, ..Plan::default() };
        let cases = expand(&plan, &subjects());
        let mut stretches: Vec<_> = cases.iter().map(|case| (case.round, case.engine)).collect();
        stretches.dedup();
        assert_eq!(stretches, [(0, 0), (0, 1), (1, 1), (1, 0)]);
        let loads = |engine: usize| {
            cases.iter().filter(move |case| case.engine == engine).map(|case| case.load)
        };
        let ordered = |engine| loads(engine).collect::<Vec<_>>();
        assert_eq!(ordered(0), ordered(1), "prompts are shared all the same");
    }

    #[test]
    fn second_arms_mirror_the_first_and_have_prompts_of_their_own() {
        let plan = Plan { rounds: 2, aa: true, ..Plan::default() };
        let cases = expand(&plan, &subjects());
        assert_eq!(cases.len(), 2 * expand(&Plan { aa: false, ..plan }, &subjects()).len());
        let arms = |cases: &[Case]| cases.iter().map(|c| (c.engine, c.again)).collect::<Vec<_>>();
        let turns = [(0, false), (1, false), (1, true), (0, true)];
        assert_eq!(arms(&cases[..4]), turns);
        assert_eq!(
            arms(&cases[cases.len() / 2..][..4]),
            turns.into_iter().rev().collect::<Vec<_>>()
        );
        for load in cases.chunks(4) {
            let of = |again: bool| load.iter().filter(move |c| c.again == again).map(|c| c.load);
            assert_eq!(of(false).min(), of(false).max(), "engines share the prompts of an arm");
            assert_eq!(of(true).min(), of(true).max());
            assert_ne!(of(false).min(), of(true).min());
        }
        let mut loads: Vec<_> = cases.iter().map(|case| case.load).collect();
        loads.sort_unstable();
        loads.dedup();
        assert_eq!(loads.len(), cases.len() / 2, "no load is met twice");
        assert!(
            cases
                .iter()
                .filter(|case| case.again && case.cold && case.engine == 1)
                .all(|case| case.absent.is_some())
        );
    }

    #[test]
    fn stretches_follow_the_order_and_the_arms() {
        let resident = Some(Residency::One);
        let stretches = |order, seed| {
            let plan =
                Plan { rounds: 2, aa: true, order, resident, seed: Some(seed), ..Plan::default() };
            let cases = expand(&plan, &subjects());
            let mut turns: Vec<_> = cases.iter().map(|c| (c.round, c.engine, c.again)).collect();
            turns.dedup();
            turns
        };
        let first = [(0, 0, false), (0, 1, false), (0, 1, true), (0, 0, true)];
        let mirrored = stretches(Order::Mirrored, 1);
        assert_eq!(mirrored[..4], first);
        assert_eq!(mirrored[4..], [(1, 0, true), (1, 1, true), (1, 1, false), (1, 0, false)]);
        let shuffled: Vec<_> = (0..20).map(|seed| stretches(Order::Shuffled, seed)).collect();
        assert!(shuffled.iter().all(|turns| turns.len() == 8), "one stretch an engine and arm");
        assert!(shuffled.iter().any(|turns| turns[..4] != first));
    }

    #[test]
    fn requirements_are_of_the_cases_that_have_to_meet_them() {
        let text = "aa = true\nrequire = ['ttft_p90<1s', 'sequential-cold:ttft_p50<9s']\n";
        let cases = expand(&Plan::from_toml(text).unwrap(), &subjects());
        for case in &cases {
            let expected = match case.experiment.as_str() {
                _ if case.again => 0,
                "concurrent-cold" => 0,
                _ => 1,
            };
            assert_eq!(case.requirements.len(), expected, "{case:?}");
        }
    }

    #[test]
    fn point_that_cannot_hold_the_load_is_absent_from_it_with_its_numbers() {
        let text = "prompt_tokens = 60\nmax_tokens = 5\n[[load]]\nrate = 1\nprompt_tokens = \
                    'uniform:8-40'\noutput_tokens = 24\n[[load]]\nname = 'fits'\nrate = 1\n\
                    prompt_tokens = 40\noutput_tokens = 23\n[[load]]\nname = 'unbounded'\n\
                    rate = 1\nprompt_tokens = 'lognormal:40,40'\n";
        let mut plan = Plan::from_toml(text).unwrap();
        plan.experiments = vec![Experiment::ConcurrentWarm];
        let mut subjects = subjects();
        subjects[0].holds = Some(63);
        let cases = expand(&plan, &subjects);
        let absent = |name: &str, engine| {
            let case = cases.iter().find(|case| case.experiment == name && case.engine == engine);
            case.unwrap().absent.clone()
        };
        let reason = absent("poisson", 0).unwrap();
        assert!(
            reason.contains("63 tokens at most") && reason.contains("40 of prompt"),
            "{reason}"
        );
        assert!(absent("concurrent-warm", 0).is_some());
        assert_eq!((absent("fits", 0), absent("unbounded", 0)), (None, None));
        assert_eq!(absent("poisson", 1), None, "not a point of a sweep");
    }

    #[test]
    fn a_burst_is_never_left_incomplete() {
        let plan = Plan { requests: Some(3), concurrency: 8, ..Plan::default() };
        for case in expand(&plan, &subjects()) {
            assert!(case.num_requests >= case.concurrency());
        }
    }
}
