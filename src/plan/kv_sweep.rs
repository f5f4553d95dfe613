//! An axis over KV settings: each engine of a plan becomes one engine a point,
//! of which one at a time is resident. Knows which settings there are and where
//! an engine takes them, not what comes of them.

use std::collections::BTreeMap;
use std::str::FromStr;

use super::lifecycle::EnvValue;
use super::{LifecyclePlan, Plan, PlanError, Residency};
use crate::engine::spec::{KvPoint, check_value};
use crate::engine::{EngineKind, EngineSpec};
use crate::units::parse_bytes;

/// What can be varied, in the order in which names of points say it.
pub const SETTINGS: [&str; 5] =
    ["kv_blocks", "kv_memory", "block_size", "max_model_len", "enable_prefix_caching"];

/// Points of a sweep at most: each is an engine that is loaded.
const MAX_POINTS: usize = 64;

/// Values of one setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvAxis {
    setting: &'static str,
    values: Vec<String>,
}

/// Every combination of the values of its axes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvSweep {
    axes: Vec<KvAxis>,
}

impl KvAxis {
    /// An axis over a setting.
    ///
    /// # Errors
    /// [`PlanError::KvSweep`] names a setting that cannot be varied, and a value
    /// that it does not take or has twice.
    pub fn new(setting: &str, values: Vec<String>) -> Result<Self, PlanError> {
        let known = SETTINGS.into_iter().find(|known| *known == setting).ok_or_else(|| {
            wrong(format!("`{setting}` cannot be varied: expected {}", SETTINGS.join(", ")))
        })?;
        if values.is_empty() {
            return Err(wrong(format!("`{setting}` has no values")));
        }
        for (i, value) in values.iter().enumerate() {
            check_value(setting, value).map_err(|error| wrong(error.to_string()))?;
            if values[..i].contains(value) {
                return Err(wrong(format!("`{setting}` has the value {value} twice")));
            }
        }
        Ok(Self { setting: known, values })
    }
}

impl FromStr for KvAxis {
    type Err = PlanError;

    /// Reads `SETTING=VALUE,VALUE,...`, as `--sweep-kv` takes it.
    fn from_str(text: &str) -> Result<Self, PlanError> {
        let (setting, values) = text.split_once('=').ok_or_else(|| {
            wrong(format!("`{text}` is no SETTING=VALUE,VALUE,..., such as kv_blocks=64,128"))
        })?;
        Self::new(setting, values.split(',').map(|value| value.trim().to_owned()).collect())
    }
}

impl KvSweep {
    /// A sweep over the product of its axes.
    ///
    /// # Errors
    /// [`PlanError::KvSweep`] for no axis, two of one setting, two that size the
    /// pool, and too many points.
    pub fn new(mut axes: Vec<KvAxis>) -> Result<Self, PlanError> {
        axes.sort_by_key(|axis| SETTINGS.iter().position(|known| *known == axis.setting));
        if axes.is_empty() {
            return Err(wrong(format!("it varies nothing: expected {}", SETTINGS.join(", "))));
        }
        if let Some(twice) = axes.windows(2).find(|pair| pair[0].setting == pair[1].setting) {
            return Err(wrong(format!("`{}` is varied twice", twice[0].setting)));
        }
        let varies = |setting| axes.iter().any(|axis| axis.setting == setting);
        if varies("kv_blocks") && varies("kv_memory") {
            return Err(wrong("`kv_blocks` and `kv_memory` say the same thing twice".to_owned()));
        }
        let points = axes.iter().map(|axis| axis.values.len()).try_fold(1, usize::checked_mul);
        if points.is_none_or(|points| points > MAX_POINTS) {
            let points = points.map_or("too many".to_owned(), |points| points.to_string());
            return Err(wrong(format!("it has {points} points: expected at most {MAX_POINTS}")));
        }
        Ok(Self { axes })
    }

    /// Its axes: settings with their values.
    pub fn axes(&self) -> impl Iterator<Item = (&'static str, &[String])> {
        self.axes.iter().map(|axis| (axis.setting, axis.values.as_slice()))
    }

    /// What is set at each point, the last axis varied fastest.
    fn points(&self) -> Vec<Vec<(&'static str, &str)>> {
        let mut points: Vec<Vec<(&'static str, &str)>> = vec![Vec::new()];
        for (setting, values) in self.axes() {
            let mut longer = Vec::new();
            for point in &points {
                for value in values {
                    longer.push([point.as_slice(), &[(setting, value.as_str())]].concat());
                }
            }
            points = longer;
        }
        points
    }
}

/// The plan with an engine for each point of its sweep, each with a lifecycle of
/// its own where the engine has one; the plan itself where nothing is swept.
///
/// # Errors
/// [`PlanError::KvSweep`] where an engine cannot be told what is varied.
pub(super) fn apply(plan: &Plan) -> Result<Plan, PlanError> {
    let Some(sweep) = &plan.kv_sweep else { return Ok(plan.clone()) };
    if plan.resident == Some(Residency::Together) {
        let what = "its points are never resident together: leave `resident` out";
        return Err(wrong(what.to_owned()));
    }
    let mut swept = Plan {
        engines: Vec::new(),
        lifecycles: BTreeMap::new(),
        resident: Some(Residency::One),
        ..plan.clone()
    };
    let embedded;
    let engines = if plan.engines.is_empty() {
        embedded = [EngineSpec::new(None, EngineKind::Embedded, None, BTreeMap::new())?];
        embedded.as_slice()
    } else {
        plan.engines.as_slice()
    };
    for spec in engines {
        for point in sweep.points() {
            let (variant, lifecycle) = variant(plan, spec, &point)?;
            if let Some(lifecycle) = lifecycle {
                swept.lifecycles.insert(variant.name.clone(), lifecycle);
            }
            swept.engines.push(variant);
        }
    }
    Ok(swept)
}

fn variant(
    plan: &Plan,
    spec: &EngineSpec,
    point: &[(&'static str, &str)],
) -> Result<(EngineSpec, Option<LifecyclePlan>), PlanError> {
    let named: Vec<String> = point.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let settings = point.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let settings: BTreeMap<String, String> = settings.collect();
    let mut variant = EngineSpec {
        name: format!("{} {}", spec.name, named.join(" ")),
        kv_point: Some(KvPoint { of: spec.name.clone(), settings: settings.clone() }),
        ..spec.clone()
    };
    if spec.kind == EngineKind::Embedded {
        for (key, _) in point {
            let said = |key: &&str| spec.settings.contains_key(*key);
            let pool = ["kv_blocks", "kv_memory"];
            let same = if pool.contains(key) { &pool[..] } else { std::slice::from_ref(key) };
            if let Some(said) = same.iter().find(|key| said(key)) {
                let what = format!(
                    "`{key}` is varied, and engine {} sets `{said}`: leave one out",
                    spec.name
                );
                return Err(wrong(what));
            }
        }
        variant.settings.extend(settings);
        return Ok((variant, None));
    }
    let Some(LifecyclePlan::Command(command)) = plan.lifecycles.get(&spec.name) else {
        let key = point.first().map_or("kv_blocks", |(key, _)| key);
        return Err(wrong(format!(
            "engine {} cannot be told `{key}`: it needs a command that starts it, with {{{key}}} in \
             it (--start, or kind = \"command\" or \"container\" in its lifecycle)",
            spec.name
        )));
    };
    let mut command = command.clone();
    for (key, value) in point {
        let mut found = false;
        let mut fill = |text: &mut String| {
            for (placeholder, value) in placeholders(key, value) {
                found |= text.contains(&placeholder);
                *text = text.replace(&placeholder, &value);
            }
        };
        command.command.iter_mut().for_each(&mut fill);
        command.container.iter_mut().flat_map(|c| &mut c.arguments).for_each(&mut fill);
        for value in command.env.values_mut() {
            if let EnvValue::Text(text) = value {
                fill(text);
            }
        }
        if !found {
            let known: Vec<String> =
                placeholders(key, value).into_iter().map(|(placeholder, _)| placeholder).collect();
            return Err(wrong(format!(
                "`{key}` is varied, and nothing in the command of engine {} takes it: put {} \
                 where its value belongs",
                spec.name,
                known.join(" or ")
            )));
        }
    }
    Ok((variant, Some(LifecyclePlan::Command(command))))
}

/// What stands in a command for a value, and what is put there: sizes in bytes,
/// and for the prefix cache also vLLM's pair of flags.
fn placeholders(key: &str, value: &str) -> Vec<(String, String)> {
    let bytes = (key == "kv_memory").then(|| parse_bytes(value).ok()).flatten();
    let plain = bytes.map_or_else(|| value.to_owned(), |bytes| bytes.to_string());
    let mut found = vec![(format!("{{{key}}}"), plain)];
    if key == "enable_prefix_caching" {
        let no = if value == "true" { "" } else { "no-" };
        found.push(("{prefix_caching_flag}".to_owned(), format!("--{no}enable-prefix-caching")));
    }
    found
}

const fn wrong(what: String) -> PlanError {
    PlanError::KvSweep(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn swept(text: &str) -> Result<Plan, PlanError> {
        Plan::from_toml(text)?.swept()
    }

    const VLLM: &str = "[[engine]]\nkind = 'vllm'\n[engine.lifecycle]\nkind = 'command'\n";

    #[test]
    fn embedded_engine_becomes_one_engine_a_point() {
        let text = "[kv_sweep]\nenable_prefix_caching = [true, false]\nkv_blocks = [16, '32']\n\
                    [[engine]]\nkind = 'embedded'\nsettings = { threads = 1 }\n";
        let plan = Plan::from_toml(text).unwrap();
        assert_eq!(Plan::from_toml(&plan.to_toml()), Ok(plan.clone()));
        let swept = plan.swept().unwrap();
        let names: Vec<&str> = swept.engines.iter().map(|spec| spec.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "embedded kv_blocks=16 enable_prefix_caching=true",
                "embedded kv_blocks=16 enable_prefix_caching=false",
                "embedded kv_blocks=32 enable_prefix_caching=true",
                "embedded kv_blocks=32 enable_prefix_caching=false",
            ]
        );
        assert_eq!(swept.residency(), Residency::One);
        let last = &swept.engines[3];
        assert_eq!((last.number("kv_blocks"), last.number("threads")), (Some(32), Some(1)));
        assert_eq!(last.kv_point.as_ref().map(|point| point.of.as_str()), Some("embedded"));
        assert_eq!(swept.check(), Ok(()));
    }

    #[test]
    fn plan_without_engines_sweeps_the_embedded_one() {
        let swept = swept("[kv_sweep]\nmax_model_len = [256]\n").unwrap();
        assert_eq!(swept.engines[0].name, "embedded max_model_len=256");
    }

    #[test]
    fn command_is_told_each_value_where_its_placeholder_stands() {
        let text = format!(
            "{VLLM}command = 'serve --port {{port}} --blocks {{kv_blocks}} {{prefix_caching_flag}}'\n\
             env = {{ LEN = '{{max_model_len}}' }}\n\
             [kv_sweep]\nkv_blocks = [64]\nenable_prefix_caching = [false]\nmax_model_len = [99]\n"
        );
        let swept = swept(&text).unwrap();
        assert_eq!(swept.engines.len(), 1);
        let LifecyclePlan::Command(command) = &swept.lifecycles[&swept.engines[0].name] else {
            panic!("{swept:?}")
        };
        let expected =
            ["serve", "--port", "{port}", "--blocks", "64", "--no-enable-prefix-caching"];
        assert_eq!(command.command, expected);
        assert_eq!(command.env["LEN"], EnvValue::Text("99".to_owned()));
        assert_eq!(placeholders("kv_memory", "1KiB")[0].1, "1024");
    }

    #[test]
    fn what_is_wrong_with_an_axis_is_named() {
        let message = |text: &str| Plan::from_toml(text).unwrap_err().to_string();
        let axis = |line: &str| message(&format!("[kv_sweep]\n{line}\n"));
        for (line, expected) in [
            ("", "varies nothing"),
            ("kv_blocks = []", "`kv_blocks` has no values"),
            ("kv_blocks = [0]", "setting `kv_blocks` is `0`: expected a positive whole number"),
            ("kv_blocks = [16, 'many']", "`kv_blocks` is `many`"),
            ("kv_blocks = [-1]", "`kv_blocks` is `-1`"),
            ("kv_blocks = [1.5]", "`kv_blocks` is `1.5`"),
            ("kv_blocks = [1, 1]", "value 1 twice"),
            ("kv_memory = ['lots']", "`lots` is no size"),
            ("enable_prefix_caching = ['maybe']", "expected true or false"),
            ("gpu_memory_utilization = [0.5]", "gpu_memory_utilization"),
            ("max_num_seqs = [1]", "`max_num_seqs` cannot be varied: expected kv_blocks, "),
            ("kv_blocks = [1]\nkv_memory = ['1MiB']", "say the same thing twice"),
            (
                "kv_blocks = [1, 2, 3, 4, 5, 6, 7, 8, 9]\nblock_size = [1, 2, 3, 4, 5, 6, 7, 8]",
                "72",
            ),
        ] {
            assert!(axis(line).contains(expected), "{line}: {}", axis(line));
        }
        let twice = "[kv_sweep]\nkv_blocks = [1]\n[[engine]]\nkind = 'embedded'\n\
                     settings = { kv_memory = '1MiB' }\n";
        assert!(message(twice).contains("engine embedded sets `kv_memory`"));
        let together = "resident = 'together'\n[kv_sweep]\nkv_blocks = [1]\n";
        assert!(message(together).contains("never resident together"));
        assert!("kv_blocks".parse::<KvAxis>().unwrap_err().to_string().contains("SETTING=VALUE"));
        assert!("kv_blocks=8,x".parse::<KvAxis>().unwrap_err().to_string().contains("`x`"));
    }

    #[test]
    fn engine_that_cannot_be_told_a_value_is_named() {
        let message = |text: &str| Plan::from_toml(text).unwrap_err().to_string();
        let sweep = "[kv_sweep]\nkv_blocks = [64]\n";
        let external = message(&format!("[[engine]]\nkind = 'vllm'\n{sweep}"));
        assert!(external.contains("engine vllm cannot be told `kv_blocks`"), "{external}");
        assert!(external.contains("with {kv_blocks} in it"), "{external}");
        let deaf = message(&format!("{VLLM}command = 'serve {{block_size}}'\n{sweep}"));
        assert!(deaf.contains("nothing in the command of engine vllm takes it"), "{deaf}");
        assert!(deaf.contains("put {kv_blocks} where"), "{deaf}");
    }
}
