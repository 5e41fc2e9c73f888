//! Two figures of the same things against each other, with their intervals, as SVG: which gains the one at the price of the other.
//!
//! In: points. Out: text. Points carry numbers, explained beneath: names would cover each other.

use super::chart::{Axis, COLOURS, level_grid, upright_grid};
use super::html::{escape, number};
use std::fmt::Write;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 460.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 18.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 46.0;

/// One thing.
#[derive(Debug, Clone, PartialEq)]
pub struct FrontPoint {
    /// Its name.
    pub label: String,
    /// Lower end, figure, upper end.
    pub x: [f64; 3],
    /// Likewise.
    pub y: [f64; 3],
}

/// Draws the points under a title; nothing where none is a number.
pub fn front(title: &str, names: [&str; 2], points: &[FrontPoint]) -> String {
    let is_number = |point: &&FrontPoint| point.x.iter().chain(&point.y).all(|value| value.is_finite());
    let drawn: Vec<&FrontPoint> = points.iter().filter(is_number).collect();
    if drawn.is_empty() {
        return String::new();
    }
    let (x, y) = (
        Axis::of(drawn.iter().flat_map(|point| point.x), 0.05),
        Axis::of(drawn.iter().flat_map(|point| point.y), 0.05),
    );
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    let across = |value: f64| LEFT + x.share(value) * (right - LEFT);
    let up = |value: f64| bottom - y.share(value) * (bottom - TOP);
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">", escape(title));
    upright_grid(&mut svg, &x.ticks(6), across, [TOP, bottom]);
    level_grid(&mut svg, &y.ticks(6), up, [LEFT, right]);
    let _ = write!(svg, "<text class=\"tick y\" x=\"{right}\" y=\"{}\">{}</text>", bottom + 36.0, escape(names[0]));
    let _ = write!(svg, "<text class=\"tick\" x=\"{}\" y=\"{}\">{}</text>", LEFT + 6.0, TOP + 10.0, escape(names[1]));
    for (place, point) in drawn.iter().enumerate() {
        let ([left, at, far], [low, height, high]) = (point.x.map(across), point.y.map(up));
        let colour = place % COLOURS;
        let _ = write!(
            svg,
            "<g><title>{}: {} {}, {} {}</title><line class=\"c{colour} whisker\" x1=\"{left:.1}\" x2=\"{far:.1}\" y1=\"{height:.1}\" y2=\"{height:.1}\"/>\
             <line class=\"c{colour} whisker\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{low:.1}\" y2=\"{high:.1}\"/>\
             <circle class=\"mark c{colour}\" cx=\"{at:.1}\" cy=\"{height:.1}\" r=\"9\"/><text class=\"tick x\" x=\"{at:.1}\" y=\"{:.1}\">{}</text></g>",
            escape(&point.label),
            escape(names[0]),
            number(point.x[1]),
            escape(names[1]),
            number(point.y[1]),
            height + 4.0,
            place + 1
        );
    }
    svg.push_str("</svg>");
    let key = |(place, point): (usize, &&FrontPoint)| format!("<span>{} {}</span>", place + 1, escape(&point.label));
    let keys: String = drawn.iter().enumerate().map(key).collect();
    format!(
        "<figure class=\"chart wide\"><figcaption>{}</figcaption>{svg}<div class=\"legend\">{keys}</div></figure>",
        escape(title)
    )
}
