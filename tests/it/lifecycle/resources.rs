//! What a started engine uses, from its start on: whose processes they are is
//! known without a port.

use yardstick::clock::Timestamp;
use yardstick::record::{ProcessSample, ResourceSource};

use super::*;

/// Samples of the engine's processes from its start for `case` on, each with its instant.
fn samples(data: &RunData) -> Vec<(Timestamp, &ProcessSample)> {
    let own = data.resources.iter().flat_map(|look| {
        look.processes.iter().filter(|it| it.engine == Some(0)).map(|it| (look.at_ns, it))
    });
    own.collect()
}

fn instant(data: &RunData, holds: impl Fn(&JournalEvent) -> bool) -> Timestamp {
    data.journal.iter().find(|entry| holds(&entry.event)).unwrap().at_ns
}

#[test]
fn memory_of_a_worker_is_seen_before_the_engine_listens() {
    let bench = Bench::new();
    // A worker of another session holds 64 MB for a while and ends; then the engine listens.
    let worker = "x=$(head -c 64000000 /dev/zero | tr \"\\0\" x); sleep 1; echo $?";
    let script = format!("setsid -w sh -c '{worker}'; exec {}", bench.serve());
    let plan = bench.one(&format!(
        "command = [\"sh\", \"-c\", \"\"\"{}\"\"\"]\n",
        script.replace('\\', "\\\\")
    ));
    let output = bench.run(&[&plan, "--experiment", "sequential-cold"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let data = bench.data();
    let started =
        instant(&data, |event| matches!(event, JournalEvent::EngineStarted { case: Some(0), .. }));
    let open = instant(&data, |event| {
        let phase = StartPhaseKind::PortOpen;
        *event == JournalEvent::StartPhase { engine: 0, case: Some(0), phase }
    });
    let stopped = data
        .journal
        .iter()
        .filter(|entry| matches!(entry.event, JournalEvent::EngineStopped { .. }))
        .map(|entry| entry.at_ns)
        .next_back()
        .unwrap();
    let samples = samples(&data);
    let before: Vec<_> =
        samples.iter().filter(|(at, _)| (started..open).contains(at)).map(|(_, it)| *it).collect();
    let peak = before.iter().map(|sample| sample.rss_bytes).max().unwrap();
    assert!(peak > 60_000_000, "{peak} bytes at most before the port was open");
    assert!(before.iter().any(|sample| sample.num_processes >= 2), "{before:?}");
    let serving = samples.iter().filter(|(at, _)| (open..stopped).contains(at));
    let serving: Vec<_> = serving.map(|(_, sample)| sample.rss_bytes).collect();
    assert!(!serving.is_empty());
    assert!(samples.iter().all(|(at, _)| *at <= stopped), "none once it has ended");
    let start = &bench.summary()["cold_starts"][0];
    assert!(start["peak_rss_bytes"].as_u64().unwrap() >= peak, "{start}");
    let absent: Vec<_> = data
        .journal
        .iter()
        .filter(|entry| {
            matches!(&entry.event, JournalEvent::ResourceAbsent { source, .. }
                if *source == ResourceSource::Procfs)
        })
        .collect();
    assert!(absent.is_empty(), "its end is no gap: {absent:?}");
    let page = fs::read_to_string(bench.path("run/report.html")).unwrap();
    assert!(page.contains("Used while starting, ours in sequential-cold"), "the curve is drawn");
    bench.nothing_lives();
}

/// A runtime whose container descends from a daemon, which is this test.
#[test]
fn processes_of_a_container_are_known_by_their_mark() {
    let bench = Bench::new();
    let runtime = bench.path("runtime");
    let script = "#!/bin/sh\ncd \"$(dirname \"$0\")\"\nif [ \"$1\" = run ]; then\n\
                  echo \"$YARDSTICK_ENGINE_MARK\" >mark.new; mv mark.new mark\n\
                  trap 'exit 0' TERM; while :; do sleep 0.05; done\nfi\n";
    fs::write(&runtime, script).unwrap();
    let made = Command::new("chmod").arg("+x").arg(&runtime).status().unwrap();
    assert!(made.success());
    let port = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let plan = bench.plan(&format!(
        "experiments = ['concurrent-warm']\n[[engine]]\nname = 'ours'\nkind = 'openai'\n\
         [engine.lifecycle]\nkind = 'container'\ncommand = 'serve'\nport = {port}\n\
         stop_grace_s = 2\nruntime = '{}'\nimage = 'engine:1'\ncontainer_port = 8000\n",
        runtime.display()
    ));
    let serve = bench.serve().replace("{port}", &port.to_string());
    let mark = bench.path("mark");
    let mut command = bench.command(&[&plan]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("the runtime", || mark.is_file());
    let mut words = serve.split(' ');
    let mut engine = Command::new(words.next().unwrap())
        .args(words)
        .env("YARDSTICK_ENGINE_MARK", fs::read_to_string(&mark).unwrap().trim())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let output = child.wait_with_output().unwrap();
    // Nobody removed the container: what has the mark is ended all the same.
    let ended = engine.wait().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(!ended.success());
    let data = bench.data();
    let samples = samples(&data);
    // The shell, at times its sleep, and the engine, which is no descendant of either.
    assert!(samples.iter().any(|(_, it)| it.rss_bytes > 4 << 20 && it.num_processes >= 2));
    bench.nothing_lives();
}

#[test]
fn engines_that_share_memory_and_weights_that_were_in_it_are_warned_of() {
    let bench = Bench::new();
    fs::write(bench.path("weights.bin"), vec![1_u8; 1 << 20]).unwrap();
    let hoard =
        format!("x=$(head -c 280000000 /dev/zero | tr '\\0' x); {}; echo $?", bench.serve());
    let hoard = hoard.replace('\\', "\\\\");
    // So many that the probe looks while they are measured.
    let plan = bench.plan(&format!(
        "experiments = ['sequential-cold']\nrequests = 300\nresident = 'together'\n\
         [[engine]]\nname = 'ours'\n\
         kind = 'openai'\n[engine.lifecycle]\nkind = 'command'\ncommand = '{}'\n\
         weights = ['weights.bin']\n[[engine]]\nname = 'big'\nkind = 'openai'\n\
         [engine.lifecycle]\nkind = 'command'\ncommand = ['sh', '-c', \"\"\"{hoard}\"\"\"]\n",
        bench.serve()
    ));
    let output = bench.run(&[&plan]);
    assert!(output.status.success(), "{}", stderr(&output));
    let summary = bench.summary();
    let warned = |class: &str| {
        let warnings = summary["warnings"].as_array().unwrap();
        let of_class = warnings.iter().filter(|warning| warning["class"] == class);
        of_class.map(|it| (it["engine"].clone(), it["message"].to_string())).collect::<Vec<_>>()
    };
    let [(engine, told)] = warned("shared_memory").try_into().unwrap();
    assert_eq!(engine, "ours", "what it holds itself is little");
    assert!(told.contains("in 1 of 1 case: big held"), "{told}");
    let [(engine, told)] = warned("page_cache_warm").try_into().unwrap();
    assert_eq!(engine, "ours");
    assert!(told.contains("100 % of 1.00 MiB of weights in the page cache (mincore)"), "{told}");
    assert!(told.contains("the plan did not ask"), "{told}");
    bench.nothing_lives();
}
