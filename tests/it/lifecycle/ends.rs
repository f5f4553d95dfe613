//! Runs and engines that end in ways that nobody plans: nothing is left of
//! them, and each says what it was.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::MetadataExt as _;

use super::*;

/// A port that nobody listens on: it was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Answers every question on `port` with what `answer` makes of its first line,
/// or, where that is nothing, never.
fn serve_on(port: u16, answer: fn(&str) -> Option<&'static str>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    std::thread::spawn(move || {
        let mut unanswered = Vec::new();
        for mut stream in listener.incoming().flatten() {
            let mut bytes = [0; 4096];
            let read = stream.read(&mut bytes).unwrap_or(0);
            let asked = String::from_utf8_lossy(&bytes[..read]).into_owned();
            match answer(asked.lines().next().unwrap_or_default()) {
                Some(text) => drop(stream.write_all(text.as_bytes())),
                None => unanswered.push(stream),
            }
        }
    });
}

/// What a run says whose engine begins to serve `answer` a while after its start.
fn waited_for(answer: fn(&str) -> Option<&'static str>) -> String {
    let bench = Bench::new();
    let port = free_port();
    let plan = bench.one(&format!("command = 'sleep 4321'\nport = {port}\nready_timeout_s = 4\n"));
    let mut command = bench.command(&[&plan]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("the engine", || bench.living().iter().any(|line| line.starts_with("sleep")));
    serve_on(port, answer);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    bench.nothing_lives();
    stderr(&output)
}

#[test]
fn engine_that_is_never_healthy_is_given_up_with_what_it_said() {
    let text = waited_for(|_| Some("HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"));
    let waited = "waited for /health to answer 200 (at last: HTTP 503)";
    assert!(text.contains(waited), "{text}");
}

#[test]
fn engine_whose_list_of_models_never_comes_is_given_up_by_that_name() {
    let text = waited_for(|asked| {
        asked.contains("/health").then_some("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    });
    assert!(text.contains("waited for /v1/models to list a model"), "{text}");
}

/// Whether this process, and so whatever it starts, ignores the end of its terminal.
fn ignores_hangup() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    u64::from_str_radix(mask.trim(), 16).unwrap() & 1 == 1
}

#[test]
fn end_of_the_session_is_an_orderly_end_of_the_run() {
    for name in ["-TERM", "-HUP"] {
        if name == "-HUP" && ignores_hangup() {
            eprintln!("skipped: these tests run under nohup");
            continue;
        }
        let bench = Bench::new();
        let mut child = in_the_middle(&bench);
        signal(name, child.id());
        assert_eq!(child.wait().unwrap().code(), Some(130), "{name}");
        bench.nothing_lives();
        assert_eq!(bench.summary()["complete"], false);
    }
}

#[test]
fn run_under_nohup_outlives_its_terminal() {
    let bench = Bench::new();
    let plan = endless(&bench);
    let inner = bench.command(&[&plan]);
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]).arg(inner.get_program());
    command.args(inner.get_args()).env(TEST_MARK, &bench.mark).current_dir(bench.folder.path());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let requests =
        || fs::read_to_string(bench.path("run/requests.jsonl")).map_or(0, |it| it.lines().count());
    eventually("a request", || requests() > 0);
    signal("-HUP", child.id());
    let before = requests();
    eventually("ten more requests", || requests() >= before + 10);
    signal("-INT", child.id());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    bench.nothing_lives();
}

#[test]
fn second_interrupt_waits_for_nobody_and_leaves_nothing() {
    let bench = Bench::new();
    let script = format!("trap \"\" TERM; {} & while :; do sleep 1; done", bench.serve());
    let plan = bench.plan(&format!(
        "experiments = ['sequential-cold']\nrequests = 5000\n[[engine]]\nname = 'ours'\n\
         kind = 'openai'\n[engine.lifecycle]\nkind = 'command'\nstop_grace_s = 600\n\
         command = ['sh', '-c', '''{script}''']\n"
    ));
    // The first start is for its introduction; with one engine the cold case stops that, so the
    // first request never comes: the interrupt meets a stop that takes its grace.
    let mut child =
        bench.command(&[&plan]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually("the run directory", || bench.path("run/manifest.json").exists());
    signal("-INT", child.id());
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "it waits for the engine's end");
    signal("-INT", child.id());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    bench.nothing_lives();
}

#[test]
fn kill_before_the_run_has_a_directory_leaves_nothing_that_hinders_the_next() {
    let bench = Bench::new();
    let plan =
        bench.one("command = \"sh -c 'echo mark-of-the-first; sleep 4321'\"\nport = 'free'\n");
    let mut child =
        bench.command(&[&plan]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually("the engine", || bench.living().iter().any(|line| line.contains("sleep 4321")));
    // Another run to the same place is refused meanwhile, before it starts anything.
    let refused = bench.run(&[&plan]);
    let text = stderr(&refused);
    assert!(text.contains("another run is using") && text.contains("--out"), "{text}");
    assert_eq!(bench.living().iter().filter(|line| line.starts_with("sleep")).count(), 1);
    signal("-9", child.id());
    child.wait().unwrap();
    bench.nothing_lives();
    assert!(bench.path(".run.logs/ours.log").is_file() && !bench.path("run").exists());
    let plan = bench.one(&format!("command = '{}'\n", bench.serve()));
    let output = bench.run(&[&plan, "--experiment", "concurrent-warm"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let log = fs::read_to_string(bench.path("run/logs/ours.log")).unwrap();
    assert!(log.contains("listening on") && !log.contains("mark-of-the-first"), "{log}");
    assert!(!bench.path(".run.logs").exists());
}

#[test]
fn place_that_cannot_be_written_is_told_before_anything_is_started() {
    let bench = Bench::new();
    let plan = bench.one("command = \"sh -c 'touch started; sleep 4321'\"\nport = 'free'\n");
    let output = yardstick()
        .args(["run", &plan, "--out", "/proc/nowhere/run"])
        .env(TEST_MARK, &bench.mark)
        .current_dir(bench.folder.path())
        .output()
        .unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.starts_with("error: cannot write /proc/nowhere/.run.logs"), "{text}");
    assert!(text.contains("hint: choose another --out"), "{text}");
    assert!(!bench.path("started").exists());
}

#[test]
fn engine_that_leaves_for_the_background_is_told_to_stay() {
    let bench = Bench::new();
    let plan = bench.one("command = \"sh -c 'setsid sleep 4321 & exit 0'\"\nport = 'free'\n");
    let output = bench.run(&[&plan]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("exited with status 0 while starting"), "{text}");
    assert!(text.contains("hint: its command must stay in the foreground"), "{text}");
    bench.nothing_lives();
}

#[test]
fn log_that_has_no_end_does_not_fill_the_disk() {
    let bench = Bench::new();
    let script = format!("yes flood | head -c 200000000; exec {}", bench.serve());
    let plan = bench.one(&format!("command = ['sh', '-c', '''{script}''']\n"));
    let output = bench.run(&[&plan, "--experiment", "concurrent-warm"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let log = fs::metadata(bench.path("run/logs/ours.log")).unwrap();
    assert!(log.len() > 200_000_000);
    assert!(log.blocks() * 512 < 120_000_000, "{} bytes on disk", log.blocks() * 512);
    bench.nothing_lives();
}

/// A file system of 256 KB, in a space of mounts of its own: needs the right to make one.
#[test]
fn full_disk_under_a_started_engine_ends_the_run_with_its_reason() {
    let bench = Bench::new();
    fs::create_dir(bench.path("small")).unwrap();
    let plan = endless(&bench);
    let script = format!(
        "mount -t tmpfs -o size=256k none small || exit 77\n\
         {} run {plan} --out small/run --no-calibration 2>said; echo $? >code\n\
         {} report small/run --format json >summary.json",
        env!("CARGO_BIN_EXE_yardstick"),
        env!("CARGO_BIN_EXE_yardstick"),
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--map-root-user", "sh", "-c", &script]);
    command.env(TEST_MARK, &bench.mark).current_dir(bench.folder.path());
    let output = command.output();
    if !output.as_ref().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no file system can be mounted here: {output:?}");
        return;
    }
    let said = fs::read_to_string(bench.path("said")).unwrap();
    assert_eq!(fs::read_to_string(bench.path("code")).unwrap().trim(), "1", "{said}");
    assert!(said.contains("error: cannot write") && said.contains("No space left"), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    let summary: Value =
        serde_json::from_slice(&fs::read(bench.path("summary.json")).unwrap()).unwrap();
    assert!(summary["cases"][0]["num_ok"].as_u64().unwrap() > 10, "{summary}");
    bench.nothing_lives();
}

#[test]
fn run_that_may_open_few_files_says_so() {
    let bench = Bench::new();
    let plan = bench.one(&format!("command = '{}'\n", bench.serve()));
    let inner = bench.command(&[&plan]);
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 64; exec \"$0\" \"$@\""]).arg(inner.get_program());
    command.args(inner.get_args()).env(TEST_MARK, &bench.mark).current_dir(bench.folder.path());
    let output = command.output().unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("open files") && text.contains("ulimit -Hn"), "{text}");
    bench.nothing_lives();
}
