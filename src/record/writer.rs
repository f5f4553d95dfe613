//! The recorder on a thread of its own, so that serialising a line and waiting
//! for the disk never delays the stamp of another request's token.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use super::{
    CalibrationRecord, CountSource, JournalEntry, Recorder, RequestRecord, ResourceRecord,
    RunDirError, StepRecord,
};

/// Lines that may wait for the disk; past it the sender waits too.
const QUEUE: usize = 4096;

/// Counts the tokens of a text, where the model's tokenizer is at hand.
pub type CountTokens = Box<dyn Fn(&str) -> Option<u32> + Send>;

enum Line {
    Request(Box<RequestRecord>),
    Journal(JournalEntry),
    Step(StepRecord),
    Calibration(Box<CalibrationRecord>),
    Resource(Box<ResourceRecord>),
}

/// Hands lines to the recorder's thread.
pub struct RecordWriter {
    lines: SyncSender<Line>,
    thread: JoinHandle<Result<(), RunDirError>>,
}

/// Hands lines to the recorder's thread from another one. The recorder ends
/// only when every sender is gone.
#[derive(Clone)]
pub struct LineSender(SyncSender<Line>);

impl LineSender {
    /// Queues a look at resources.
    ///
    /// # Errors
    /// When the recorder has stopped at an error.
    pub fn resource(&self, record: ResourceRecord) -> Result<(), Stopped> {
        self.0.send(Line::Resource(Box::new(record))).map_err(|_| Stopped)
    }

    /// Queues a journal entry.
    ///
    /// # Errors
    /// When the recorder has stopped at an error.
    pub fn journal(&self, entry: JournalEntry) -> Result<(), Stopped> {
        self.0.send(Line::Journal(entry)).map_err(|_| Stopped)
    }
}

/// The recorder has stopped; [`RecordWriter::finish`] says why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped;

impl RecordWriter {
    /// Starts the thread. `count_tokens` fills in output counts that the
    /// engine did not report.
    #[must_use]
    pub fn start(recorder: Recorder, count_tokens: Option<CountTokens>) -> Self {
        let (lines, queue) = sync_channel(QUEUE);
        let thread = std::thread::spawn(move || {
            give_way();
            write(recorder, &queue, count_tokens.as_ref())
        });
        Self { lines, thread }
    }

    /// Queues a request.
    ///
    /// # Errors
    /// When the recorder has stopped at an error.
    pub fn request(&self, record: RequestRecord) -> Result<(), Stopped> {
        self.lines.send(Line::Request(Box::new(record))).map_err(|_| Stopped)
    }

    /// Queues a journal entry.
    ///
    /// # Errors
    /// When the recorder has stopped at an error.
    pub fn journal(&self, entry: JournalEntry) -> Result<(), Stopped> {
        self.lines.send(Line::Journal(entry)).map_err(|_| Stopped)
    }

    /// Queues a step.
    ///
    /// # Errors
    /// When the recorder has stopped at an error.
    pub fn step(&self, step: StepRecord) -> Result<(), Stopped> {
        self.lines.send(Line::Step(step)).map_err(|_| Stopped)
    }

    /// Queues a request of the client's own measurement.
    ///
    /// # Errors
    /// When the recorder has stopped at an error.
    pub fn calibration(&self, record: CalibrationRecord) -> Result<(), Stopped> {
        self.lines.send(Line::Calibration(Box::new(record))).map_err(|_| Stopped)
    }

    /// A sender for another thread, which must be gone before [`RecordWriter::finish`] returns.
    #[must_use]
    pub fn sender(&self) -> LineSender {
        LineSender(self.lines.clone())
    }

    /// Waits until every queued line is in its file.
    ///
    /// # Errors
    /// The first error the recorder met.
    pub fn finish(self) -> Result<(), RunDirError> {
        drop(self.lines);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Lets the driver and engines in this process go first where processors are
/// few. Linux alone gives a thread a niceness of its own; elsewhere it would be
/// the whole process's.
fn give_way() {
    #[cfg(target_os = "linux")]
    {
        // Refused or not, lines are written.
        let _ = rustix::process::nice(10);
    }
}

fn write(
    mut recorder: Recorder,
    queue: &Receiver<Line>,
    count_tokens: Option<&CountTokens>,
) -> Result<(), RunDirError> {
    for line in queue {
        match line {
            Line::Request(mut record) => {
                if record.num_output_tokens.is_none() {
                    record.num_output_tokens = count_tokens.and_then(|count| count(&record.text));
                    if record.num_output_tokens.is_some() {
                        record.count_source = CountSource::Tokenizer;
                    }
                }
                recorder.request(&record)?;
            }
            Line::Journal(entry) => recorder.journal(&entry)?,
            Line::Step(step) => recorder.step(&step)?,
            Line::Calibration(record) => recorder.calibration(&record)?,
            Line::Resource(record) => recorder.resource(&record)?,
        }
    }
    Ok(())
}
