//! `[engine.lifecycle]` of a plan as TOML.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use url::Url;

use crate::plan::PlanError;
use crate::plan::cloud_run::{
    ADMIN_URL, CloudRunPlan, ColdBy, METADATA_URL, METRIC_LAG_S, MONITORING_URL, READY_TIMEOUT_S,
    SCALE_TO_ZERO_TIMEOUT_S,
};
use crate::plan::command_line::split_words;
use crate::plan::lifecycle::{
    Cold, CommandPlan, ContainerPlan, EnvValue, LifecycleError, LifecyclePlan, PortPlan, StopSignal,
};

#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum WireLifecycle {
    External {},
    Command(Box<WireCommand>),
    Container(Box<WireCommand>),
    Sleep {
        level: Option<u8>,
    },
    #[serde(rename = "cloud-run")]
    CloudRun(Box<WireCloudRun>),
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WireCloudRun {
    project: String,
    region: String,
    service: String,
    cold_by: Option<ColdBy>,
    base_url: Option<String>,
    monitoring_url: Option<String>,
    metadata_url: Option<String>,
    identity_token_env: Option<String>,
    access_token_env: Option<String>,
    unauthenticated: Option<bool>,
    scale_to_zero_timeout_s: Option<u32>,
    ready_timeout_s: Option<u32>,
    metric_lag_s: Option<u32>,
}

/// A container is a command with a few fields more.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WireCommand {
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<WireWords>,
    runtime: Option<String>,
    image: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    arguments: Vec<String>,
    container_port: Option<u16>,
    cwd: Option<String>,
    log: Option<String>,
    port: Option<WirePort>,
    ready: Option<String>,
    ready_timeout_s: Option<u32>,
    stop_signal: Option<StopSignal>,
    stop_grace_s: Option<u32>,
    cold: Option<Vec<Cold>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    weights: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    compile_cache_env: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    env: BTreeMap<String, WireValue>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(untagged)]
enum WireWords {
    Line(String),
    Words(Vec<String>),
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(untagged)]
enum WirePort {
    Fixed(u16),
    Word(WirePortWord),
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum WirePortWord {
    Free,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(untagged)]
enum WireValue {
    Text(String),
    From(WireFrom),
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct WireFrom {
    from: String,
}

/// What a plan says, checked.
pub(super) fn parse(engine: &str, wire: WireLifecycle) -> Result<LifecyclePlan, PlanError> {
    let wrong = |field, got: String, expected: &str| LifecycleError::Field {
        engine: engine.to_owned(),
        field,
        got,
        expected: expected.to_owned(),
    };
    Ok(match wire {
        WireLifecycle::External {} => LifecyclePlan::External,
        WireLifecycle::Sleep { level } => match level.unwrap_or(1) {
            level @ (1 | 2) => LifecyclePlan::Sleep { level },
            other => return Err(wrong("level", other.to_string(), "1 or 2").into()),
        },
        WireLifecycle::Command(wire) => {
            let foreign = [
                ("runtime", wire.runtime.is_some()),
                ("image", wire.image.is_some()),
                ("arguments", !wire.arguments.is_empty()),
                ("container_port", wire.container_port.is_some()),
            ];
            if let Some((field, _)) = foreign.iter().find(|(_, given)| *given) {
                let expected = "no such field but with kind = \"container\"";
                return Err(wrong(field, "given".to_owned(), expected).into());
            }
            LifecyclePlan::Command(command(*wire, None)?)
        }
        WireLifecycle::Container(wire) => {
            let image = wire
                .image
                .clone()
                .ok_or_else(|| wrong("image", "absent".to_owned(), "the image of the container"))?;
            let container = ContainerPlan {
                runtime: wire.runtime.clone().unwrap_or_else(|| "docker".to_owned()),
                image,
                arguments: wire.arguments.clone(),
                port: wire.container_port,
            };
            LifecyclePlan::Command(command(*wire, Some(container))?)
        }
        WireLifecycle::CloudRun(wire) => LifecyclePlan::CloudRun(cloud_run(engine, *wire)?),
    })
}

fn cloud_run(engine: &str, wire: WireCloudRun) -> Result<CloudRunPlan, LifecycleError> {
    let url = |field, text: Option<String>, default: &str| -> Result<Url, LifecycleError> {
        text.as_deref().unwrap_or(default).parse().map_err(|error| LifecycleError::Field {
            engine: engine.to_owned(),
            field,
            got: format!("no URL ({error})"),
            expected: "an http:// or https:// URL".to_owned(),
        })
    };
    Ok(CloudRunPlan {
        project: wire.project,
        region: wire.region,
        service: wire.service,
        cold_by: wire.cold_by.unwrap_or_default(),
        base_url: url("base_url", wire.base_url, ADMIN_URL)?,
        monitoring_url: url("monitoring_url", wire.monitoring_url, MONITORING_URL)?,
        metadata_url: url("metadata_url", wire.metadata_url, METADATA_URL)?,
        identity_token_env: wire.identity_token_env,
        access_token_env: wire.access_token_env,
        unauthenticated: wire.unauthenticated.unwrap_or(false),
        scale_to_zero_timeout_s: wire.scale_to_zero_timeout_s.unwrap_or(SCALE_TO_ZERO_TIMEOUT_S),
        ready_timeout_s: wire.ready_timeout_s.unwrap_or(READY_TIMEOUT_S),
        metric_lag_s: wire.metric_lag_s.unwrap_or(METRIC_LAG_S),
    })
}

fn render_cloud_run(plan: &CloudRunPlan) -> WireLifecycle {
    WireLifecycle::CloudRun(Box::new(WireCloudRun {
        project: plan.project.clone(),
        region: plan.region.clone(),
        service: plan.service.clone(),
        cold_by: Some(plan.cold_by),
        base_url: Some(plan.base_url.to_string()),
        monitoring_url: Some(plan.monitoring_url.to_string()),
        metadata_url: Some(plan.metadata_url.to_string()),
        identity_token_env: plan.identity_token_env.clone(),
        access_token_env: plan.access_token_env.clone(),
        unauthenticated: Some(plan.unauthenticated),
        scale_to_zero_timeout_s: Some(plan.scale_to_zero_timeout_s),
        ready_timeout_s: Some(plan.ready_timeout_s),
        metric_lag_s: Some(plan.metric_lag_s),
    }))
}

fn command(
    wire: WireCommand,
    container: Option<ContainerPlan>,
) -> Result<CommandPlan, LifecycleError> {
    let words = match wire.command {
        Some(WireWords::Line(line)) => split_words(&line)?,
        Some(WireWords::Words(words)) => words,
        None => Vec::new(),
    };
    let default = CommandPlan::new(words);
    let env = wire.env.into_iter().map(|(name, value)| match value {
        WireValue::Text(text) => (name, EnvValue::Text(text)),
        WireValue::From(WireFrom { from }) => (name, EnvValue::From(from)),
    });
    Ok(CommandPlan {
        container,
        cwd: wire.cwd,
        env: env.collect(),
        log: wire.log,
        port: match wire.port {
            None => PortPlan::Auto,
            Some(WirePort::Fixed(port)) => PortPlan::Fixed(port),
            Some(WirePort::Word(WirePortWord::Free)) => PortPlan::Free,
        },
        ready: wire.ready,
        ready_timeout_s: wire.ready_timeout_s.unwrap_or(default.ready_timeout_s),
        stop_signal: wire.stop_signal.unwrap_or(default.stop_signal),
        stop_grace_s: wire.stop_grace_s.unwrap_or(default.stop_grace_s),
        cold: wire.cold.unwrap_or(default.cold),
        weights: wire.weights,
        compile_cache_env: wire.compile_cache_env,
        command: default.command,
    })
}

/// The same as TOML, every default spelled out.
pub(super) fn render(plan: &LifecyclePlan) -> WireLifecycle {
    let plan = match plan {
        LifecyclePlan::External => return WireLifecycle::External {},
        LifecyclePlan::Sleep { level } => return WireLifecycle::Sleep { level: Some(*level) },
        LifecyclePlan::CloudRun(plan) => return render_cloud_run(plan),
        LifecyclePlan::Command(plan) => plan,
    };
    let container = plan.container.as_ref();
    let value = |value: &EnvValue| match value {
        EnvValue::Text(text) => WireValue::Text(text.clone()),
        EnvValue::From(from) => WireValue::From(WireFrom { from: from.clone() }),
    };
    let wire = Box::new(WireCommand {
        command: Some(WireWords::Words(plan.command.clone())),
        runtime: container.map(|container| container.runtime.clone()),
        image: container.map(|container| container.image.clone()),
        arguments: container.map(|container| container.arguments.clone()).unwrap_or_default(),
        container_port: container.and_then(|container| container.port),
        cwd: plan.cwd.clone(),
        log: plan.log.clone(),
        port: match plan.port {
            PortPlan::Auto => None,
            PortPlan::Free => Some(WirePort::Word(WirePortWord::Free)),
            PortPlan::Fixed(port) => Some(WirePort::Fixed(port)),
        },
        ready: plan.ready.clone(),
        ready_timeout_s: Some(plan.ready_timeout_s),
        stop_signal: Some(plan.stop_signal),
        stop_grace_s: Some(plan.stop_grace_s),
        cold: Some(plan.cold.clone()),
        weights: plan.weights.clone(),
        compile_cache_env: plan.compile_cache_env.clone(),
        env: plan.env.iter().map(|(name, of)| (name.clone(), value(of))).collect(),
    });
    if container.is_some() { WireLifecycle::Container(wire) } else { WireLifecycle::Command(wire) }
}

#[cfg(test)]
mod tests {
    use crate::plan::cloud_run::ColdBy;
    use crate::plan::lifecycle::{Cold, EnvValue, LifecyclePlan, PortPlan, StopSignal};
    use crate::plan::{Plan, Residency};

    const TEXT: &str = r#"
        resident = "together"
        [[engine]]
        name = "ours"
        kind = "openai"
        [engine.lifecycle]
        kind = "command"
        command = "serve --port {port} --name 'a b'"
        port = 8123
        stop_signal = "INT"
        cold = ["process", "page-cache"]
        weights = ["weights/*.safetensors"]
        env = { LEVEL = "2", HF_TOKEN = { from = "TOKEN" } }
        [[engine]]
        name = "boxed"
        kind = "vllm"
        [engine.lifecycle]
        kind = "container"
        image = "engine:1"
        container_port = 8000
        [[engine]]
        kind = "vllm"
        [engine.lifecycle]
        kind = "sleep"
    "#;

    const CLOUD_RUN: &str = r#"
        [[engine]]
        kind = "ollama"
        url = "https://ollama-abc-uc.a.run.app"
        [engine.lifecycle]
        kind = "cloud-run"
        project = "mine"
        region = "us-central1"
        service = "ollama"
        access_token_env = "ACCESS"
    "#;

    #[test]
    fn service_on_cloud_run_survives_its_own_toml() {
        let plan = Plan::from_toml(CLOUD_RUN).unwrap();
        assert_eq!(Plan::from_toml(&plan.to_toml()), Ok(plan.clone()));
        assert_eq!(plan.residency(), Residency::One);
        let LifecyclePlan::CloudRun(run) = &plan.lifecycles["ollama"] else { panic!("{plan:?}") };
        assert_eq!(run.resource(), "projects/mine/locations/us-central1/services/ollama");
        assert_eq!(run.base_url.as_str(), "https://run.googleapis.com/");
        assert_eq!(run.cold_by, ColdBy::Idle);
    }

    #[test]
    fn what_is_wrong_with_a_service_on_cloud_run_is_named() {
        let refused = |from: &str, to: &str| {
            assert!(CLOUD_RUN.contains(from));
            Plan::from_toml(&CLOUD_RUN.replace(from, to)).unwrap_err().to_string()
        };
        assert!(refused("url = ", "# ").contains("needs its service's `url`"));
        assert!(refused("\"mine\"", "\"mi ne\"").contains("project is `mi ne`"));
        assert!(refused("\"mine\"", "\"../x\"").contains("project"));
        assert!(refused("access_token_env", "colour").contains("colour"));
        let with = |extra: &str| refused("service = ", &format!("{extra}\nservice = "));
        assert!(with("base_url = 'ftp://x'").contains("base_url"));
        assert!(!with("base_url = 'http://a:hush@x'").contains("hush"));
        assert!(with("scale_to_zero_timeout_s = 60").contains("more than metric_lag_s, 240 s"));
        assert!(with("metric_lag_s = 0").contains("metric_lag_s is 0"));
        assert!(with("unauthenticated = true\nidentity_token_env = 'T'").contains("absent where"));
        let together = Plan::from_toml(&format!("resident = 'together'\n{CLOUD_RUN}"));
        assert!(together.unwrap_err().to_string().contains("goes cold on Cloud Run"));
    }

    #[test]
    fn lifecycle_survives_its_own_toml() {
        let plan = Plan::from_toml(TEXT).unwrap();
        assert_eq!(Plan::from_toml(&plan.to_toml()), Ok(plan.clone()));
        assert_eq!(plan.resident, Some(Residency::Together));
        let LifecyclePlan::Command(ours) = &plan.lifecycles["ours"] else { panic!("{plan:?}") };
        assert_eq!(ours.command, ["serve", "--port", "{port}", "--name", "a b"]);
        assert_eq!((ours.port, ours.stop_signal), (PortPlan::Fixed(8123), StopSignal::Int));
        assert_eq!(ours.cold, [Cold::Process, Cold::PageCache]);
        assert_eq!(ours.env["HF_TOKEN"], EnvValue::From("TOKEN".to_owned()));
        let LifecyclePlan::Command(boxed) = &plan.lifecycles["boxed"] else { panic!("{plan:?}") };
        assert_eq!(boxed.container.as_ref().unwrap().runtime, "docker");
        assert_eq!(plan.lifecycles["vllm"], LifecyclePlan::Sleep { level: 1 });
    }

    #[test]
    fn what_is_wrong_with_a_lifecycle_is_named() {
        let message = |engine: &str, lifecycle: &str| {
            let text = format!("[[engine]]\n{engine}\n[engine.lifecycle]\n{lifecycle}\n");
            Plan::from_toml(&text).unwrap_err().to_string()
        };
        let openai = "kind = 'openai'";
        assert!(message(openai, "kind = 'command'").contains("command is empty"));
        assert!(message(openai, "kind = 'magic'").contains("magic"));
        let line = |extra: &str| format!("kind = 'command'\ncommand = 'x'\n{extra}");
        assert!(message(openai, &line("colour = 3")).contains("colour"));
        assert!(message(openai, &line("image = 'x'")).contains("image"));
        assert!(message(openai, &line("cold = ['page-cache']")).contains("cold"));
        assert!(message(openai, &line("ready = 'health'")).contains("`health`"));
        assert!(message("kind = 'embedded'", &line("")).contains("this process"));
        assert!(message(openai, "kind = 'sleep'").contains("vllm"));
        let https = "kind = 'openai'\nurl = 'https://x'";
        assert!(message(https, &line("")).contains("https"));
    }
}
