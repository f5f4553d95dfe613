//! How a run goes, on stderr: a bar on a terminal, a line a case elsewhere.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::catalog::Progress;
use crate::experiment::Observer;
use crate::plan::Case;
use crate::record::RequestRecord;

/// Shows measured requests as they end.
pub struct RunProgress {
    bar: ProgressBar,
    names: Vec<String>,
    num_failed: u64,
    /// Requests of the case that is measured.
    num_of_case: u64,
}

impl RunProgress {
    /// Progress over `cases`; `names` are the engines by the index that cases carry.
    #[must_use]
    pub fn new(cases: &[Case], names: Vec<String>) -> Self {
        let measured = cases.iter().filter(|case| case.absent.is_none());
        let num_requests = measured.map(|case| u64::from(case.num_requests)).sum();
        let bar = ProgressBar::new(num_requests);
        bar.set_style(style("{bar:20} {pos}/{len} requests {prefix} {elapsed} {wide_msg}"));
        bar.enable_steady_tick(Duration::from_millis(500));
        Self { bar, names, num_failed: 0, num_of_case: 0 }
    }

    /// Takes the bar away, so that what follows starts on a clean line.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }

    fn label(&self, case: &Case) -> String {
        let engine = self.names.get(case.engine).map_or("?", String::as_str);
        let again = if case.again { " again" } else { "" };
        format!("{} {} {engine}{again}", case.experiment, case.pace())
    }

    fn say(&self, line: &str) {
        if std::io::stderr().is_terminal() {
            self.bar.println(line);
        } else {
            super::output::note(line);
        }
    }
}

impl Observer for RunProgress {
    fn phase(&mut self, case: &Case, what: &str) {
        self.bar.set_message(format!("{}: {what}", self.label(case)));
    }

    fn request(&mut self, record: &RequestRecord) {
        if !record.outcome.is_ok() {
            self.num_failed += 1;
            self.bar.set_prefix(format!("{} failed", self.num_failed));
        }
        self.num_of_case += 1;
        self.bar.inc(1);
    }

    fn finished(&mut self, case: &Case, failure: Option<&str>) {
        let label = self.label(case);
        let measured = std::mem::take(&mut self.num_of_case);
        // What is not sent any more, of a case that failed or had nothing left to decide.
        let unsent = u64::from(case.num_requests).saturating_sub(measured);
        self.bar.set_length(self.bar.length().unwrap_or(0).saturating_sub(unsent));
        match failure {
            Some(message) => self.say(&format!("{label}: not measured: {message}")),
            None if std::io::stderr().is_terminal() => {}
            None => self.say(&format!("{label}: {measured} requests")),
        }
    }
}

/// Shows a model being found and downloaded.
#[derive(Debug)]
pub struct DownloadProgress(ProgressBar);

impl DownloadProgress {
    /// Nothing is shown until something takes time.
    #[must_use]
    pub fn new() -> Self {
        Self(ProgressBar::hidden())
    }

    /// Shows one report of the catalog.
    pub fn show(&mut self, progress: Progress) {
        match progress {
            Progress::Trying(line) => super::output::note(&line),
            Progress::Bytes { file, done, total } => {
                if self.0.is_hidden() && std::io::stderr().is_terminal() {
                    self.0 = ProgressBar::new(total.unwrap_or(0));
                    self.0.set_style(style(
                        "{wide_msg} {bar:20} {bytes}/{total_bytes} {bytes_per_sec}",
                    ));
                }
                if let Some(total) = total {
                    self.0.set_length(total);
                }
                self.0.set_message(file);
                self.0.set_position(done);
                if Some(done) == total {
                    self.0.finish_and_clear();
                    self.0 = ProgressBar::hidden();
                }
            }
        }
    }
}

impl Default for DownloadProgress {
    fn default() -> Self {
        Self::new()
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
