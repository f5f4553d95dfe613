//! Memory as a bar of characters: a part a glyph, as wide as it is large.

use crate::sizing::answer::EngineAnswer;

/// What is nobody's.
const UNUSED: char = '·';

/// The glyph of a part.
#[must_use]
pub fn glyph(part: &str) -> char {
    match part {
        "weights" => '█',
        "activations" | "compute graph" => '▓',
        "non-torch" | "CUDA context" => '▒',
        "CUDA graphs" => '╳',
        _ => '░',
    }
}

/// A bar of `width` characters: the device's memory, or where that is not the
/// question, the sum of the parts. A stroke marks the end of the budget.
#[must_use]
pub fn bar(engine: &EngineAnswer, width: usize) -> String {
    let parts = engine.parts.iter().map(|part| {
        let bytes = u64::try_from(part.amount.expected_bytes).unwrap_or(0);
        (glyph(part.name), bytes, part.in_budget)
    });
    let parts: Vec<_> = parts.collect();
    let sum: u64 = parts.iter().map(|(_, bytes, _)| *bytes).fold(0, u64::saturating_add);
    let whole = |amount: &crate::sizing::Amount| u64::try_from(amount.expected_bytes).unwrap_or(0);
    let total = engine.total.as_ref().map_or(sum, whole).max(1);
    let at = |bytes: u64| {
        let share = bytes.min(total) as f64 / total as f64;
        ((share * width as f64).round() as usize).min(width)
    };
    let mut cells = vec![UNUSED; width];
    let mut end = 0_u64;
    for (glyph, bytes, _) in parts {
        let begin = end;
        end = end.saturating_add(bytes);
        for cell in &mut cells[at(begin)..at(end)] {
            *cell = glyph;
        }
    }
    if let Some(budget) = &engine.budget
        && let Some(cell) = cells.get_mut(at(whole(budget)))
    {
        *cell = '│';
    }
    cells.into_iter().collect()
}
