//! The report as people open it: what they read, as snapshots; what a browser
//! and a screen reader need, as claims.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod browser;
mod fixture;
mod format;
mod kv;
pub mod markup;
mod rounds;
mod watch;

use proptest::prelude::*;
use yardstick::clock::Timestamp;
use yardstick::engine::EventKind;
use yardstick::record::{EventRecord, JournalEvent, Recorder, RunData};
use yardstick::report;
use yardstick::stats::warnings::WarningClass;
use yardstick::stats::{self, Summary};

fn measured() -> (RunData, Summary) {
    let run = fixture::run();
    let summary = stats::summarise(&run);
    (run, summary)
}

/// The run as a probe saw it.
fn watched() -> RunData {
    watch::watch(fixture::run())
}

fn terminal(run: &RunData, color: bool, width: usize) -> String {
    let mut out = String::new();
    report::render_terminal(run, &stats::summarise(run), color, width, &mut out).unwrap();
    out
}

fn html(run: &RunData) -> String {
    let mut out = String::new();
    report::render_html(run, &stats::summarise(run), &mut out).unwrap();
    out
}

fn csv(run: &RunData) -> String {
    let mut out = String::new();
    report::render_csv(run, &stats::summarise(run), &mut out).unwrap();
    out
}

fn markdown(run: &RunData) -> String {
    let mut out = String::new();
    report::render_markdown(run, &stats::summarise(run), &mut out).unwrap();
    out
}

#[test]
fn terminal_report_reads_well_at_80_columns() {
    let text = terminal(&fixture::run(), false, 80);
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
    insta::assert_snapshot!(text);
}

#[test]
fn what_was_used_is_in_every_format() {
    let run = watched();
    let page = html(&run);
    markup::check(&page);
    for words in ["What was used", "GPU memory, up to 8.6", "KV cache used, up to 40.0 %"] {
        assert!(page.contains(words), "{words}");
    }
    assert!(page.contains("port 11434 is held by docker-proxy"), "absence has its reason");
    let text = terminal(&run, false, 80);
    assert!(text.lines().all(|line| line.chars().count() <= 80));
    for words in ["memory and processor", "the engines' own word", "sw_power_cap in 100 %"] {
        assert!(text.contains(words), "{words} is not in:\n{text}");
    }
    assert!(markdown(&run).contains("## What was used"));
    let rows = csv(&run);
    assert!(rows.contains(",energy_per_output_token,J,,"), "{rows}");
    assert!(!csv(&fixture::run()).contains("energy"), "no row where nothing was looked at");
}

#[test]
fn engines_are_compared_over_rounds_in_every_report() {
    let run = rounds::repeat(fixture::run(), 8);
    let summary = stats::summarise(&run);
    let words =
        |word: &str| summary.comparisons.iter().filter(|c| c.verdict.as_str() == word).count();
    assert!(words("different") > 0 && words("undecided") > 0, "{}", summary.comparisons.len());
    let (mut text, mut page, mut document) = (String::new(), String::new(), String::new());
    report::render_terminal(&run, &summary, false, 80, &mut text).unwrap();
    report::render_html(&run, &summary, &mut page).unwrap();
    report::render_markdown(&run, &summary, &mut document).unwrap();
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    for words in ["comparison ─", "ollama against embedded, 8 rounds in the same run", "resampled"]
    {
        assert!(text.contains(words), "{words} is not in:\n{text}");
    }
    assert!(!text.contains("one measurement each"));
    markup::check(&page);
    for words in ["id=\"comparison\"", "id=\"forest-0\"", "class=\"same\"", "class=\"one\""] {
        assert!(page.contains(words), "{words}");
    }
    assert!(document.contains("## Comparison"));
    let once = terminal(&fixture::run(), false, 80);
    assert!(!once.contains("comparison ─"), "one round compares nothing");
}

#[test]
fn sweep_over_the_pool_reads_well_at_80_columns() {
    let run = kv::swept();
    let text = terminal(&run, false, 80);
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    let from = text.find("KV pool ─").unwrap();
    let to = text.find("inside the engine ─").unwrap();
    insta::assert_snapshot!(text[from..to].trim_end());
    let page = html(&run);
    markup::check(&page);
    for words in ["Throughput over the pool", "The smallest sufficient pool is kv_blocks=32"] {
        assert!(page.contains(words), "{words}");
    }
}

#[test]
fn wide_terminal_leaves_no_column_out() {
    let text = terminal(&fixture::run(), false, 160);
    assert!(!text.contains("left out at this width"));
    assert!(text.contains("steady"));
}

#[test]
fn narrow_terminal_keeps_its_width() {
    // A column that is never left out may be wider than a terminal of 60; text is not.
    let text = terminal(&fixture::run(), false, 60);
    assert!(text.lines().all(|line| line.chars().count() <= 60), "{text}");
}

#[test]
fn colour_adds_nothing_but_emphasis() {
    let run = fixture::run();
    let mut plain = terminal(&run, true, 80);
    for sequence in ["\x1b[1m", "\x1b[2m", "\x1b[0m"] {
        assert!(plain.contains(sequence));
        plain = plain.replace(sequence, "");
    }
    assert_eq!(plain, terminal(&run, false, 80));
}

#[test]
fn a_servers_escape_sequences_reach_no_terminal() {
    assert!(!terminal(&fixture::run(), false, 80).contains('\x1b'));
}

#[test]
fn markdown_report_is_a_page_of_tables() {
    insta::assert_snapshot!(markdown(&fixture::run()));
}

#[test]
fn csv_report_is_long_form() {
    let text = csv(&fixture::run());
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    assert_eq!(reader.headers().unwrap(), report::csv::COLUMNS.as_slice());
    let rows: Vec<csv::StringRecord> = reader.records().collect::<Result<_, _>>().unwrap();
    let (_, summary) = measured();
    assert!(rows.len() >= summary.cases.len() * 16);
    let head: String = text.split_inclusive('\n').take(50).collect();
    insta::assert_snapshot!(head);
}

#[test]
fn json_report_is_the_summary() {
    let (run, summary) = measured();
    let mut out = String::new();
    report::render_json(&run, &summary, &mut out).unwrap();
    assert_eq!(serde_json::from_str::<Summary>(&out).unwrap(), summary);
}

#[test]
fn same_run_directory_gives_the_same_bytes() {
    let (run, summary) = measured();
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("run");
    let mut recorder = Recorder::create(&path, &run.manifest).unwrap();
    for request in &run.requests {
        recorder.request(request).unwrap();
    }
    for entry in &run.journal {
        recorder.journal(entry).unwrap();
    }
    for step in &run.steps {
        recorder.step(step).unwrap();
    }
    for record in &run.calibration {
        recorder.calibration(record).unwrap();
    }
    let again = RunData::read(&path).unwrap();
    assert_eq!(stats::summarise(&again), summary);
    assert_eq!(html(&again), html(&run));
    assert_eq!(terminal(&again, true, 80), terminal(&run, true, 80));
}

#[test]
fn summary_tells_of_the_queue_the_cost_of_http_and_what_is_absent() {
    let (_, summary) = measured();
    let of = |engine: &str, experiment: &str| {
        summary.cases.iter().find(|c| c.engine == engine && c.experiment == experiment).unwrap()
    };
    assert_eq!(of("ollama", "concurrent-warm").staircase.as_ref().unwrap().slots, 4);
    assert!(of("embedded", "concurrent-warm").staircase.is_none());
    let absent = of("ollama", "concurrent-warm").steady_absent.as_deref().unwrap();
    assert!(absent.contains("at most 4 of 10"), "{absent}");
    assert_eq!(summary.http_cost.len(), 13);
    assert_eq!(summary.absent.len(), 2);
    assert!(of("embedded", "sequential-cold").cold_ttft_ms.unwrap() > 400.0);
    assert_eq!(of("vllm", "concurrent-warm").num_ok, 7);
}

#[test]
fn warnings_name_each_doubt_once() {
    let (_, summary) = measured();
    let classes: Vec<_> = summary.warnings.iter().map(|warning| warning.class).collect();
    assert_eq!(
        classes,
        [
            WarningClass::UnequalPrecision,
            WarningClass::UnequalPrompts,
            WarningClass::UnequalContext,
            WarningClass::FewSamples,
            WarningClass::Failures,
            WarningClass::DummyWeights,
            WarningClass::MultiTokenChunks,
        ]
    );
}

#[test]
fn trouble_of_every_kind_is_warned_of() {
    let mut run = fixture::run();
    run.journal.retain(|entry| entry.event != JournalEvent::RunFinished);
    let at_ns = Timestamp::from_nanos(0);
    let event = JournalEvent::CaseFailed { case: 2, message: "the engine went away".to_owned() };
    run.journal.push(yardstick::record::JournalEntry { at_ns, event });
    run.manifest.machine.load_average_percent = Some(790);
    run.manifest.engines[3].info.as_mut().unwrap().model = "Qwen/Qwen2-0.5B".to_owned();
    for request in run.requests.iter_mut().filter(|request| request.outcome.is_ok()) {
        request.num_cached_tokens = Some(64);
        request.max_tokens = 65;
        request.count_source = yardstick::record::CountSource::Tokenizer;
        // Sent one after another, and by a client that does nothing else.
        let late = u64::from(request.index) * 900_000;
        request.sent_at_ns =
            Some(request.sent_at_ns.unwrap().plus(std::time::Duration::from_nanos(late)));
    }
    for entry in &mut run.journal {
        if let JournalEvent::CaseFinished { client_cpu_ns, .. } = &mut entry.event {
            *client_cpu_ns *= 40;
        }
    }
    let summary = stats::summarise(&run);
    let mut classes: Vec<_> = summary.warnings.iter().map(|warning| warning.class).collect();
    classes.sort();
    classes.dedup();
    assert_eq!(classes.len(), 16, "{classes:?}");
    insta::assert_snapshot!(
        summary
            .warnings
            .iter()
            .map(|w| format!(
                "{}{}\n  {}\n",
                w.engine.as_ref().map_or(String::new(), |engine| format!("{engine}: ")),
                w.message,
                w.advice
            ))
            .collect::<String>()
    );
}

#[test]
fn cached_tokens_of_distinct_prompts_are_told_from_those_of_repeated_ones() {
    let mut run = fixture::run();
    let warning = |run: &RunData| {
        let warnings = stats::summarise(run).warnings;
        let class = WarningClass::PrefixCacheHit;
        let found = warnings.into_iter().find(|w| w.class == class).unwrap();
        (found.message, found.advice)
    };
    for (number, request) in run.requests.iter_mut().enumerate() {
        request.num_cached_tokens = Some(16);
        request.prompt_sha256 = format!("{number:064x}");
    }
    let (message, advice) = warning(&run);
    assert!(message.contains("begin alike") && advice.contains("--prompt-tokens"), "{message}");
    run.requests.iter_mut().for_each(|request| request.prompt_sha256 = "0".repeat(64));
    let (message, advice) = warning(&run);
    assert!(message.contains("more than once") && advice.contains("--same-prompt"), "{message}");
}

#[test]
fn a_run_without_measurements_still_has_a_report() {
    let mut run = fixture::run();
    run.requests.clear();
    run.journal.clear();
    let summary = stats::summarise(&run);
    assert!(summary.cases.is_empty() && !summary.complete);
    assert_eq!(summary.absent.len(), run.manifest.cases.len());
    markup::check(&html(&run));
    assert!(terminal(&run, false, 80).contains("no request of it was recorded"));
    markdown(&run);
    csv(&run);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn whatever_a_run_file_holds_it_renders(
        changes in proptest::collection::vec((0_usize..900, any::<u64>(), 0_u8..9), 1..60),
    ) {
        let mut run = fixture::run();
        for (at, value, what) in changes {
            let index = at % run.requests.len();
            let case = at % run.manifest.cases.len();
            let request = &mut run.requests[index];
            let small = u32::try_from(value >> 32).unwrap();
            match what {
                0 => request.sent_at_ns = Some(Timestamp::from_nanos(value)),
                1 => request.sent_at_ns = None,
                2 => request.done_ns = value,
                3 => request.events = vec![EventRecord(value, EventKind::Content, Some(small)); at % 3],
                4 => request.num_output_tokens = Some(small),
                5 => request.case = small,
                6 => request.num_prompt_tokens = Some(small),
                7 => run.manifest.cases[case].concurrency = if at % 2 == 0 { 0 } else { small },
                _ => run.manifest.cases[case].engine = "<b>\u{202e}\"'&|`".to_owned(),
            }
        }
        markup::check(&html(&run));
        terminal(&run, true, 80);
        markdown(&run);
        csv(&run);
    }
}

#[test]
#[ignore = "writes the fixture's report to $YARDSTICK_REPORT_OUT, to be looked at"]
fn write_html() {
    std::fs::write(std::env::var_os("YARDSTICK_REPORT_OUT").unwrap(), html(&fixture::run()))
        .unwrap();
}
