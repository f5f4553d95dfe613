//! Sweeps over rates: figures of every load, then a table an engine.

use std::fmt::{self, Write};

use super::charts::figure;
use super::over_rate::{METRICS, draw};
use super::{Page, tables};
use crate::report::prose::capitalise;
use crate::stats::capacity::Capacity;

/// Writes the section; nothing where nothing was swept.
pub(super) fn section(page: &Page<'_>, out: &mut impl Write) -> fmt::Result {
    let sweeps = &page.summary.capacity;
    if sweeps.is_empty() {
        return Ok(());
    }
    out.write_str(
        "<section id=\"capacity\" aria-labelledby=\"capacity-h\">\n\
         <h2 id=\"capacity-h\">Capacity</h2>\n<p class=\"lead\">The highest rate at which an \
         engine completes at least 95 % of what arrives and keeps every objective.</p>\n\
         <div class=\"charts\">\n",
    )?;
    let mut loads: Vec<&str> = Vec::new();
    for sweep in sweeps {
        if !loads.contains(&sweep.load.as_str()) {
            loads.push(&sweep.load);
        }
    }
    for (i, load) in loads.iter().enumerate() {
        let of_load: Vec<&Capacity> = sweeps.iter().filter(|sweep| sweep.load == *load).collect();
        for (k, metric) in METRICS.iter().enumerate() {
            if let Some(drawing) = draw(page, &of_load, metric, &format!("capacity-{i}-{k}")) {
                let title = format!("{} over rate, {load}", capitalise(metric.name));
                figure(out, &title, &drawing, metric.caption)?;
            }
        }
    }
    out.write_str("</div>\n")?;
    for table in &page.view.capacity {
        tables::table(page, table, out)?;
    }
    out.write_str("</section>\n")
}
