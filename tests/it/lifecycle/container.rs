//! Containers, against a stand-in for the runtime's client and a daemon that
//! keeps containers alive whatever becomes of the client, as Docker's does.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::*;

/// Starts what the client asked for, and ends it once `rm` says so.
struct Daemon {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// `run` leaves its arguments and environment and waits for the container's end,
/// and a signal to it ends the container, as with `--sig-proxy`; `rm` takes it away.
const CLIENT: &str = r#"#!/bin/sh
desk="$(dirname "$0")/desk"
echo "$@" >> "$desk/calls"
if [ "$1" = rm ]; then
    touch "$desk/$3.remove"
    exit 0
fi
name="$4"
env > "$desk/$name.env"
echo "$@" > "$desk/$name.tmp"
mv "$desk/$name.tmp" "$desk/$name.run"
trap 'touch "$desk/$name.remove"' TERM
while [ ! -e "$desk/$name.gone" ]; do sleep 0.02; done
"#;

impl Daemon {
    fn start(bench: &Bench) -> Self {
        let desk = bench.path("desk");
        fs::create_dir(&desk).unwrap();
        fs::write(bench.path("docker"), CLIENT).unwrap();
        fs::set_permissions(bench.path("docker"), fs::Permissions::from_mode(0o755)).unwrap();
        let (model, over) = (bench.path("tiny"), Arc::new(AtomicBool::new(false)));
        let thread = std::thread::spawn({
            let over = Arc::clone(&over);
            move || keep(&desk, &model, &over)
        });
        Self { over, thread: Some(thread) }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        let _ = self.thread.take().unwrap().join();
    }
}

fn keep(desk: &Path, model: &Path, over: &AtomicBool) {
    let mut containers: BTreeMap<String, Child> = BTreeMap::new();
    while !over.load(Ordering::Acquire) {
        for entry in fs::read_dir(desk).unwrap().flatten() {
            let file = entry.file_name().into_string().unwrap();
            let Some((name, what)) = file.rsplit_once('.') else { continue };
            if what == "run" && !containers.contains_key(name) {
                let arguments = fs::read_to_string(entry.path()).unwrap();
                let mut words = arguments.split_whitespace();
                let published = words.find(|word| word.starts_with("127.0.0.1:")).unwrap();
                let port = published.split(':').nth(1).unwrap();
                let mut command = yardstick();
                command.args(["serve", "--load-format", "dummy", "--threads", "1"]);
                command.args(["--kv-blocks", "64", "--port", port, "--model"]).arg(model);
                command.stdout(Stdio::null()).stderr(Stdio::null());
                containers.insert(name.to_owned(), command.spawn().unwrap());
                fs::write(desk.join(format!("{name}.up")), "").unwrap();
                fs::remove_file(entry.path()).unwrap();
            }
            if what == "remove"
                && let Some(mut container) = containers.remove(name)
            {
                let _ = container.kill();
                container.wait().unwrap();
                let _ = fs::remove_file(desk.join(format!("{name}.up")));
                fs::write(desk.join(format!("{name}.gone")), "").unwrap();
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    for (_, mut container) in containers {
        let _ = container.kill();
        let _ = container.wait();
    }
}

/// The names of the containers that live.
fn up(bench: &Bench) -> Vec<String> {
    let files = fs::read_dir(bench.path("desk")).unwrap().flatten();
    let names = files.map(|entry| entry.file_name().into_string().unwrap());
    names.filter_map(|name| Some(name.strip_suffix(".up")?.to_owned())).collect()
}

fn plan(bench: &Bench, requests: u32) -> String {
    bench.plan(&format!(
        "experiments = ['sequential-cold']\nrequests = {requests}\n\
         [[engine]]\nname = 'boxed'\nkind = 'openai'\n[engine.lifecycle]\nkind = 'container'\n\
         runtime = '{}'\nimage = 'engine:1'\narguments = ['--gpus=all']\ncontainer_port = 8000\n\
         command = 'serve {{model}}'\nenv = {{ HF_TOKEN = {{ from = 'MY_TOKEN' }} }}\n",
        bench.path("docker").display()
    ))
}

/// A run that is measuring an engine in a container.
fn in_the_middle(bench: &Bench) -> Child {
    let mut command = bench.command(&[&plan(bench, 5000)]);
    command.env("MY_TOKEN", "hush").stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().unwrap();
    let requests = bench.path("run/requests.jsonl");
    eventually("three requests", || {
        fs::read_to_string(&requests).is_ok_and(|text| text.lines().count() >= 3)
    });
    assert_eq!(up(bench).len(), 1);
    child
}

#[test]
fn container_is_started_with_its_gpu_and_port_and_is_gone_at_the_end() {
    let bench = Bench::new();
    let _daemon = Daemon::start(&bench);
    let output = bench.command(&[&plan(&bench, 2)]).env("MY_TOKEN", "hush").output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    eventually("the container's end", || up(&bench).is_empty());
    bench.nothing_lives();
    let calls = fs::read_to_string(bench.path("desk/calls")).unwrap();
    let runs: Vec<_> = calls.lines().filter(|line| line.starts_with("run ")).collect();
    assert_eq!(runs.len(), 2, "to say who it is, and cold: {calls}");
    let name = runs[0].split_whitespace().nth(3).unwrap();
    let model = bench.path("tiny");
    assert!(runs[0].starts_with(&format!("run --rm --name {name} --publish 127.0.0.1:")));
    let end = format!(
        ":8000 --env HF_TOKEN --env YARDSTICK_ENGINE_MARK --gpus=all engine:1 serve {}",
        model.display()
    );
    assert!(runs[0].ends_with(&end), "{calls}");
    assert_ne!(runs[0], runs[1], "each start has a name of its own");
    assert!(calls.contains(&format!("rm --force {name}")), "{calls}");
    let env = fs::read_to_string(bench.path(&format!("desk/{name}.env"))).unwrap();
    assert!(env.contains("HF_TOKEN=hush"), "the runtime takes it from its environment");
    assert!(!calls.contains("hush"), "{calls}");
}

#[test]
fn kill_of_yardstick_leaves_no_container() {
    let bench = Bench::new();
    let _daemon = Daemon::start(&bench);
    let mut child = in_the_middle(&bench);
    signal("-9", child.id());
    child.wait().unwrap();
    eventually("the container's end", || up(&bench).is_empty());
    bench.nothing_lives();
}

#[test]
fn kill_of_the_supervisor_leaves_no_container() {
    let bench = Bench::new();
    let _daemon = Daemon::start(&bench);
    let mut child = in_the_middle(&bench);
    let pids = Command::new("pgrep").args(["-P", &child.id().to_string()]).output().unwrap();
    let supervisor: u32 = String::from_utf8(pids.stdout).unwrap().trim().parse().unwrap();
    signal("-9", supervisor);
    eventually("the client's end", || {
        !bench.living().iter().any(|line| line.contains("/docker run"))
    });
    signal("-INT", child.id());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    eventually("the container's end", || up(&bench).is_empty());
    bench.nothing_lives();
}
