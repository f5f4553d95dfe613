//! The report as people open it.

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
