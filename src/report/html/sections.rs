//! Headings over charts and tables, after the experiments.

use std::fmt::{self, Write};

use super::{Page, capacity, cold_start, comparison, kv_capacity, kv_sweep, tables};
use crate::report::prose::capitalise;
use crate::report::section::Topic;

pub(super) fn write(page: &Page<'_>, out: &mut impl Write) -> fmt::Result {
    for section in &page.view.sections {
        let (id, title) = (section.topic.id(), capitalise(section.topic.title()));
        writeln!(
            out,
            "<section id=\"{id}\" aria-labelledby=\"{id}-h\">\n<h2 id=\"{id}-h\">{title}</h2>\n\
             <p class=\"lead\">{}</p>",
            lead(section.topic)
        )?;
        let mut charts = String::new();
        match section.topic {
            Topic::Comparison => comparison::charts(page, &mut charts)?,
            Topic::Capacity => capacity::charts(page, &mut charts)?,
            Topic::KvSizing => kv_capacity::charts(page, &mut charts)?,
            Topic::KvPool => kv_sweep::charts(page, &mut charts)?,
            Topic::ColdStarts => cold_start::charts(page, &mut charts)?,
            Topic::Requirements | Topic::HttpCost | Topic::Inside | Topic::Resources => {}
        }
        if !charts.is_empty() {
            writeln!(out, "<div class=\"charts\">\n{charts}</div>")?;
        }
        for table in &section.tables {
            tables::table(page, table, out)?;
        }
        out.write_str("</section>\n")?;
    }
    Ok(())
}

/// What to know before reading a section, as HTML.
const fn lead(topic: Topic) -> &'static str {
    match topic {
        Topic::Requirements => {
            "Whether a bound on a tail was shown to be kept, or not to be, over all rounds. Failed \
             requests are over it."
        }
        Topic::Comparison => {
            "Each engine against the first one of its load, round by round. Different takes an \
             interval without 1, p of at most 0.05 and more than the noise floor; the same, a \
             whole interval in the band. What is neither is undecided."
        }
        Topic::Capacity => {
            "The highest rate at which an engine completes at least 95 % of what arrives and keeps \
             every objective."
        }
        Topic::KvSizing => {
            "How many requests of a length fit at once into the KV memory that each engine says it \
             has. <code>yardstick size</code> answers the same for other GPUs and settings."
        }
        Topic::KvPool => {
            "The same load on the same engine with other KV settings, loaded one after the other. \
             Predicted is what a simulated scheduler does with the same requests on a pool, in \
             steps that take as long as those of the largest one. Waste is slots of held blocks \
             that hold no token."
        }
        Topic::ColdStarts => {
            "From the start of an engine to its first token, on the clock of this client."
        }
        Topic::HttpCost => {
            "The embedded engine behind HTTP on loopback against itself in process: same weights, \
             same scheduler. Where the intervals overlap, or one burst stands against one, the \
             difference may be noise."
        }
        Topic::Inside => {
            "What the embedded engine told of itself over the whole run, warm-up included. Memory \
             of the process is that of everything in it, of this client too."
        }
        Topic::Resources => {
            "Memory, processors and GPUs while cases were measured, warm-up left out. What an \
             embedded engine used is that of this whole process, the client in it."
        }
    }
}
