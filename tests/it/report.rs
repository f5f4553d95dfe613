//! The report as people open it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod fixture;

use yardstick::record::RunData;
use yardstick::report;
use yardstick::stats::{self, Summary};

fn measured() -> (RunData, Summary) {
    let run = fixture::run();
    let summary = stats::summarise(&run);
    (run, summary)
}

fn terminal(color: bool, width: usize) -> String {
    let (run, summary) = measured();
    let mut out = String::new();
    report::render_terminal(&run, &summary, color, width, &mut out).unwrap();
    out
}

#[test]
fn terminal_report_reads_well_at_80_columns() {
    insta::assert_snapshot!(terminal(false, 80));
}

#[test]
#[ignore = "writes the fixture's report to $YARDSTICK_REPORT_OUT, to be looked at"]
fn write_html() {
    let (run, summary) = measured();
    let mut out = String::new();
    report::render_html(&run, &summary, &mut out).unwrap();
    std::fs::write(std::env::var_os("YARDSTICK_REPORT_OUT").unwrap(), out).unwrap();
}
