//! What surrounds the numbers: engines and their settings,
//! what is absent, what to beware of, what words mean.

use std::fmt::{self, Write};

use super::Page;
use super::escape::{escape, escape_name};
use super::{svg, tables};
use crate::engine::Capability;
use crate::record::{EngineRecord, Machine};
use crate::report::definitions::DEFINITIONS;
use crate::report::prose::capitalise;
use crate::report::view::reached;
use crate::units::format_bytes;

pub(super) fn engines(page: &Page<'_>, out: &mut impl Write) -> fmt::Result {
    open(out, "engines", "Engines and machine")?;
    tables::table(page, &page.view.engines, out)?;
    if let Some(contract) = &page.view.contract {
        writeln!(out, "<h3>{}</h3>", escape(&capitalise(&contract.caption)))?;
        tables::table(page, contract, out)?;
    }
    out.write_str("<div class=\"cards roomy\">\n")?;
    for engine in &page.run.manifest.engines {
        settings(page, engine, out)?;
    }
    machine(&page.run.manifest.machine, out)?;
    out.write_str("</div>\n</section>\n")
}

fn settings(page: &Page<'_>, engine: &EngineRecord, out: &mut impl Write) -> fmt::Result {
    let name = &engine.spec.name;
    let series = page.series(name);
    writeln!(
        out,
        "<article class=\"card\">\n<h3 class=\"engine s{series}\">{}{}</h3>\n<dl class=\"pairs\">",
        svg::swatch(series),
        escape(name)
    )?;
    pair(out, "reached at", &reached(engine))?;
    for (key, value) in &engine.spec.settings {
        pair(out, &format!("asked: {key}"), value)?;
    }
    if let Some(info) = &engine.info {
        for (key, value) in &info.settings {
            pair(out, key, &readable(key, value))?;
        }
        let can = &info.capabilities;
        for (what, capability) in [
            ("token-id prompts", &can.token_id_prompts),
            ("ignores EOS", &can.ignore_eos),
            ("can be made cold", &can.cold),
            ("own timings", &can.server_timings),
        ] {
            match capability {
                Capability::Yes => pair(out, what, "yes")?,
                Capability::No { reason } => pair(out, what, &format!("no: {reason}"))?,
            }
        }
    }
    if let Some(error) = &engine.error {
        pair(out, "could not be asked", error)?;
    }
    out.write_str("</dl>\n</article>\n")
}

fn machine(machine: &Machine, out: &mut impl Write) -> fmt::Result {
    out.write_str("<article class=\"card\">\n<h3>machine</h3>\n<dl class=\"pairs\">\n")?;
    pair(out, "system", &machine.os)?;
    pair(out, "processor", machine.cpu.as_deref().unwrap_or("not read"))?;
    pair(out, "processors", &machine.num_cpus.to_string())?;
    if let Some(bytes) = machine.memory_bytes {
        pair(out, "memory", &format_bytes(bytes))?;
    }
    if let Some(percent) = machine.load_average_percent {
        pair(out, "load at the start", &format!("{:.2}", f64::from(percent) / 100.0))?;
    }
    if !machine.cpu_features.is_empty() {
        pair(out, "SIMD", &machine.cpu_features.join(", "))?;
    }
    for gpu in &machine.gpus {
        pair(out, "GPU", gpu)?;
    }
    if let Some(reason) = &machine.gpu_absent {
        pair(out, "no GPU", reason)?;
    }
    for (key, value) in &machine.notes {
        pair(out, key, &readable(key, value))?;
    }
    out.write_str("</dl>\n</article>\n")
}

fn pair(out: &mut impl Write, label: &str, value: &str) -> fmt::Result {
    writeln!(out, "<div><dt>{}</dt><dd>{}</dd></div>", escape_name(label), escape(value))
}

/// What a setting's value reads as: a size in bytes like any other of the report.
fn readable(key: &str, value: &str) -> String {
    let bytes = value.parse().ok().filter(|_| key.ends_with("_bytes"));
    bytes.map_or_else(|| value.to_owned(), format_bytes)
}

pub(super) fn absent(page: &Page<'_>, out: &mut impl Write) -> fmt::Result {
    if page.view.absent.is_empty() {
        return Ok(());
    }
    open(out, "absent", "Not measured")?;
    out.write_str("<ul class=\"items\">\n")?;
    for absent in &page.view.absent {
        writeln!(
            out,
            "<li><strong>{}</strong>, {}: {}</li>",
            escape(&absent.engine),
            escape(&absent.cases),
            escape(&absent.reason)
        )?;
    }
    out.write_str("</ul>\n</section>\n")
}

pub(super) fn warnings(page: &Page<'_>, out: &mut impl Write) -> fmt::Result {
    if page.view.warnings.is_empty() {
        return Ok(());
    }
    open(out, "warnings", "Beware")?;
    out.write_str("<ul class=\"items warnings\">\n")?;
    for warning in page.view.warnings {
        out.write_str("<li>")?;
        for name in [&warning.engine, &warning.experiment].into_iter().flatten() {
            write!(out, "<strong>{}:</strong> ", escape(name))?;
        }
        writeln!(
            out,
            "<span>{}.</span>\n<p>{}.</p></li>",
            escape(&capitalise(&warning.message)),
            escape(&capitalise(&warning.advice))
        )?;
    }
    out.write_str("</ul>\n</section>\n")
}

pub(super) fn terms(out: &mut impl Write) -> fmt::Result {
    open(out, "terms", "Terms")?;
    out.write_str("<dl class=\"terms\">\n")?;
    for (term, meaning) in DEFINITIONS {
        writeln!(out, "<dt>{}</dt>\n<dd>{}</dd>", escape(term), escape(meaning))?;
    }
    out.write_str("</dl>\n</section>\n")
}

fn open(out: &mut impl Write, id: &str, title: &str) -> fmt::Result {
    writeln!(
        out,
        "<section id=\"{id}\" aria-labelledby=\"{id}-h\">\n<h2 id=\"{id}-h\">{title}</h2>"
    )
}
