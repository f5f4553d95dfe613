//! Engines that yardstick starts itself, as a user meets them: real processes,
//! the ways in which they fail, and that none is left.

mod container;
mod ends;
mod resources;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use yardstick::record::{JournalEvent, RunData, StartPhaseKind};

use crate::support::{write_tiny_config, yardstick};

/// A variable that every process of one test carries, and no other one.
const TEST_MARK: &str = "YARDSTICK_LIFECYCLE_TEST";

/// A folder for one test, with a model that loads at once, and the mark of its processes.
struct Bench {
    folder: TempDir,
    mark: String,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_tiny_config(&folder.path().join("tiny"), 2);
        let mark = folder.path().file_name().unwrap().to_string_lossy().into_owned();
        Self { folder, mark }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The command line of a real engine that starts fast.
    fn serve(&self) -> String {
        format!(
            "{} serve --port {{port}} --model {} --load-format dummy --threads 1 --kv-blocks 64",
            env!("CARGO_BIN_EXE_yardstick"),
            self.path("tiny").display()
        )
    }

    fn plan(&self, text: &str) -> String {
        let path = self.path("plan.toml");
        let model = self.path("tiny");
        let head = format!(
            "model = '{}'\nload_format = 'dummy'\nconcurrency = 2\nmax_tokens = 4\n\
             prompt_tokens = 8\n",
            model.display()
        );
        fs::write(&path, format!("{head}{text}")).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// A plan with one engine that `lifecycle` starts, and two experiments.
    fn one(&self, lifecycle: &str) -> String {
        self.plan(&format!(
            "experiments = ['sequential-cold', 'concurrent-warm']\n\
             [[engine]]\nname = 'ours'\nkind = 'openai'\n\
             [engine.lifecycle]\nkind = 'command'\n{lifecycle}\n"
        ))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = yardstick();
        command.arg("run").args(arguments).env(TEST_MARK, &self.mark);
        command.arg("--out").arg(self.path("run")).current_dir(self.folder.path());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn data(&self) -> RunData {
        RunData::read(&self.path("run")).unwrap()
    }

    fn summary(&self) -> Value {
        serde_json::from_slice(&fs::read(self.path("run/summary.json")).unwrap()).unwrap()
    }

    /// Living processes that descend from this test's yardstick, by what they execute.
    fn living(&self) -> Vec<String> {
        let entry = format!("{TEST_MARK}={}", self.mark);
        let pids = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
        let carries = |path: &PathBuf| {
            let environ = fs::read(path.join("environ")).unwrap_or_default();
            environ.split(|byte| *byte == 0).any(|it| it == entry.as_bytes())
        };
        let name = |path: PathBuf| {
            let line = fs::read(path.join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).replace('\0', " ")
        };
        pids.filter(carries).map(name).collect()
    }

    /// Fails if one of this test's processes lives on; they have a while to end.
    #[track_caller]
    fn nothing_lives(&self) {
        eventually("everything to end", || self.living().is_empty());
    }
}

impl Drop for Bench {
    /// A test that failed leaves nothing either.
    fn drop(&mut self) {
        let entry = format!("{TEST_MARK}={}", self.mark);
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let environ = fs::read(process.path().join("environ")).unwrap_or_default();
            if environ.split(|byte| *byte == 0).any(|it| it == entry.as_bytes()) {
                let pid = process.file_name();
                let _ = Command::new("kill").arg("-9").arg(pid).status();
            }
        }
    }
}

#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1200 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("waited a minute for {what}");
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn signal(name: &str, pid: u32) {
    let sent = Command::new("kill").args([name, &pid.to_string()]).status().unwrap();
    assert!(sent.success());
}

/// Phases of the start of `case`, in the order in which they were seen.
fn phases(data: &RunData, of: Option<u32>) -> Vec<StartPhaseKind> {
    let phase = |event: &JournalEvent| match event {
        JournalEvent::StartPhase { case, phase, .. } if *case == of => Some(*phase),
        _ => None,
    };
    data.journal.iter().filter_map(|entry| phase(&entry.event)).collect()
}

fn count(data: &RunData, holds: fn(&JournalEvent) -> bool) -> usize {
    data.journal.iter().filter(|entry| holds(&entry.event)).count()
}

#[test]
fn engine_is_started_measured_cold_and_warm_and_stopped() {
    let bench = Bench::new();
    let start = format!("ours={}", bench.serve());
    let plan = bench.plan("experiments = ['sequential-cold', 'concurrent-warm']\n");
    let output = bench.run(&[&plan, "--engine", "ours:openai", "--start", &start]);
    assert!(output.status.success(), "{}", stderr(&output));
    bench.nothing_lives();
    let data = bench.data();
    let all = [StartPhaseKind::PortOpen, StartPhaseKind::Healthy, StartPhaseKind::ModelListed];
    assert_eq!(phases(&data, None), all, "it was started to say who it is");
    assert_eq!(phases(&data, Some(0)), all, "a cold case begins with a start");
    assert_eq!(phases(&data, Some(1)), [], "a warm one finds it running");
    assert_eq!(count(&data, |event| matches!(event, JournalEvent::EngineStarted { .. })), 2);
    assert_eq!(count(&data, |event| matches!(event, JournalEvent::EngineStopped { .. })), 2);
    assert_eq!(count(&data, |event| matches!(event, JournalEvent::EngineExited { .. })), 0);
    for pair in data.journal.windows(2) {
        let introduced = matches!(pair[0].event, JournalEvent::RunStarted);
        assert!(introduced || pair[0].at_ns <= pair[1].at_ns, "{pair:?}");
    }
    let info = data.manifest.engines[0].info.as_ref().unwrap();
    assert!(info.dummy_weights, "the engine described itself: {info:?}");
    let log = fs::read_to_string(bench.path("run/logs/ours.log")).unwrap();
    assert_eq!(log.matches("listening on").count(), 2, "{log}");
    assert_eq!(fs::read_dir(bench.folder.path()).unwrap().count(), 3, "model, plan and run");
}

#[test]
fn engine_that_exits_while_starting_is_an_error_with_its_last_words() {
    let bench = Bench::new();
    let plan = bench.one("command = \"sh -c 'echo first; echo no more memory >&2; exit 3'\"\n");
    let output = bench.run(&[&plan]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("engine ours exited with status 3 while starting"), "{text}");
    assert!(text.contains("no more memory"), "{text}");
    let log = text.lines().find(|line| line.starts_with("hint: ")).unwrap().rsplit(' ').next();
    assert!(fs::read_to_string(bench.path(log.unwrap())).unwrap().contains("first"), "{text}");
    assert!(!bench.path("run").exists());
    bench.nothing_lives();
}

#[test]
fn engine_that_never_gets_ready_is_given_up_and_ended() {
    let bench = Bench::new();
    let plan = bench.one(
        "command = \"sh -c 'echo loading; setsid sleep 4321 & sleep 4321'\"\n\
         port = 'free'\nready_timeout_s = 1\n",
    );
    let output = bench.run(&[&plan]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("was not ready within 1 s: waited for port"), "{text}");
    assert!(text.contains("loading"), "{text}");
    bench.nothing_lives();
}

#[test]
fn engine_that_ignores_its_stop_signal_is_killed_with_its_children() {
    let bench = Bench::new();
    // The shell stays, and a child in a session of its own.
    let script = format!(
        "trap \"\" TERM; setsid sleep 4321 & {} & while :; do sleep 1; done",
        bench.serve()
    );
    let plan = bench.one(&format!("command = ['sh', '-c', '''{script}''']\nstop_grace_s = 1\n"));
    let output = bench.run(&[&plan, "--experiment", "concurrent-warm"]);
    assert!(output.status.success(), "{}", stderr(&output));
    bench.nothing_lives();
    let data = bench.data();
    let killed =
        |event: &JournalEvent| matches!(event, JournalEvent::EngineStopped { killed: true, .. });
    assert_eq!(count(&data, killed), 1);
}

#[test]
fn port_that_is_taken_is_named_with_who_listens() {
    let bench = Bench::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let plan = bench.one(&format!("command = '{}'\nport = {port}\n", bench.serve()));
    let output = bench.run(&[&plan]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(&format!("port {port} is taken by")), "{text}");
    assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
    bench.nothing_lives();
}

#[test]
fn command_that_is_not_there_is_refused_by_name() {
    let bench = Bench::new();
    let plan = bench.one("command = 'no-such-engine --port {port}'\n");
    let text = stderr(&bench.run(&[&plan]));
    assert!(text.contains("command `no-such-engine` is not found"), "{text}");
    let plan = bench.plan("");
    let output = bench.run(&[&plan, "--engine", "ollama", "--start", "ours=x"]);
    assert!(stderr(&output).contains("engine ours has a lifecycle but is not"), "{output:?}");
    bench.nothing_lives();
}

#[test]
fn crash_in_the_middle_is_on_record_and_the_run_goes_on() {
    let bench = Bench::new();
    let plan = bench.plan(&format!(
        "experiments = ['sequential-cold', 'concurrent-warm']\nrequests = 400\n\
         [[engine]]\nname = 'ours'\nkind = 'openai'\n\
         [engine.lifecycle]\nkind = 'command'\ncommand = '{}'\n",
        bench.serve()
    ));
    let mut child =
        bench.command(&[&plan]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let requests = bench.path("run/requests.jsonl");
    let lines = || fs::read_to_string(&requests).map_or(0, |text| text.lines().count());
    eventually("three requests", || lines() >= 3);
    // The engine itself, by its command line: not its supervisor.
    let engine = engine_pid(&bench.mark);
    signal("-9", engine);
    assert_eq!(child.wait().unwrap().code(), Some(0), "some requests of each case were answered");
    bench.nothing_lives();
    let data = bench.data();
    let exits: Vec<_> = data
        .journal
        .iter()
        .filter_map(|entry| match &entry.event {
            JournalEvent::EngineExited { signal, log_tail, .. } => Some((*signal, log_tail)),
            _ => None,
        })
        .collect();
    assert_eq!(exits.len(), 1);
    assert_eq!(exits[0].0, Some(9));
    assert!(exits[0].1.contains("listening on"), "{}", exits[0].1);
    let failed = data.requests.iter().filter(|request| !request.outcome.is_ok()).count();
    assert!((1..400).contains(&failed), "{failed} requests failed");
    let of_second = data.requests.iter().filter(|it| it.case == 1 && !it.warmup);
    assert_eq!(of_second.filter(|request| request.outcome.is_ok()).count(), 400);
}

/// The process of this test that became the engine.
fn engine_pid(mark: &str) -> u32 {
    let entry = format!("{TEST_MARK}={mark}");
    let is_engine = |path: &Path| {
        let environ = fs::read(path.join("environ")).unwrap_or_default();
        let line = fs::read(path.join("cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        environ.split(|byte| *byte == 0).any(|it| it == entry.as_bytes())
            && words.nth(1) == Some(b"serve")
    };
    let mut found = fs::read_dir("/proc").unwrap().flatten().filter(|it| is_engine(&it.path()));
    found.next().unwrap().file_name().to_str().unwrap().parse().unwrap()
}

/// A plan that measures longer than any test waits, with an engine whose child has left its group.
fn endless(bench: &Bench) -> String {
    let script = format!("setsid sleep 4321 & exec {}", bench.serve());
    bench.plan(&format!(
        "experiments = ['sequential-cold']\nrequests = 5000\n[[engine]]\nname = 'ours'\n\
         kind = 'openai'\n[engine.lifecycle]\nkind = 'command'\n\
         command = ['sh', '-c', '''{script}''']\n"
    ))
}

/// A run that is in the middle of measuring.
fn in_the_middle(bench: &Bench) -> std::process::Child {
    let plan = endless(bench);
    let child =
        bench.command(&[&plan]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let requests = bench.path("run/requests.jsonl");
    eventually("three requests", || {
        fs::read_to_string(&requests).is_ok_and(|text| text.lines().count() >= 3)
    });
    let living = bench.living();
    assert!(living.iter().any(|line| line.contains("sleep 4321")), "{living:?}");
    child
}

/// What was measured renders.
#[track_caller]
fn renders(bench: &Bench) {
    let output = yardstick().arg("report").arg(bench.path("run")).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(text.contains("sequential-cold") && text.contains("incomplete"), "{text}");
}

#[test]
fn interrupt_leaves_no_process_and_a_report() {
    let bench = Bench::new();
    let mut child = in_the_middle(&bench);
    signal("-INT", child.id());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    bench.nothing_lives();
    assert_eq!(bench.summary()["complete"], false);
    renders(&bench);
}

#[test]
fn kill_of_yardstick_leaves_no_process_and_what_was_measured() {
    let bench = Bench::new();
    let mut child = in_the_middle(&bench);
    signal("-9", child.id());
    child.wait().unwrap();
    bench.nothing_lives();
    assert!(bench.data().requests.len() >= 3);
    renders(&bench);
}

#[test]
fn kill_of_the_supervisor_ends_the_engine_and_the_run_says_so() {
    let bench = Bench::new();
    let mut child = in_the_middle(&bench);
    let pids = Command::new("pgrep").args(["-P", &child.id().to_string()]).output().unwrap();
    let supervisor: u32 = String::from_utf8(pids.stdout).unwrap().trim().parse().unwrap();
    signal("-9", supervisor);
    eventually("the engine's end", || {
        !bench.living().iter().any(|line| line.contains("--load-format"))
    });
    signal("-INT", child.id());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    bench.nothing_lives();
    let exited = |event: &JournalEvent| matches!(event, JournalEvent::EngineExited { .. });
    assert_eq!(count(&bench.data(), exited), 1);
}

#[test]
fn interrupt_while_an_engine_starts_ends_it() {
    let bench = Bench::new();
    let plan = bench.one("command = \"sh -c 'sleep 4321'\"\nport = 'free'\n");
    let mut child =
        bench.command(&[&plan]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually("the engine", || bench.living().iter().any(|line| line.contains("sleep 4321")));
    signal("-INT", child.id());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    bench.nothing_lives();
}

#[test]
fn two_engines_are_never_resident_together_unless_the_plan_says_so() {
    let bench = Bench::new();
    let engine = |name: &str| {
        format!(
            "[[engine]]\nname = '{name}'\nkind = 'openai'\n[engine.lifecycle]\nkind = 'command'\n\
             command = '{}'\n",
            bench.serve()
        )
    };
    let plan = bench.plan(&format!(
        "rounds = 2\nexperiments = ['concurrent-warm']\n{}{}",
        engine("a"),
        engine("b")
    ));
    let output = bench.run(&[&plan]);
    assert!(output.status.success(), "{}", stderr(&output));
    bench.nothing_lives();
    let mut up: Vec<u32> = Vec::new();
    let mut starts = Vec::new();
    for entry in &bench.data().journal {
        match &entry.event {
            JournalEvent::EngineStarted { engine, case, .. } => {
                up.push(*engine);
                starts.push((*engine, *case));
            }
            JournalEvent::EngineStopped { engine, .. } => up.retain(|it| it != engine),
            _ => {}
        }
        assert!(up.len() <= 1, "{up:?}");
    }
    assert!(up.is_empty());
    // To introduce themselves, then a, b and, turned round, b again and a.
    assert_eq!(starts, [(0, None), (1, None), (0, Some(0)), (1, Some(1)), (0, Some(3))]);
}

#[test]
fn fresh_compile_caches_and_dropped_weights_are_stated_and_seen() {
    let bench = Bench::new();
    let weights = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let file = weights.path().join("weights.bin");
    fs::write(&file, vec![1_u8; 1 << 20]).unwrap();
    let script = format!("echo cache=$CODE_CACHE; exec {}", bench.serve());
    let plan = bench.one(&format!(
        "command = ['sh', '-c', '''{script}''']\nenv = {{ CODE_CACHE = 'mine' }}\n\
         cold = ['process', 'page-cache', 'compile-cache']\nweights = ['{}/*.bin']\n\
         compile_cache_env = ['CODE_CACHE']\n",
        weights.path().display()
    ));
    let output = bench.run(&[&plan, "--experiment", "sequential-cold"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let data = bench.data();
    let (cold, cache) = data
        .journal
        .iter()
        .find_map(|entry| match &entry.event {
            JournalEvent::EngineStarted { case: Some(0), cold, page_cache, .. } => {
                Some((cold.clone(), page_cache.unwrap()))
            }
            _ => None,
        })
        .unwrap();
    assert_eq!((cache.bytes, cache.before_bytes, cache.at_start_bytes), (1 << 20, 1 << 20, 0));
    let cold: Vec<_> = cold.iter().map(|cold| cold.as_str()).collect();
    assert_eq!(cold, ["process", "page-cache", "compile-cache"]);
    let log = fs::read_to_string(bench.path("run/logs/ours.log")).unwrap();
    let caches: Vec<_> = log.lines().filter_map(|line| line.strip_prefix("cache=")).collect();
    assert_eq!(caches[0], "mine", "a start that is not a cold case's has the user's caches");
    assert!(caches[1].contains("run/logs/cache-ours-2-CODE_CACHE"), "{caches:?}");
    assert!(!Path::new(caches[1]).exists(), "a cache of ours is removed");
}
