//! A reading of `yardstick size --explain` on a terminal.

use std::fmt::{self, Write};

use super::{Page, gib_range};
use crate::sizing::amount::as_gib;
use crate::sizing::explain::{Consistency, Reading};

/// Combinations of a model that are shown; the rest is counted.
const MAX_SHOWN: usize = 8;

/// Writes the reading.
///
/// # Errors
/// Those of `out`.
pub fn render(reading: &Reading, color: bool, width: usize, out: &mut impl Write) -> fmt::Result {
    let page = Page::new(color, width);
    writeln!(out, "{}", page.strong("what it says"))?;
    for sentence in &reading.sentences {
        page.paragraph("– ", sentence, out)?;
    }
    for found in &reading.consistency {
        writeln!(out)?;
        consistent(&page, found, out)?;
    }
    if !reading.advice.is_empty() {
        writeln!(out)?;
        writeln!(out, "{}", page.strong("what to do"))?;
    }
    for advice in &reading.advice {
        page.paragraph("→ ", &format!("{}: {}", advice.change, advice.why), out)?;
    }
    Ok(())
}

fn consistent(page: &Page, found: &Consistency, out: &mut impl Write) -> fmt::Result {
    if found.combinations.is_empty() {
        let text = format!(
            "if it is {}: no GPU card goes with it, CUDA total times utilization would be {} GiB",
            found.model,
            gib_range(&found.budget)
        );
        return page.paragraph("", &text, out);
    }
    let title = format!("which GPU, if it is {}", found.model);
    writeln!(out, "{}", page.strong(&title))?;
    page.paragraph(
        "",
        &format!(
            "weights take {} GiB, activations and the rest {}: any GPU whose CUDA total times \
             utilization is {} GiB goes with it",
            gib_range(&found.weights),
            gib_range(&found.expected_residual),
            gib_range(&found.budget),
        ),
        out,
    )?;
    for one in found.combinations.iter().take(MAX_SHOWN) {
        page.paragraph(
            "· ",
            &format!(
                "{} at {:.2}: {:.2} GiB less weights and K and V leaves {}",
                one.gpu,
                one.utilization,
                as_gib(one.cuda_total.share(one.utilization).expected_bytes),
                gib_range(&one.residual),
            ),
            out,
        )?;
    }
    let more = found.combinations.len().saturating_sub(MAX_SHOWN);
    let more = if more > 0 { format!("{more} more go with it; ") } else { String::new() };
    let text = format!("{more}{} others do not", found.num_excluded);
    page.paragraph("· ", &text, out)
}
