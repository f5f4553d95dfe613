//! Context against requests at once, for the KV memory
//! that each engine has, with the setting in force and the loads of the run.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use super::Page;
use super::axis::Axis;
use super::charts::{EndLabel, Frame, WIDTH, end_labels, figure, short};
use super::svg::Svg;
use crate::stats::kv_capacity::KvCapacity;

const HEIGHT: f64 = 300.0;
const FRAME: Frame = Frame { left: 40.0, right: 324.0, top: 24.0, bottom: 264.0 };
/// Shortest request drawn, unless a load of the run has shorter ones.
const SHORTEST: u64 = 256;
/// The marker of a load, in no engine's colour.
const DIAMOND: usize = 3;
/// Lengths of a curve.
const NUM_LENGTHS: u32 = 240;

pub(super) fn charts(page: &Page<'_>, out: &mut impl Write) -> fmt::Result {
    if let Some(drawing) = draw(page, &page.summary.kv_capacity, "kv-capacity-0") {
        figure(
            out,
            "Requests at once over their length",
            &drawing,
            "Whole requests, prompt and answer together. The large marker is the setting in force: \
             the longest request that the engine takes, and how many of those fit. Dashed is what \
             the same memory would hold of longer ones. Diamonds are the loads of this run: they do \
             not fit at once into an engine whose line is below them.",
        )?;
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "coordinates")]
fn draw(page: &Page<'_>, capacities: &[KvCapacity], id: &str) -> Option<String> {
    let known: Vec<(&KvCapacity, u64)> = capacities
        .iter()
        .filter_map(|capacity| Some((capacity, longest_fitting(capacity)?)))
        .collect();
    let loads = || known.iter().flat_map(|(capacity, _)| &capacity.loads);
    let shortest = loads().map(|load| load.request_tokens).min().unwrap_or(SHORTEST);
    let shortest = shortest.clamp(1, SHORTEST);
    let setting = |capacity: &KvCapacity| capacity.max_model_len.map(u64::from);
    let longest = known.iter().map(|(c, longest)| setting(c).unwrap_or(0).max(*longest)).max()?;
    let most = known.iter().filter_map(|(capacity, _)| capacity.fit(shortest));
    let most = most.chain(loads().map(|load| load.concurrency.into())).max()?;
    let x_at = (FRAME.left + 12.0, FRAME.right - 12.0);
    let x = Axis::spread([shortest, longest].into_iter().map(|v| v as f64), x_at.0, x_at.1);
    let y = Axis::spread([1, most].into_iter().map(|v| v as f64), FRAME.bottom, FRAME.top);
    let mut svg = Svg::new(WIDTH, HEIGHT);
    let scale = |axis: &Axis| if axis.is_log() { ", log scale" } else { "" };
    FRAME.y_axis(&mut svg, &y, &format!("requests at once{}", scale(&y)));
    FRAME.x_axis(&mut svg, &x, &format!("tokens of each{}", scale(&x)), true);
    let (mut labels, mut told) = (Vec::new(), Vec::new());
    for (capacity, last) in &known {
        let series = page.series(&capacity.engine);
        let place = |tokens: u64| {
            let fit = capacity.fit(tokens).unwrap_or(0);
            (x.at(tokens as f64), y.at(fit as f64))
        };
        let taken = setting(capacity).unwrap_or(*last).min(*last);
        svg.open(&format!("series s{series}"));
        let curve = |from, to| lengths(from, to).map(place).collect::<Vec<_>>();
        svg.polyline("curve", &curve(shortest.min(taken), taken));
        if taken < *last {
            svg.polyline("curve predicted", &curve(taken, *last));
        }
        if let (Some(tokens), Some(fit)) = (setting(capacity), capacity.full_length_fit) {
            let title =
                format!("{} takes up to {tokens} tokens: {fit} of those fit", capacity.engine);
            svg.marker(series, place(tokens), 5.0, &title);
            told.push(format!("{title}; the longest that fits has {last}"));
        }
        svg.close();
        labels.push(EndLabel { series, y: place(*last).1, text: short(&capacity.engine) });
    }
    for ((tokens, concurrency), fits) in met(&known) {
        let title = format!("{concurrency} at once of up to {tokens} tokens: {}", fits.join(", "));
        svg.marker(DIAMOND, (x.at(tokens as f64), y.at(concurrency.into())), 2.6, &title);
    }
    end_labels(&mut svg, labels, FRAME.right + 4.0, FRAME);
    Some(svg.finish(id, "Requests at once over their length", &format!("{}.", told.join(". "))))
}

/// The loads of the run, each with how many of its requests fit into which engine.
fn met(known: &[(&KvCapacity, u64)]) -> BTreeMap<(u64, u32), Vec<String>> {
    let mut met: BTreeMap<_, Vec<String>> = BTreeMap::new();
    for (capacity, _) in known {
        for load in &capacity.loads {
            let fits = format!("{} fit into {}", load.fit.unwrap_or(0), capacity.engine);
            let of_load = met.entry((load.request_tokens, load.concurrency)).or_default();
            if !of_load.contains(&fits) {
                of_load.push(fits);
            }
        }
    }
    met
}

/// Tokens of the longest request that fits; `None` where none does or the pool is unknown.
fn longest_fitting(capacity: &KvCapacity) -> Option<u64> {
    let tokens = capacity.pool?.longest();
    capacity.fit(tokens).filter(|fit| *fit > 0).map(|_| tokens)
}

/// Lengths from one to another at equal ratios, both ends among them.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a length between two lengths"
)]
fn lengths(from: u64, to: u64) -> impl Iterator<Item = u64> {
    let ratio = (to as f64 / from as f64).max(1.0);
    let between = (0..NUM_LENGTHS).map(move |i| {
        let share = f64::from(i) / f64::from(NUM_LENGTHS);
        ((from as f64 * ratio.powf(share)) as u64).clamp(from, to.max(from))
    });
    between.chain(std::iter::once(to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_rise_from_end_to_end() {
        for (from, to) in [(1, 1), (1, 2), (256, 131_072), (7, 1 << 60)] {
            let all: Vec<u64> = lengths(from, to).collect();
            assert_eq!((all.first(), all.last()), (Some(&from), Some(&to)));
            assert!(all.windows(2).all(|pair| pair[0] <= pair[1]), "{from} {to}");
        }
    }
}
