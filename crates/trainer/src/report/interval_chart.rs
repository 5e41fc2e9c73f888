//! Figures with their intervals, one a row (a forest plot), as SVG.
//!
//! In: rows. Out: text. Colours and text sizes are the style sheet's. Each row shows its numbers under the pointer.

use super::chart::{Axis, upright_grid};
use super::html::{escape, number};
use std::fmt::Write;

const WIDTH: f64 = 760.0;
/// Of the labels.
const LEFT: f64 = 250.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 30.0;
const ROW: f64 = 21.0;

/// A figure with what surrounds it.
#[derive(Debug, Clone, PartialEq)]
pub struct IntervalRow {
    /// Before it.
    pub label: String,
    /// Lower end, figure, upper end.
    pub range: [f64; 3],
    /// What the experiment is about.
    pub strong: bool,
}

/// Draws the rows under a title; `line`: the value that is told apart, such as no difference. Nothing where no row is a number.
pub fn interval_chart(title: &str, rows: &[IntervalRow], line: Option<f64>) -> String {
    let drawn: Vec<&IntervalRow> = rows.iter().filter(|row| row.range.iter().all(|value| value.is_finite())).collect();
    if drawn.is_empty() {
        return String::new();
    }
    let axis = Axis::of(drawn.iter().flat_map(|row| row.range).chain(line), 0.04);
    let (right, bottom) = (WIDTH - RIGHT, TOP + ROW * drawn.len() as f64);
    let across = |value: f64| LEFT + axis.share(value) * (right - LEFT);
    let mut svg =
        format!("<svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\" aria-label=\"{}\">", bottom + BOTTOM, escape(title));
    upright_grid(&mut svg, &axis.ticks(5), across, [TOP, bottom]);
    if let Some(value) = line {
        let at = across(value);
        let _ = write!(svg, "<line class=\"told\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>");
    }
    for (place, row) in drawn.iter().enumerate() {
        draw(&mut svg, row, TOP + ROW * (place as f64 + 0.5), row.range.map(across));
    }
    svg.push_str("</svg>");
    format!("<figure class=\"chart wide\"><figcaption>{}</figcaption>{svg}</figure>", escape(title))
}

fn draw(svg: &mut String, row: &IntervalRow, y: f64, [low, middle, high]: [f64; 3]) {
    let class = if row.strong { "c1" } else { "c0" };
    let weight = if row.strong { " font-weight=\"600\"" } else { "" };
    let _ = write!(
        svg,
        "<g><title>{}: {} ({} to {})</title>\
         <text class=\"label\" x=\"{}\" y=\"{:.1}\"{weight}>{}</text>\
         <line class=\"{class} whisker\" x1=\"{low:.1}\" x2=\"{high:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
         <circle class=\"dot {class}\" cx=\"{middle:.1}\" cy=\"{y:.1}\" r=\"4\"/></g>",
        escape(&row.label),
        number(row.range[1]),
        number(row.range[0]),
        number(row.range[2]),
        LEFT - 12.0,
        y + 4.0,
        escape(&row.label),
    );
}
