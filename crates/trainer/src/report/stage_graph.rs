//! Stages and what they stand on, drawn in layers.
//!
//! In: stages, parents first. Out: SVG. A stage lies one layer below its lowest parent. A line that passes layers takes a lane of its
//! own through each, so that none runs behind a box; lines from one stage share a lane as far as they go.

use super::html::{duration, escape};
use super::{StageEntry, StageState};
use std::fmt::Write;

const BOX: (f64, f64) = (190.0, 62.0);
const LANE: f64 = 14.0;
const GAP: (f64, f64) = (20.0, 36.0);
const EDGE: f64 = 6.0;
/// Passes over the layers to straighten lines.
const SWEEPS: usize = 8;

/// What takes a place in a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    /// A stage.
    Stage(usize),
    /// The lane of a stage above.
    Lane(usize),
}

impl Slot {
    /// The stage it belongs to.
    fn stage(self) -> usize {
        match self {
            Slot::Stage(stage) | Slot::Lane(stage) => stage,
        }
    }

    fn width(self) -> f64 {
        match self {
            Slot::Stage(_) => BOX.0,
            Slot::Lane(_) => LANE,
        }
    }
}

/// Draws the graph.
pub fn stage_graph(stages: &[StageEntry]) -> String {
    let layers = layers(stages);
    let widths: Vec<f64> = layers.iter().map(|layer| width(layer)).collect();
    let whole = widths.iter().copied().fold(0.0, f64::max) + 2.0 * EDGE;
    let height = layers.len() as f64 * (BOX.1 + GAP.1) - GAP.1 + 2.0 * EDGE;
    let places: Vec<Vec<f64>> = layers.iter().map(|layer| centres(layer, whole)).collect();
    let mut svg = format!(
        "<div class=\"scroll\"><svg class=\"graph\" viewBox=\"0 0 {whole:.0} {height:.0}\" width=\"{whole:.0}\" role=\"img\" aria-label=\"stages\">"
    );
    let at = |layer: usize, wanted: Slot| -> Option<f64> {
        let place = layers[layer].iter().position(|slot| *slot == wanted)?;
        Some(places[layer][place])
    };
    let top = |layer: usize| EDGE + layer as f64 * (BOX.1 + GAP.1);
    for (depth, layer) in layers.iter().enumerate().skip(1) {
        for (place, slot) in layer.iter().enumerate() {
            let x = places[depth][place];
            let above: Vec<usize> = match slot {
                Slot::Lane(stage) => vec![*stage],
                Slot::Stage(stage) => stages[*stage].parents.clone(),
            };
            for parent in above {
                let from = at(depth - 1, Slot::Stage(parent)).or_else(|| at(depth - 1, Slot::Lane(parent)));
                let Some(from) = from else { continue };
                let (y0, y1) = (top(depth - 1) + BOX.1, top(depth));
                let middle = (y0 + y1) / 2.0;
                let _ = write!(
                    svg,
                    "<path class=\"edge\" d=\"M{from:.1} {y0:.1}C{from:.1} {middle:.1} {x:.1} {middle:.1} {x:.1} {y1:.1}\"/>"
                );
            }
            if let Slot::Lane(_) = slot {
                let (y0, y1) = (top(depth), top(depth) + BOX.1);
                let _ = write!(svg, "<path class=\"edge\" d=\"M{x:.1} {y0:.1}V{y1:.1}\"/>");
            }
        }
    }
    for (depth, layer) in layers.iter().enumerate() {
        for (place, slot) in layer.iter().enumerate() {
            if let Slot::Stage(stage) = slot {
                draw_stage(&mut svg, &stages[*stage], places[depth][place] - BOX.0 / 2.0, top(depth));
            }
        }
    }
    svg.push_str("</svg></div>");
    svg
}

fn draw_stage(svg: &mut String, stage: &StageEntry, x: f64, y: f64) {
    let class = match stage.state {
        StageState::Made => "made",
        StageState::Before => "before",
        StageState::Missing => "missing",
    };
    let time = stage.seconds.map_or_else(|| "–".to_string(), duration);
    let (label, kind, hash) = (escape(&shortened(&stage.label)), escape(&stage.kind), escape(&stage.hash));
    let _ = write!(
        svg,
        "<g class=\"stage {class}\"><title>{}: {}, {time}</title><rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{}\" height=\"{}\" rx=\"7\"/>\
        <text class=\"name\" x=\"{:.1}\" y=\"{:.1}\">{label}</text><text class=\"time\" x=\"{:.1}\" y=\"{:.1}\">{time}</text>\
        <text class=\"kind\" x=\"{:.1}\" y=\"{:.1}\">{kind}</text><text class=\"hash\" x=\"{:.1}\" y=\"{:.1}\">{hash}</text></g>",
        escape(&stage.label),
        stage.state.name(),
        BOX.0,
        BOX.1,
        x + 11.0,
        y + 21.0,
        x + BOX.0 - 11.0,
        y + 21.0,
        x + 11.0,
        y + 37.0,
        x + 11.0,
        y + 53.0,
    );
}

/// At most what fits beside the time.
fn shortened(label: &str) -> String {
    match label.chars().count() > 15 {
        true => label.chars().take(14).chain(['…']).collect(),
        false => label.to_string(),
    }
}

fn width(layer: &[Slot]) -> f64 {
    layer.iter().map(|slot| slot.width() + GAP.0).sum::<f64>() - GAP.0
}

/// Middle of each slot, the layer in the middle of the drawing.
fn centres(layer: &[Slot], whole: f64) -> Vec<f64> {
    let mut x = (whole - width(layer)) / 2.0;
    let mut middles = Vec::new();
    for slot in layer {
        middles.push(x + slot.width() / 2.0);
        x += slot.width() + GAP.0;
    }
    middles
}

/// Slots by layer, in an order with few crossings.
fn layers(stages: &[StageEntry]) -> Vec<Vec<Slot>> {
    let mut depth: Vec<usize> = Vec::new();
    for stage in stages {
        depth.push(stage.parents.iter().map(|parent| depth[*parent] + 1).max().unwrap_or(0));
    }
    // A stage without parents lies just above its first child, not at the very top.
    for place in 0..stages.len() {
        let children = stages.iter().zip(&depth).filter(|(stage, _)| stage.parents.contains(&place));
        if let (true, Some(first)) = (stages[place].parents.is_empty(), children.map(|(_, depth)| *depth).min()) {
            depth[place] = first - 1;
        }
    }
    let mut layers: Vec<Vec<Slot>> = vec![Vec::new(); depth.iter().max().map_or(0, |deepest| deepest + 1)];
    for (place, _) in stages.iter().enumerate() {
        layers[depth[place]].push(Slot::Stage(place));
        let farthest = stages
            .iter()
            .zip(&depth)
            .filter(|(stage, _)| stage.parents.contains(&place))
            .map(|(_, depth)| *depth)
            .max();
        let passed = layers.iter_mut().take(farthest.unwrap_or(0)).skip(depth[place] + 1);
        passed.for_each(|layer| layer.push(Slot::Lane(place)));
    }
    for sweep in 0..SWEEPS {
        straighten(&mut layers, stages, sweep % 2 == 0);
    }
    layers
}

/// Orders each layer by the mean place of what its slots are joined to, above or below.
fn straighten(layers: &mut [Vec<Slot>], stages: &[StageEntry], from_above: bool) {
    let order: Vec<usize> = match from_above {
        true => (1..layers.len()).collect(),
        false => (0..layers.len().saturating_sub(1)).rev().collect(),
    };
    for layer in order {
        let other = if from_above { &layers[layer - 1] } else { &layers[layer + 1] };
        let middles = centres(other, 0.0);
        let own = centres(&layers[layer], 0.0);
        let joined = |slot: Slot, beside: Slot| {
            let (upper, lower) = if from_above { (beside, slot) } else { (slot, beside) };
            match lower {
                Slot::Lane(stage) => upper.stage() == stage,
                Slot::Stage(stage) => stages[stage].parents.contains(&upper.stage()),
            }
        };
        let wish = |(place, slot): (usize, &Slot)| {
            let near: Vec<f64> =
                other.iter().zip(&middles).filter(|(beside, _)| joined(*slot, **beside)).map(|(_, x)| *x).collect();
            match near.is_empty() {
                true => own[place],
                false => near.iter().sum::<f64>() / near.len() as f64,
            }
        };
        let mut wished: Vec<(f64, Slot)> =
            layers[layer].iter().enumerate().map(|entry| (wish(entry), *entry.1)).collect();
        wished.sort_by(|left, right| left.0.total_cmp(&right.0));
        layers[layer] = wished.into_iter().map(|(_, slot)| slot).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(place: usize, parents: Vec<usize>) -> StageEntry {
        let (label, kind, hash) = (format!("s{place}"), "k".to_string(), format!("{place:016x}"));
        StageEntry { label, kind, hash, seconds: Some(1.0), state: StageState::Made, parents }
    }

    /// Any graph: each stage stands on some of those before it.
    fn graphs() -> impl Strategy<Value = Vec<StageEntry>> {
        prop::collection::vec(prop::collection::vec(any::<prop::sample::Index>(), 0..4), 1..12).prop_map(|picks| {
            let stages = picks.into_iter().enumerate().map(|(place, picks)| {
                let mut parents: Vec<usize> =
                    if place == 0 { vec![] } else { picks.iter().map(|pick| pick.index(place)).collect() };
                parents.sort_unstable();
                parents.dedup();
                entry(place, parents)
            });
            stages.collect()
        })
    }

    proptest! {
        #[test]
        fn every_stage_has_a_place_below_its_parents_and_every_line_a_lane(stages in graphs()) {
            let layers = layers(&stages);
            let layer_of = |wanted: usize| layers.iter().position(|layer| layer.contains(&Slot::Stage(wanted)));
            for (place, stage) in stages.iter().enumerate() {
                let own = layer_of(place).unwrap_or(usize::MAX);
                prop_assert!(own < layers.len());
                for parent in &stage.parents {
                    let above = layer_of(*parent).unwrap_or(usize::MAX);
                    prop_assert!(above < own);
                    for layer in &layers[above + 1..own] {
                        prop_assert!(layer.contains(&Slot::Lane(*parent)));
                    }
                }
            }
            let drawn = stage_graph(&stages);
            prop_assert_eq!(drawn.matches("<rect").count(), stages.len());
            prop_assert!(!drawn.contains("NaN"));
        }
    }
}
