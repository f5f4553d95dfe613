//! Engines on Google Cloud Run, through the command line, against a stand-in
//! for its APIs and a service that really goes cold.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::{Value, json};
use tempfile::TempDir;
use yardstick::plan::{Cold, Plan};
use yardstick::record::{JournalEvent, RunData};

use crate::support::cloud_run::{ACCESS_TOKEN, BOOT, Behaviour, CloudRun};
use crate::support::yardstick;

struct Bench {
    cloud: CloudRun,
    folder: TempDir,
}

impl Bench {
    fn new(behaviour: Behaviour) -> Self {
        Self { cloud: CloudRun::start(behaviour), folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs a plan with this engine: `head` before it, `lifecycle` at its end.
    fn run(&self, head: &str, lifecycle: &str, env: &[(&str, &str)]) -> Output {
        self.run_as("llm", head, lifecycle, env)
    }

    fn run_as(&self, service: &str, head: &str, lifecycle: &str, env: &[(&str, &str)]) -> Output {
        let url = &self.cloud.url;
        let experiments = if head.contains("experiments") {
            ""
        } else {
            "experiments = ['sequential-cold', 'concurrent-warm']\n"
        };
        let plan = format!(
            "{head}\n{experiments}requests = 2\nconcurrency = 2\nmax_tokens = 4\n\
             [[engine]]\nname = 'llm'\nkind = 'openai'\nurl = '{url}'\n\
             [engine.lifecycle]\nkind = 'cloud-run'\nproject = 'mine'\n\
             region = 'us-central1'\nservice = '{service}'\nbase_url = '{url}'\n\
             monitoring_url = '{url}'\nmetadata_url = '{url}'\nmetric_lag_s = 2\n\
             ready_timeout_s = 20\n{lifecycle}\n"
        );
        fs::write(self.path("plan.toml"), plan).unwrap();
        let mut command = yardstick();
        command.arg("run").arg(self.path("plan.toml")).args(["--no-calibration", "--no-probe"]);
        command.arg("--out").arg(self.path("run")).envs(env.iter().copied());
        command.output().unwrap()
    }

    fn data(&self) -> RunData {
        RunData::read(&self.path("run")).unwrap()
    }

    /// Why each case that failed did.
    fn failures(&self) -> Vec<String> {
        let why = |event: &JournalEvent| match event {
            JournalEvent::CaseFailed { message, .. } => Some(message.clone()),
            _ => None,
        };
        self.data().journal.iter().filter_map(|entry| why(&entry.event)).collect()
    }

    /// Fails if a file of the run, or what was printed, holds a token.
    #[track_caller]
    fn no_token_is_anywhere(&self, output: &Output) {
        let mut secrets = self.cloud.identities();
        secrets.push(ACCESS_TOKEN.to_owned());
        let mut texts = vec![output.stdout.clone(), output.stderr.clone()];
        read_all(self.folder.path(), &mut texts);
        for text in texts {
            let text = String::from_utf8_lossy(&text);
            for secret in &secrets {
                // Also no part of one: a message may have been cut.
                let part = &secret[secret.len() / 4..secret.len() / 2];
                assert!(!text.contains(part), "`{part}` in: {text}");
            }
        }
    }
}

fn read_all(folder: &Path, texts: &mut Vec<Vec<u8>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_all(&path, texts);
        } else {
            texts.push(fs::read(path).unwrap());
        }
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What made the cases cold, in their order.
fn made_cold(data: &RunData) -> Vec<(u32, Vec<Cold>, String)> {
    let made = |event: &JournalEvent| match event {
        JournalEvent::MadeCold { case, cold, seen, .. } => {
            Some((*case, cold.clone(), seen.clone().unwrap_or_default()))
        }
        _ => None,
    };
    data.journal.iter().filter_map(|entry| made(&entry.event)).collect()
}

#[test]
fn cold_case_meets_zero_instances_and_a_warm_one_does_not() {
    let bench = Bench::new(Behaviour::default());
    let output = bench.run("", "scale_to_zero_timeout_s = 40", &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let data = bench.data();
    let made = made_cold(&data);
    assert_eq!(made.len(), 1);
    assert_eq!((made[0].0, made[0].1.as_slice()), (0, [Cold::Instance].as_slice()));
    assert!(made[0].2.starts_with("revision llm-1: "), "{made:?}");
    assert!(made[0].2.contains(" sample at ") || made[0].2.contains("1 idle of llm-1"), "{made:?}");
    // The service's own word: the question who it is, and then the first measured request alone.
    let asked = bench.cloud.asked();
    let cold: Vec<_> = asked.iter().filter(|it| it.was_cold).map(|it| it.path.as_str()).collect();
    assert_eq!(cold, ["/health", "/v1/chat/completions"]);
    let chats = asked.iter().filter(|it| it.path == "/v1/chat/completions").count();
    assert_eq!(chats, data.requests.len());
    assert!(asked.iter().all(|it| it.status != 403), "the token arrived with each: {asked:?}");
    let first = data.requests.iter().find(|it| it.cold).unwrap();
    assert!(first.done_ns >= u64::try_from(BOOT.as_nanos()).unwrap());
    bench.no_token_is_anywhere(&output);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("cold starts by phase") && text.contains("instance"), "{text}");
    let summary: Value =
        serde_json::from_slice(&fs::read(bench.path("run/summary.json")).unwrap()).unwrap();
    let phases: Vec<_> = summary["cold_starts"][0]["phases"]
        .as_array()
        .unwrap()
        .iter()
        .map(|phase| phase["phase"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(phases, ["request_sent", "first_byte", "first_token"]);
    assert_eq!(summary["cold_starts"][0]["cold"], json!(["instance"]));
    assert!(bench.cloud.patched().is_empty(), "nothing was changed");
}

#[test]
fn new_revision_is_deployed_only_if_asked_for_and_is_named() {
    let bench = Bench::new(Behaviour::default());
    let lifecycle = "cold_by = 'revision'\nscale_to_zero_timeout_s = 40";
    let output = bench.run("experiments = ['concurrent-cold']", lifecycle, &[]);
    let text = stderr(&output);
    assert!(output.status.success(), "{text}");
    let patched = bench.cloud.patched();
    assert_eq!(patched.len(), 1);
    assert_eq!(patched[0]["template"]["containers"][0]["image"], "engine");
    assert!(patched[0]["template"]["annotations"]["yardstick-cold"].is_string());
    let made = made_cold(&bench.data());
    assert!(made[0].2.contains("revision llm-2"), "{made:?}");
    assert!(text.contains("service llm is left at revision llm-2"), "{text}");
    bench.no_token_is_anywhere(&output);
}

#[test]
fn service_that_keeps_an_instance_is_refused_before_anything_is_measured() {
    let service = json!({ "scaling": { "minInstanceCount": 1 } });
    let bench = Bench::new(Behaviour { service, ..Behaviour::default() });
    let output = bench.run("", "", &[]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("service llm never has zero instances: it keeps 1 instances"), "{text}");
    assert!(text.contains("gcloud run services update llm --region us-central1 --min 0"), "{text}");
    assert!(!bench.path("run").exists());
    assert!(bench.cloud.asked().is_empty());
    // Where nothing is to be cold it is as good as any other.
    let output = bench.run("experiments = ['concurrent-warm']", "", &[]);
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn metric_that_never_reaches_zero_fails_the_cold_case_with_what_was_seen() {
    let bench = Bench::new(Behaviour { never_idle: true, ..Behaviour::default() });
    let output = bench.run("", "scale_to_zero_timeout_s = 4", &[]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let [why] = bench.failures().try_into().unwrap();
    assert!(why.contains("no proof of zero instances within 4 s"), "{why}");
    assert!(why.contains("1 idle of llm-1"), "{why}");
    assert!(why.contains("scale_to_zero_timeout_s"), "its remedy: {why}");
    let data = bench.data();
    assert!(data.requests.iter().all(|it| !it.cold), "nothing warm is called cold");
    assert!(data.requests.iter().any(|it| it.outcome.is_ok()), "the warm case was measured");
    bench.no_token_is_anywhere(&output);
}

#[test]
fn metric_without_a_sample_proves_nothing() {
    let bench = Bench::new(Behaviour { no_metric: true, ..Behaviour::default() });
    bench.run("experiments = ['sequential-cold']", "scale_to_zero_timeout_s = 5", &[]);
    let [why] = bench.failures().try_into().unwrap();
    assert!(why.contains("no sample at all, though it had answered before"), "{why}");
    assert!(why.contains("check project, region and service"), "{why}");
}

#[test]
fn tokens_are_renewed_before_they_expire() {
    let bench = Bench::new(Behaviour { token_life: 3, ..Behaviour::default() });
    let output = bench.run("rounds = 2", "scale_to_zero_timeout_s = 40", &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(bench.cloud.identities().len() > 3, "{:?}", bench.cloud.identities());
    assert!(bench.cloud.asked().iter().all(|it| it.status != 403));
    bench.no_token_is_anywhere(&output);
}

#[test]
fn tokens_from_variables_are_sent_and_reach_no_file() {
    let bench = Bench::new(Behaviour::default());
    let identity = bench.cloud.identity();
    let lifecycle = "identity_token_env = 'MY_IDENTITY'\naccess_token_env = 'MY_ACCESS'\n\
                     scale_to_zero_timeout_s = 40";
    let head = "experiments = ['sequential-cold']";
    let lacking = stderr(&bench.run(head, lifecycle, &[("MY_IDENTITY", &identity)]));
    assert!(lacking.contains("MY_ACCESS is not set, but access_token_env"), "{lacking}");
    assert!(lacking.contains("gcloud auth print-access-token"), "{lacking}");
    let env = [("MY_IDENTITY", identity.as_str()), ("MY_ACCESS", ACCESS_TOKEN)];
    let output = bench.run(head, lifecycle, &env);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(bench.cloud.identities(), [identity], "the metadata server was not asked");
    bench.no_token_is_anywhere(&output);
}

#[test]
fn refusals_name_the_role_and_not_the_token() {
    let bench = Bench::new(Behaviour::default());
    let lifecycle = "access_token_env = 'MY_ACCESS'";
    let wrong = "ya29.another-token-that-is-not-the-one-that-is-taken";
    let output = bench.run("", lifecycle, &[("MY_ACCESS", wrong)]);
    let text = stderr(&output);
    assert!(text.contains("answered HTTP 401: bad credentials: Bearer [key]"), "{text}");
    assert!(text.contains("roles/run.viewer in project mine"), "{text}");
    assert!(!text.contains("another-token"), "{text}");
    let stale = "identity_token_env = 'MY_IDENTITY'";
    let output = bench.run("", stale, &[("MY_IDENTITY", "eyJhbGciOiJSUzI1NiJ9.e30.stale")]);
    let text = stderr(&output);
    assert!(text.contains("answered HTTP 403"), "{text}");
    assert!(text.contains("roles/run.invoker"), "{text}");
}

#[test]
fn service_that_is_not_there_or_another_one_is_refused() {
    let service = json!({ "uri": "https://other-abc-uc.a.run.app" });
    let bench = Bench::new(Behaviour { service, ..Behaviour::default() });
    let text = stderr(&bench.run("", "", &[]));
    assert!(text.contains("but service llm is at https://other-abc-uc.a.run.app"), "{text}");
    let text = stderr(&bench.run_as("nowhere", "", "", &[]));
    assert!(text.contains("answered HTTP 404: Resource was not found"), "{text}");
    assert!(text.contains("check project `mine`, region `us-central1` and service `nowhere`"));
}

#[test]
fn trouble_that_passes_is_waited_out_and_other_trouble_ends_the_case() {
    let head = "experiments = ['sequential-cold']";
    let lifecycle = "scale_to_zero_timeout_s = 40";
    let bench = Bench::new(Behaviour { num_busy: 2, ..Behaviour::default() });
    let output = bench.run(head, lifecycle, &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(bench.cloud.num_polls() > 2);
    for (status, body, expected) in [
        (503, "busy".to_owned(), "(asked 6 times)"),
        (403, r#"{"error":{"message":"no"}}"#.to_owned(), "roles/monitoring.viewer"),
        (200, "<html>".to_owned(), "no time series"),
        (200, "x".repeat(9 << 20), "more than 8388608 bytes"),
    ] {
        let monitoring = Some((status, body));
        let bench = Bench::new(Behaviour { monitoring, ..Behaviour::default() });
        assert_eq!(bench.run(head, lifecycle, &[]).status.code(), Some(1));
        let [why] = bench.failures().try_into().unwrap();
        assert!(why.contains(expected), "{why}");
    }
}

#[test]
fn every_ready_plan_is_a_plan() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/plans");
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let plan = Plan::from_toml(&fs::read_to_string(&path).unwrap())
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(Plan::from_toml(&plan.to_toml()), Ok(plan.clone()), "{}", path.display());
        names.push(plan.name);
    }
    assert!(names.contains(&"cloud-run".to_owned()), "{names:?}");
}

#[test]
fn public_service_is_sent_no_token() {
    let bench = Bench::new(Behaviour { public: true, ..Behaviour::default() });
    let output = bench.run("experiments = ['concurrent-warm']", "unauthenticated = true", &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(bench.cloud.identities().is_empty());
}
