//! A line chart as SVG.
//!
//! In: series of points. Out: text. Colours, dashes and text sizes are the style sheet's, so that light and dark need no second
//! drawing. Each point shows its numbers under the pointer.

use super::html::{escape, number};
use std::fmt::Write;

/// Colours that the style sheet has.
pub const COLOURS: usize = 8;
const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 30.0;
/// A series with more points shows every n-th under the pointer; its line has them all.
const TOUCHED: usize = 120;

/// One line of a chart.
pub struct Series {
    /// For the legend.
    pub name: String,
    /// Which colour.
    pub colour: usize,
    /// With marks and dashes: measured seldom.
    pub seldom: bool,
    /// Step and value, steps rising.
    pub points: Vec<(f64, f64)>,
}

/// Draws the series under a title; nothing where none has a point.
pub fn chart(title: &str, series: &[Series]) -> String {
    let finite = |series: &Series| -> Vec<(f64, f64)> {
        series.points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite()).collect()
    };
    let drawn: Vec<(&Series, Vec<(f64, f64)>)> =
        series.iter().map(|series| (series, finite(series))).filter(|(_, points)| !points.is_empty()).collect();
    if drawn.is_empty() {
        return String::new();
    }
    let all = || drawn.iter().flat_map(|(_, points)| points.iter().copied());
    let (x, y) = (Axis::of(all().map(|(x, _)| x), 0.0), Axis::of(all().map(|(_, y)| y), 0.08));
    let mut svg = format!(
        "<figure class=\"chart\"><figcaption>{}</figcaption>{}<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
        escape(title),
        legend(&drawn.iter().map(|(series, _)| *series).collect::<Vec<_>>()),
        escape(title)
    );
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    let across = |value: f64| LEFT + x.share(value) * (right - LEFT);
    let up = |value: f64| bottom - y.share(value) * (bottom - TOP);
    for tick in y.ticks(4) {
        let at = up(tick);
        let _ = write!(svg, "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>");
        let _ =
            write!(svg, "<text class=\"tick y\" x=\"{}\" y=\"{:.1}\">{}</text>", LEFT - 7.0, at + 3.5, number(tick));
    }
    for tick in x.ticks(5) {
        let _ = write!(
            svg,
            "<text class=\"tick x\" x=\"{:.1}\" y=\"{}\">{}</text>",
            across(tick),
            bottom + 18.0,
            number(tick)
        );
    }
    let _ = write!(svg, "<text class=\"tick y\" x=\"{right}\" y=\"{}\">step</text>", bottom - 6.0);
    let _ = write!(svg, "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{bottom}\" y2=\"{bottom}\"/>");
    for (series, points) in &drawn {
        let places: Vec<String> =
            points.iter().map(|(step, value)| format!("{:.1},{:.1}", across(*step), up(*value))).collect();
        let class = format!("c{}{}", series.colour % COLOURS, if series.seldom { " seldom" } else { "" });
        let _ = write!(svg, "<polyline class=\"{class}\" points=\"{}\"/>", places.join(" "));
        let every = points.len().div_ceil(TOUCHED).max(1);
        for (place, (step, value)) in points.iter().enumerate().filter(|(place, _)| place % every == 0) {
            let mark = if series.seldom || points.len() == 1 { "mark" } else { "touch" };
            let (cx, cy) = places[place].split_once(',').unwrap_or_default();
            let _ = write!(
                svg,
                "<circle class=\"{mark} c{}\" cx=\"{cx}\" cy=\"{cy}\" r=\"{}\"><title>{}: step {step}, {}</title></circle>",
                series.colour % COLOURS,
                if mark == "mark" { 3 } else { 6 },
                escape(&series.name),
                number(*value)
            );
        }
    }
    svg.push_str("</svg></figure>");
    svg
}

/// Which line is which, where there are several.
fn legend(series: &[&Series]) -> String {
    if series.len() < 2 {
        return String::new();
    }
    let entry = |series: &&Series| {
        let seldom = if series.seldom { " seldom" } else { "" };
        let line =
            format!("<line class=\"c{}{seldom}\" x1=\"0\" x2=\"18\" y1=\"5\" y2=\"5\"/>", series.colour % COLOURS);
        format!("<span><svg viewBox=\"0 0 18 10\" class=\"key\">{line}</svg>{}</span>", escape(&series.name))
    };
    format!("<div class=\"legend\">{}</div>", series.iter().map(entry).collect::<String>())
}

/// Values from one end to the other.
struct Axis {
    low: f64,
    high: f64,
}

impl Axis {
    /// Of values, with a share of their range as room at both ends; does not leave the side of zero they are on.
    fn of(values: impl Iterator<Item = f64>, room: f64) -> Axis {
        let (low, high) =
            values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        let width = match high - low {
            width if width > 0.0 => width,
            _ if high == 0.0 => 1.0,
            _ => high.abs() * 0.2,
        };
        let (below, above) = (low - width * room, high + width * room);
        let below = if low >= 0.0 { below.max(0.0) } else { below };
        match high > low {
            true => Axis { low: below, high: above },
            false => Axis { low: low - width / 2.0, high: high + width / 2.0 },
        }
    }

    fn share(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }

    /// Round values inside, about so many.
    fn ticks(&self, wanted: usize) -> Vec<f64> {
        let raw = (self.high - self.low) / wanted as f64;
        let power = 10f64.powf(raw.log10().floor());
        let step =
            [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| *step >= raw * 0.999);
        let step = step.unwrap_or(raw);
        let first = (self.low / step).ceil() as i64;
        let last = (self.high / step).floor() as i64;
        (first..=last).map(|place| place as f64 * step).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn line(points: Vec<(f64, f64)>) -> Series {
        Series { name: "loss".into(), colour: 0, seldom: false, points }
    }

    proptest! {
        #[test]
        fn every_point_lies_inside_and_ticks_are_few_and_rising(
            values in prop::collection::vec(-1e6f64..1e6, 1..40),
            scale in prop::sample::select(vec![1e-9, 1e-3, 1.0, 1e9]),
        ) {
            let values: Vec<f64> = values.iter().map(|value| value * scale).collect();
            let axis = Axis::of(values.iter().copied(), 0.05);
            for value in &values {
                prop_assert!((-1e-9..=1.0 + 1e-9).contains(&axis.share(*value)));
            }
            let ticks = axis.ticks(4);
            prop_assert!((1..=6).contains(&ticks.len()), "{:?}", ticks);
            prop_assert!(ticks.is_sorted() && ticks.iter().all(|tick| (-1e-6..=1.000001).contains(&axis.share(*tick))));
        }
    }

    #[test]
    fn what_is_no_number_is_left_out() {
        assert_eq!(chart("loss", &[line(vec![])]), "");
        assert_eq!(chart("loss", &[line(vec![(1.0, f64::NAN)])]), "");
        let drawn = chart("loss", &[line(vec![(1.0, 2.0), (2.0, f64::NAN), (3.0, 1.0)])]);
        assert_eq!(drawn.matches("<circle").count(), 2);
        assert!(!drawn.contains("NaN") && !drawn.contains("inf"));
        // One point, and equal ones, have a scale, too.
        assert!(!chart("loss", &[line(vec![(1.0, 0.0)])]).contains("NaN"));
        assert!(!chart("loss", &[line(vec![(1.0, 5.0), (2.0, 5.0)])]).contains("NaN"));
    }
}
