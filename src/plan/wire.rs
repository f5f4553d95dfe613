//! A plan as TOML. The types here mirror the file and go nowhere else.

mod lifecycle;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::load_spec::LoadSpec;
use super::{KvAxis, KvSweep, LoadPlan, Order, Plan, PlanError, PromptPlan, Residency, WarmUp};
use crate::engine::{EngineKind, EngineSpec};

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct WirePlan {
    name: Option<String>,
    analysis: Option<String>,
    model: Option<String>,
    experiments: Option<Vec<String>>,
    rounds: Option<u32>,
    order: Option<Order>,
    aa: Option<bool>,
    warm_up: Option<WireWarmUp>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    require: Vec<String>,
    stop_when_decided: Option<bool>,
    requests: Option<u32>,
    concurrency: Option<u32>,
    prompt: Option<String>,
    prompt_tokens: Option<u32>,
    same_prompt: Option<bool>,
    max_tokens: Option<u32>,
    temperature: Option<f64>,
    stop_at_eos: Option<bool>,
    seed: Option<u64>,
    load_format: Option<WireLoadFormat>,
    resident: Option<Residency>,
    kv_sweep: Option<BTreeMap<String, Vec<WireSetting>>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    engine: Vec<WireEngine>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    load: Vec<LoadSpec>,
}

/// A number of bursts, or a word.
#[derive(Debug, Deserialize, Serialize)]
#[serde(untagged)]
enum WireWarmUp {
    Bursts(i64),
    Word(String),
}

impl WireWarmUp {
    fn parse(self) -> Result<WarmUp, PlanError> {
        let text = match self {
            Self::Bursts(bursts) => bursts.to_string(),
            Self::Word(word) => word,
        };
        text.parse().map_err(PlanError::Word)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum WireLoadFormat {
    Auto,
    Dummy,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct WireEngine {
    name: Option<String>,
    kind: EngineKind,
    url: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    settings: BTreeMap<String, WireSetting>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lifecycle: Option<lifecycle::WireLifecycle>,
}

/// Numbers and switches may be written as such; a setting is text inside.
#[derive(Debug, Deserialize, Serialize)]
#[serde(untagged)]
enum WireSetting {
    Text(String),
    Whole(i64),
    Real(f64),
    Switch(bool),
}

impl WireSetting {
    fn text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Whole(number) => number.to_string(),
            Self::Real(number) => number.to_string(),
            Self::Switch(on) => on.to_string(),
        }
    }
}

pub(super) fn parse(text: &str) -> Result<Plan, PlanError> {
    let wire: WirePlan =
        toml::from_str(text).map_err(|error| PlanError::Syntax(one_line(&error.to_string())))?;
    let default = Plan::default();
    let prompt = match (wire.prompt, wire.prompt_tokens) {
        (Some(_), Some(_)) => return Err(PlanError::TwoPrompts),
        (Some(text), None) => PromptPlan::Question(text),
        (None, Some(num_tokens)) => PromptPlan::Synthetic { num_tokens },
        (None, None) => default.prompt,
    };
    let experiments = match wire.experiments {
        Some(names) => names.iter().map(|name| name.parse()).collect::<Result<_, _>>()?,
        // Loads are run alone unless experiments are asked for beside them.
        None if !wire.load.is_empty() => Vec::new(),
        None => default.experiments,
    };
    let loads = wire.load.into_iter().map(LoadPlan::new).collect::<Result<_, _>>()?;
    let requirements = wire.require.iter().map(|text| text.parse());
    let requirements = requirements.collect::<Result<_, _>>().map_err(PlanError::Word)?;
    let warm_up = wire.warm_up.map(WireWarmUp::parse).transpose()?;
    let mut engines = Vec::new();
    let mut lifecycles = BTreeMap::new();
    for mut wire in wire.engine {
        let lifecycle = wire.lifecycle.take();
        let spec = engine(wire)?;
        if let Some(lifecycle) = lifecycle {
            lifecycles.insert(spec.name.clone(), lifecycle::parse(&spec.name, lifecycle)?);
        }
        engines.push(spec);
    }
    let kv_sweep = wire.kv_sweep.map(kv_sweep).transpose()?;
    let plan = Plan {
        name: wire.name.unwrap_or(default.name),
        analysis: wire.analysis,
        model: wire.model.unwrap_or(default.model),
        engines,
        experiments,
        loads,
        rounds: wire.rounds.unwrap_or(default.rounds),
        order: wire.order.unwrap_or(default.order),
        aa: wire.aa.unwrap_or(default.aa),
        warm_up: warm_up.unwrap_or(default.warm_up),
        requirements,
        stop_when_decided: wire.stop_when_decided.unwrap_or(default.stop_when_decided),
        requests: wire.requests,
        concurrency: wire.concurrency.unwrap_or(default.concurrency),
        prompt,
        same_prompt: wire.same_prompt.unwrap_or(default.same_prompt),
        max_tokens: wire.max_tokens.unwrap_or(default.max_tokens),
        temperature: wire.temperature.unwrap_or(default.temperature),
        stop_at_eos: wire.stop_at_eos.unwrap_or(default.stop_at_eos),
        seed: wire.seed,
        dummy_weights: wire.load_format == Some(WireLoadFormat::Dummy),
        lifecycles,
        kv_sweep,
        resident: wire.resident,
    };
    plan.check()?;
    Ok(plan)
}

pub(super) fn render(plan: &Plan) -> String {
    let (prompt, prompt_tokens) = match &plan.prompt {
        PromptPlan::Question(text) => (Some(text.clone()), None),
        PromptPlan::Synthetic { num_tokens } => (None, Some(*num_tokens)),
    };
    let wire = WirePlan {
        name: Some(plan.name.clone()),
        analysis: plan.analysis.clone(),
        model: Some(plan.model.clone()),
        experiments: Some(plan.experiments.iter().map(|e| e.as_str().to_owned()).collect()),
        rounds: Some(plan.rounds),
        order: Some(plan.order),
        aa: Some(plan.aa),
        warm_up: Some(match plan.warm_up {
            WarmUp::Bursts(bursts) => WireWarmUp::Bursts(bursts.into()),
            word @ WarmUp::UntilFlat => WireWarmUp::Word(word.to_string()),
        }),
        require: plan.requirements.iter().map(ToString::to_string).collect(),
        stop_when_decided: Some(plan.stop_when_decided),
        requests: plan.requests,
        concurrency: Some(plan.concurrency),
        prompt,
        prompt_tokens,
        same_prompt: Some(plan.same_prompt),
        max_tokens: Some(plan.max_tokens),
        temperature: Some(plan.temperature),
        stop_at_eos: Some(plan.stop_at_eos),
        seed: plan.seed,
        load_format: Some(if plan.dummy_weights {
            WireLoadFormat::Dummy
        } else {
            WireLoadFormat::Auto
        }),
        load: plan.loads.iter().map(|load| load.spec.clone()).collect(),
        resident: plan.resident,
        kv_sweep: plan.kv_sweep.as_ref().map(wire_kv_sweep),
        engine: plan.engines.iter().map(|spec| wire_engine(plan, spec)).collect(),
    };
    // Every value above is a string, a number or a table: TOML can hold all of them.
    toml::to_string(&wire).unwrap_or_default()
}

fn engine(wire: WireEngine) -> Result<EngineSpec, PlanError> {
    let settings = wire.settings.into_iter().map(|(key, value)| (key, value.text())).collect();
    Ok(EngineSpec::new(wire.name.as_deref(), wire.kind, wire.url.as_deref(), settings)?)
}

fn wire_engine(plan: &Plan, spec: &EngineSpec) -> WireEngine {
    WireEngine {
        name: Some(spec.name.clone()),
        kind: spec.kind,
        url: spec.url.as_ref().map(ToString::to_string),
        settings: spec
            .settings
            .iter()
            .map(|(key, value)| (key.clone(), WireSetting::Text(value.clone())))
            .collect(),
        lifecycle: plan.lifecycles.get(&spec.name).map(lifecycle::render),
    }
}

fn kv_sweep(wire: BTreeMap<String, Vec<WireSetting>>) -> Result<KvSweep, PlanError> {
    let axis = |(setting, values): (String, Vec<WireSetting>)| {
        KvAxis::new(&setting, values.into_iter().map(WireSetting::text).collect())
    };
    KvSweep::new(wire.into_iter().map(axis).collect::<Result<_, _>>()?)
}

fn wire_kv_sweep(sweep: &KvSweep) -> BTreeMap<String, Vec<WireSetting>> {
    let text = |value: &String| WireSetting::Text(value.clone());
    sweep.axes().map(|(key, values)| (key.to_owned(), values.iter().map(text).collect())).collect()
}

/// TOML errors draw the line they complain about; messages here are one line.
fn one_line(message: &str) -> String {
    let mut parts = message.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = parts.next().unwrap_or_default().to_owned();
    let last = parts.rfind(|line| !line.contains('|'));
    last.map_or(first.clone(), |last| format!("{first}: {last}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plan_survives_its_own_toml() {
        let mut plan = Plan { seed: Some(7), requests: Some(20), ..Plan::default() };
        plan.prompt = PromptPlan::Synthetic { num_tokens: 256 };
        plan.engines = vec!["ours:embedded?kv_blocks=64".parse().unwrap()];
        assert_eq!(Plan::from_toml(&plan.to_toml()), Ok(plan));
        assert_eq!(Plan::from_toml(""), Ok(Plan::default()));
    }

    #[test]
    fn arrangement_survives_its_own_toml_and_what_is_wrong_with_it_is_named() {
        let text = "rounds = 3\norder = 'shuffled'\naa = true\nwarm_up = 2\n\
                    require = ['ttft_p90<=500ms', 'sequential-cold:e2el_p50<9s@95%']\n";
        let plan = Plan::from_toml(text).unwrap();
        assert_eq!((plan.order, plan.aa, plan.warm_up), (Order::Shuffled, true, WarmUp::Bursts(2)));
        assert_eq!(Plan::from_toml(&plan.to_toml()), Ok(plan));
        for (text, expected) in [
            ("order = 'random'", "random"),
            ("warm_up = 'flat'", "warm-up `flat`"),
            ("warm_up = -1", "warm-up `-1`"),
            ("require = ['ttft<1s']", "requirement `ttft<1s`"),
            ("require = ['peak:ttft_p90<1s']", "of no case of this plan"),
            ("experiments = ['sequential-cold']\nrequire = ['ttft_p90<1s']", "of no case"),
            ("stop_when_decided = true", "needs requirements"),
            (
                "stop_when_decided = true\naa = true\nrequire = ['ttft_p90<1s']",
                "exclude each other",
            ),
        ] {
            let message = Plan::from_toml(text).unwrap_err().to_string();
            assert!(message.contains(expected), "{text}: {message}");
        }
        let sweep = "require = ['poisson-sweep@5:ttft_p90<1s']\n[[load]]\nsweep = [5, 6]\n";
        assert!(Plan::from_toml(sweep).is_ok());
        assert!(Plan::from_toml(&sweep.replace("@5", "@7")).is_err());
    }

    #[test]
    fn settings_may_be_numbers_and_switches() {
        let text = "[[engine]]\nkind = 'ollama'\nsettings = { num_ctx = 4096 }\n";
        let plan = Plan::from_toml(text).unwrap();
        assert_eq!(plan.engines[0].number("num_ctx"), Some(4096));
        let text = "[[engine]]\nkind = 'embedded'\nsettings = { enable_prefix_caching = false }\n";
        let plan = Plan::from_toml(text).unwrap();
        assert_eq!(plan.engines[0].setting("enable_prefix_caching"), Some("false"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let message = |text: &str| Plan::from_toml(text).unwrap_err().to_string();
        assert!(message("concurency = 3").contains("concurency"), "{}", message("concurency = 3"));
        assert!(message("experiments = ['warm']").contains("sequential-cold"));
        assert!(message("concurrency = 0").contains("`concurrency` is 0: expected 1 to"));
        assert!(message("prompt = 'a'\nprompt_tokens = 3").contains("not both"));
        assert!(message("[[engine]]\nkind = 'sglang'").contains("sglang"));
        assert!(message("[[engine]]\nkind='vllm'\n[[engine]]\nkind='vllm'").contains("NAME:KIND"));
        assert!(!message("concurency = 3").contains('\n'));
    }

    #[test]
    fn loads_survive_their_own_toml_and_stand_alone_unless_asked_otherwise() {
        let text = "[[load]]\nrate = 4\nduration_s = 30\nslo = 'ttft_p90<500ms'\n\
                    [[load]]\nname = 'sweep'\nsweep = [1, 2.5]\nprompt_tokens = 'uniform:8-64'\n";
        let plan = Plan::from_toml(text).unwrap();
        assert_eq!((plan.experiments.len(), plan.loads.len()), (0, 2));
        assert_eq!(plan.loads[0].name, "poisson");
        assert_eq!(Plan::from_toml(&plan.to_toml()), Ok(plan));
        let both = Plan::from_toml(&format!("experiments = ['concurrent-warm']\n{text}")).unwrap();
        assert_eq!((both.experiments.len(), both.loads.len()), (1, 2));
    }

    #[test]
    fn what_is_wrong_with_a_load_is_named() {
        let message = |fields: &str| {
            let text = format!("[[load]]\nname = 'peak'\n{fields}");
            Plan::from_toml(&text).unwrap_err().to_string()
        };
        for (fields, expected) in [
            ("", "load `peak`: it has no `rate`"),
            ("rate = 0", "`rate` is 0: expected 0.001 to"),
            ("rate = -3", "`rate` is -3"),
            ("rate = inf", "`rate` is inf"),
            ("rates = 3", "rates"),
            ("rate = 1\narrival = 'weibull'", "`arrival` is `weibull`: expected constant"),
            ("rate = 1\nburstiness = 2.0", "`burstiness` means nothing to arrivals that are not"),
            ("rate = 1\narrival = 'gamma'\nburstiness = 0", "`burstiness` is 0: expected"),
            ("rate = 1\nramp_to = 3\nrequests = 9", "a ramp needs `ramp_s`"),
            ("sweep = []", "`sweep` has 0 rates"),
            ("sweep = [1, 1]", "`sweep` has the rate 1 twice"),
            ("sweep = 'fast'", "`sweep` is `fast`: expected auto"),
            ("sweep = [1, 2]\nrate = 1", "give one"),
            ("rate = 1000\nduration_s = 3600", "makes 3600000 requests"),
            ("rate = 1\nslo = 'ttft<5'", "objective `ttft<5` is not understood"),
            ("rate = 1\nprompt_tokens = 'zipf:1'", "`prompt_tokens`: `zipf:1` is no length"),
            ("rate = 1\nspeed = 2.0", "`speed` means nothing"),
            ("arrival = 'trace'", "from `trace`, the path of its file"),
            ("trace = 'x.jsonl'\nrate = 2", "`rate` means nothing to a trace"),
            ("trace = 'x.jsonl'\ntrace_format = 'csv'", "expected mooncake, burstgpt or requests"),
            ("arrival = 'closed'\nrate = 2", "`rate` means nothing to a closed loop"),
            ("rate = 1\nprefix_groups = 2", "`prefix_groups` needs `prefix_tokens`"),
            ("rate = 1\nthink_s = 2", "`think_s` needs conversations"),
        ] {
            assert!(message(fields).contains(expected), "{fields}: {}", message(fields));
        }
        let twice = "[[load]]\nrate = 1\n[[load]]\nrate = 2\n";
        assert!(Plan::from_toml(twice).unwrap_err().to_string().contains("has its name"));
    }
}
