//! Sweeps over rates: figures of every load.

use std::fmt::{self, Write};

use super::Page;
use super::charts::figure;
use super::over_rate::{METRICS, draw};
use crate::report::prose::capitalise;
use crate::stats::capacity::Capacity;

pub(super) fn charts(page: &Page<'_>, out: &mut impl Write) -> fmt::Result {
    let sweeps = &page.summary.capacity;
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
    Ok(())
}
