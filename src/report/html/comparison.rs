//! Engines compared over rounds: a forest of ratios for each experiment and pair.

use std::fmt::{self, Write};

use super::charts::figure;
use super::{Page, forest};
use crate::report::comparison::{caption, groups};
use crate::stats::compare::verdict::percent;

pub(super) fn charts(page: &Page<'_>, out: &mut impl Write) -> fmt::Result {
    for (i, group) in groups(&page.summary.comparisons).iter().enumerate() {
        if let Some(drawing) = forest::draw(page, group, &format!("forest-{i}")) {
            let margin = percent(group[0].margin);
            let band =
                format!("Ratios with 95 % intervals over rounds; the band is {margin} around 1.");
            figure(out, &caption(group), &drawing, &band)?;
        }
    }
    Ok(())
}
