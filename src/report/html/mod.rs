//! One HTML file.

use std::fmt::{self, Write};

use crate::record::RunData;
use crate::stats::Summary;

/// Writes the page.
///
/// # Errors
/// Those of `out`.
pub fn render(_: &RunData, _: &Summary, out: &mut impl Write) -> fmt::Result {
    out.write_str("")
}
