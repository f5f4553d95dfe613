//! The table that says whether the engines did the same work.

use crate::stats::contract::Work;
use crate::units::format_significant;

use super::table::{Cell, Column, Table};

/// A row an engine; `None` where there is nothing to compare.
#[must_use]
pub fn table(works: &[Work]) -> Option<Table> {
    if works.len() < 2 {
        return None;
    }
    let told = |text: Option<String>| Cell::or_absent(text, "the engine does not say");
    let row = |work: &Work| {
        vec![
            Cell::new(work.engine.as_str()),
            Cell::or_absent(work.prompts_as.map(|form| form.as_str().to_owned()), "none was sent"),
            Cell::or_absent(work.prompt_tokens.map(span), "nobody counted them"),
            Cell::or_absent(work.output_tokens.map(span), "nobody counted them"),
            Cell::or_absent(work.asked_output_tokens.map(span), "none was asked for"),
            told(work.cached_share.map(|share| match share * 100.0 {
                0.0 => "0".to_owned(),
                percent => format_significant(percent),
            })),
            told(work.precision.clone()),
            told(work.max_model_len.map(|len| len.to_string())),
            told(work.parallel_slots.map(|slots| slots.to_string())),
        ]
    };
    let mut table = Table {
        caption: "the work that each engine did".to_owned(),
        columns: vec![
            Column::words("engine"),
            Column::words("prompts"),
            Column::numbers("prompt", "tokens", 0),
            Column::numbers("output", "tokens", 0),
            Column::numbers("asked", "tokens", 0),
            Column::numbers("cached", "% prompt", 0),
            Column::optional("precision", 1),
            Column::numbers("context", "tokens", 2),
            Column::numbers("at once", "requests", 0),
        ],
        rows: works.iter().map(row).collect(),
        notes: notes(works),
        continues: false,
    };
    table.drop_empty_columns();
    Some(table)
}

/// What differs, in words.
fn notes(works: &[Work]) -> Vec<String> {
    let differ = |what: &str, same: bool| (!same).then(|| what.to_owned());
    let all = |of: fn(&Work, &Work) -> bool| works.windows(2).all(|pair| of(&pair[0], &pair[1]));
    let different: Vec<String> = [
        differ("how prompts are sent", all(|a, b| a.prompts_as == b.prompts_as)),
        differ("prompt tokens", all(|a, b| a.prompt_tokens == b.prompt_tokens)),
        differ("output tokens", all(|a, b| a.output_tokens == b.output_tokens)),
        differ("precision", all(|a, b| a.precision == b.precision)),
        differ("context", all(|a, b| a.max_model_len == b.max_model_len)),
    ]
    .into_iter()
    .flatten()
    .collect();
    if different.is_empty() {
        return vec!["same prompts, lengths, precision and context for every engine".to_owned()];
    }
    vec![format!("not the same for every engine: {}", different.join(", "))]
}

fn span((least, most): (u32, u32)) -> String {
    if least == most { most.to_string() } else { format!("{least}–{most}") }
}
