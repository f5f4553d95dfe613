//! The answer of `yardstick size` on a terminal, all of it on one screen: an engine a
//! section, its memory as a bar, what it comes to, and what to do. Pure; makes sense
//! without colour.

mod bar;
pub mod explained;

use std::fmt::{self, Write};

use self::bar::bar;
use super::prose::{printable, wrap};
use crate::sizing::amount::as_gib;
use crate::sizing::answer::{Answer, EngineAnswer, Part, WayOut};
use crate::sizing::{Amount, Count, KvType, Verdict};
use crate::units::{format_bytes, format_significant};

/// Narrower than this nothing is legible.
const MIN_WIDTH: usize = 40;
/// Narrower than this a column of words is no column.
const MIN_TEXT: usize = 20;

/// Writes the page.
///
/// # Errors
/// Those of `out`.
pub fn render(answer: &Answer, color: bool, width: usize, out: &mut impl Write) -> fmt::Result {
    let page = Page::new(color, width);
    page.head(answer, out)?;
    for engine in &answer.engines {
        writeln!(out)?;
        page.engine(engine, out)?;
    }
    for not_sized in &answer.not_sized {
        writeln!(out)?;
        page.paragraph("", &format!("{}: {}", not_sized.engine, not_sized.reason), out)?;
    }
    Ok(())
}

struct Page {
    color: bool,
    width: usize,
}

impl Page {
    fn new(color: bool, width: usize) -> Self {
        Self { color, width: width.max(MIN_WIDTH) }
    }

    fn head(&self, answer: &Answer, out: &mut impl Write) -> fmt::Result {
        let (model, gpu) = (&answer.model, &answer.gpu);
        let nvml = gpu
            .nvml_bytes
            .map_or_else(String::new, |bytes| format!(", {} by NVML", format_bytes(bytes)));
        let title = format!("{} on {}", printable(&model.name), printable(&gpu.name));
        let memory = format!(": {} GiB for CUDA{nvml}", gib_range(&gpu.cuda_total));
        if title.chars().count() + memory.chars().count() <= self.width {
            writeln!(out, "{}{memory}", self.strong(&title))?;
        } else {
            writeln!(out, "{}", self.strong(&title))?;
            self.paragraph("", memory.trim_start_matches([':', ' ']), out)?;
        }
        let billions = model.num_parameters as f64 / 1e9;
        let window = model.sliding.map_or_else(String::new, |sliding| {
            format!(", {} of them with a window of {}", sliding.num_layers, sliding.window_tokens)
        });
        self.paragraph(
            "",
            &format!(
                "{} billion parameters, {} layers{window}, {} KV heads of {}; {} tokens at most; \
                 {} of KV a token",
                format_significant(billions),
                model.num_layers,
                model.num_kv_heads,
                model.head_dim,
                model.max_position_embeddings,
                format_bytes(model.kv_bytes_per_token(KvType::Bf16)),
            ),
            out,
        )
    }

    fn engine(&self, engine: &EngineAnswer, out: &mut impl Write) -> fmt::Result {
        let verdict = match engine.starts {
            Verdict::Yes => "starts",
            Verdict::Likely => "starts, as expected",
            Verdict::Unlikely => "does not start, as expected",
            Verdict::No => "does not start",
        };
        let used = engine.title.chars().count() + verdict.chars().count() + 2;
        let rule = "─".repeat(self.width.saturating_sub(used));
        writeln!(out, "{}", self.strong(&format!("{} {rule} {verdict}", engine.title)))?;
        writeln!(out, "{}", bar(engine, self.width))?;
        self.items(engine.parts.iter().map(legend), out)?;
        let notes = engine.notes.iter().map(|note| format!("· {}", printable(note)));
        self.items([pool(engine)].into_iter().chain(notes), out)?;
        if let Some(error) = &engine.error {
            self.paragraph("  ", &format!("says {error}"), out)?;
        }
        for way in &engine.ways_out {
            self.paragraph(&way_out(way), &way.cost, out)?;
        }
        Ok(())
    }

    /// Items side by side, none of them broken unless it is longer than a line.
    fn items(&self, items: impl Iterator<Item = String>, out: &mut impl Write) -> fmt::Result {
        let mut line = String::new();
        for item in items {
            let needed = line.chars().count() + 2 + item.chars().count();
            if !line.is_empty() && needed > self.width {
                self.line(&line, out)?;
                line.clear();
            }
            if !line.is_empty() {
                line.push_str("  ");
            }
            line.push_str(&item);
        }
        self.line(&line, out)
    }

    /// A line as it is, wrapped only where it must be.
    fn line(&self, line: &str, out: &mut impl Write) -> fmt::Result {
        if line.chars().count() <= self.width {
            return writeln!(out, "{line}");
        }
        self.paragraph("", line, out)
    }

    /// Wrapped text with a hanging indent as wide as its lead.
    fn paragraph(&self, lead: &str, text: &str, out: &mut impl Write) -> fmt::Result {
        let indent = lead.chars().count();
        for (i, line) in wrap(&printable(text), self.width.saturating_sub(indent).max(MIN_TEXT))
            .iter()
            .enumerate()
        {
            let lead = if i == 0 { lead.to_owned() } else { " ".repeat(indent) };
            writeln!(out, "{lead}{line}")?;
        }
        Ok(())
    }

    fn strong(&self, text: &str) -> String {
        if self.color { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// `█ weights 6.02`, with its bounds where it has some.
fn legend(part: &Part) -> String {
    let beside = if part.in_budget { "" } else { " beside" };
    format!("{} {} {}{beside}", bar::glyph(part.name), part.name, gib_range(&part.amount))
}

/// What the pool comes to. Bounds of what goes with the tokens are in the JSON.
fn pool(engine: &EngineAnswer) -> String {
    let mut text = String::new();
    if let (Some(blocks), Some(block_size)) = (engine.blocks, engine.block_size) {
        text.push_str(&format!("{} blocks of {block_size}, ", blocks.expected));
    }
    text.push_str(&format!("{} tokens", count_range(engine.tokens)));
    let longest = engine.longest_request.expected;
    if longest == engine.tokens.expected {
        text.push_str(" = longest request");
    } else {
        text.push_str(&format!("; longest request {longest}"));
    }
    let at_once = engine.concurrency.iter().map(|concurrency| {
        format!("{:.2}x at {}", concurrency.expected, concurrency.request_tokens)
    });
    format!("{text}; {}", at_once.collect::<Vec<_>>().join(", "))
}

/// `→ change  starts  tokens  `, in columns, before what it costs.
fn way_out(way: &WayOut) -> String {
    let starts = if way.starts == Verdict::Yes { "starts" } else { "likely" };
    format!("→ {:<29} {starts:<6} {:>7} tokens  ", way.change, way.tokens.expected)
}

/// GiB with their bounds, where these are not one number.
fn gib_range(amount: &Amount) -> String {
    let gib = |bytes: i64| format!("{:.2}", as_gib(bytes));
    let (low, high) = (gib(amount.low_bytes), gib(amount.high_bytes));
    let expected = gib(amount.expected_bytes);
    if low == high { expected } else { format!("{expected} ({low}–{high})") }
}

fn count_range(count: Count) -> String {
    if count.is_exact() {
        count.expected.to_string()
    } else {
        format!("{} ({}–{})", count.expected, count.low, count.high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::find_card;
    use crate::hardware::find_gpu_card_named;
    use crate::infer::weights::StoredDtype;
    use crate::sizing::embedded::{self, EmbeddedModel, Target};
    use crate::sizing::{GpuMemory, Question, Settings, Shape, ollama, vllm};

    /// The question that the study's first deployment would have asked.
    fn study() -> Answer {
        let card = find_card("llama-3.2-3b-instruct").unwrap();
        let model = Shape::of_config(&card.name, &card.config);
        let gpu = GpuMemory::of_card(find_gpu_card_named("L4").unwrap()).unwrap();
        let settings = Settings::default();
        let question = Question { shape: &model, gpu: &gpu, settings: &settings };
        let stored = StoredDtype::Bf16;
        let opened = EmbeddedModel { config: card.config.clone(), stored, stored_bytes: None };
        let engines = vec![
            vllm::size(&question, vllm::STUDY).unwrap(),
            vllm::size(&question, vllm::CURRENT).unwrap(),
            ollama::size(&question, ollama::CURRENT).unwrap(),
            embedded::size(&opened, &settings, Target::Cpu).unwrap(),
        ];
        let not_sized = Vec::new();
        Answer { schema_version: 1, model, gpu, lengths: None, engines, not_sized }
    }

    fn page(answer: &Answer, width: usize) -> String {
        let mut page = String::new();
        render(answer, false, width, &mut page).unwrap();
        page
    }

    #[test]
    fn the_study_s_whole_story_is_one_screen() {
        let answer = study();
        let wide = page(&answer, 100);
        assert!(wide.lines().count() <= 45, "{} lines:\n{wide}", wide.lines().count());
        for engine in &answer.engines {
            let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            for said in engine.error.iter().chain(engine.ways_out.iter().map(|way| &way.change)) {
                assert!(words(&wide).contains(&words(said)), "{said} is not in:\n{wide}");
            }
            let tokens = format!("{} tokens", count_range(engine.tokens));
            for said in [&engine.title, &bar(engine, 100), &tokens] {
                assert!(wide.contains(said), "{said} is not in:\n{wide}");
            }
        }
    }

    #[test]
    fn no_line_is_wider_than_the_screen() {
        for width in [60, 80, 100, 120] {
            let page = page(&study(), width);
            let longest = page.lines().map(|line| line.chars().count()).max().unwrap();
            assert!(longest <= width.max(80), "{longest} of {width}:\n{page}");
        }
    }
}
