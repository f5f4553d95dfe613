//! Engines compared over rounds: a forest of ratios for each experiment and pair,
//! then the tables.

use std::fmt::{self, Write};

use super::charts::figure;
use super::{Page, forest, tables};
use crate::report::comparison::{caption, groups};
use crate::stats::compare::verdict::percent;

/// Writes the section; nothing where there are no rounds to compare over.
pub(super) fn section(page: &Page<'_>, out: &mut impl Write) -> fmt::Result {
    if page.view.comparisons.is_empty() {
        return Ok(());
    }
    out.write_str(
        "<section id=\"comparison\" aria-labelledby=\"comparison-h\">\n\
         <h2 id=\"comparison-h\">Comparison</h2>\n<p class=\"lead\">Each engine against the first \
         one of its load, round by round. Different takes an interval without 1, p of at most \
         0.05 and more than the noise floor; the same, a whole interval in the band. What is \
         neither is undecided.</p>\n<div class=\"charts\">\n",
    )?;
    for (i, group) in groups(&page.summary.comparisons).iter().enumerate() {
        if let Some(drawing) = forest::draw(page, group, &format!("forest-{i}")) {
            let margin = percent(group[0].margin);
            let band =
                format!("Ratios with 95 % intervals over rounds; the band is {margin} around 1.");
            figure(out, &caption(group), &drawing, &band)?;
        }
    }
    out.write_str("</div>\n")?;
    for table in &page.view.comparisons {
        tables::table(page, table, out)?;
    }
    out.write_str("</section>\n")
}
