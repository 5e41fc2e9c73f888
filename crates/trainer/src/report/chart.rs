//! A line chart as SVG.
//!
//! In: series of points. Out: text. Colours, dashes and text sizes are the style sheet's, so that light and dark need no second
//! drawing. Each point shows its numbers under the pointer.

use super::html::{escape, number};
use super::style::STYLE;
use std::fmt::Write;

/// Colours that the style sheet has.
pub const COLOURS: usize = 8;
const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 30.0;
/// Names in a row of a picture's legend.
const KEYS: usize = 4;
/// A series with more points shows every n-th under the pointer; its line has them all.
const TOUCHED: usize = 120;

/// One line of a chart.
#[derive(Debug, Clone)]
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

/// Draws the series under a title, over steps; nothing where none has a point.
pub fn chart(title: &str, series: &[Series]) -> String {
    chart_over(title, "step", series)
}

/// The same over another axis.
pub(super) fn chart_over(title: &str, axis: &str, series: &[Series]) -> String {
    let drawn = drawn(series);
    if drawn.is_empty() {
        return String::new();
    }
    format!(
        "<figure class=\"chart\"><figcaption>{}</figcaption>{}{}</figure>",
        escape(title),
        legend(&drawn.iter().map(|(series, _)| *series).collect::<Vec<_>>()),
        plot(title, axis, "", &drawn)
    )
}

/// The same as an SVG file that stands alone, `axis` written under it; nothing where no series has a point.
pub fn picture(title: &str, axis: &str, series: &[Series]) -> String {
    let drawn = drawn(series);
    if drawn.is_empty() {
        return String::new();
    }
    let rows = drawn.len().div_ceil(KEYS) as f64;
    let (top, height) = (30.0 + rows * 16.0, 30.0 + rows * 16.0 + HEIGHT);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"system-ui, sans-serif\"><style>{STYLE}</style>\
         <rect width=\"{WIDTH}\" height=\"{height}\" style=\"fill: var(--card)\"/><text x=\"12\" y=\"20\" font-size=\"13\">{}</text>",
        escape(title)
    );
    for (place, (series, _)) in drawn.iter().enumerate() {
        let (x, y) = (12.0 + (place % KEYS) as f64 * WIDTH / KEYS as f64, 38.0 + (place / KEYS) as f64 * 16.0);
        let seldom = if series.seldom { " seldom" } else { "" };
        let class = format!("c{}{seldom}", series.colour % COLOURS);
        let _ = write!(
            svg,
            "<line class=\"{class}\" x1=\"{x}\" x2=\"{}\" y1=\"{y}\" y2=\"{y}\" stroke-width=\"2\"/>",
            x + 18.0
        );
        let _ =
            write!(svg, "<text x=\"{}\" y=\"{}\" font-size=\"11\">{}</text>", x + 24.0, y + 4.0, escape(&series.name));
    }
    let place = format!(" y=\"{top}\" width=\"{WIDTH}\" height=\"{HEIGHT}\"");
    svg + &plot(title, axis, &place, &drawn) + "</svg>\n"
}

/// A series, and those of its points that are numbers.
type Drawn<'a> = (&'a Series, Vec<(f64, f64)>);

/// The series that have a point.
fn drawn(series: &[Series]) -> Vec<Drawn<'_>> {
    let finite = |series: &Series| -> Vec<(f64, f64)> {
        series.points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite()).collect()
    };
    series.iter().map(|series| (series, finite(series))).filter(|(_, points)| !points.is_empty()).collect()
}

/// Axes and lines; `place`: attributes that say where.
fn plot(title: &str, axis: &str, place: &str, drawn: &[Drawn]) -> String {
    let all = || drawn.iter().flat_map(|(_, points)| points.iter().copied());
    let (x, y) = (Axis::of(all().map(|(x, _)| x), 0.0), Axis::of(all().map(|(_, y)| y), 0.08));
    let mut svg =
        format!("<svg{place} viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">", escape(title));
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    let across = |value: f64| LEFT + x.share(value) * (right - LEFT);
    let up = |value: f64| bottom - y.share(value) * (bottom - TOP);
    level_grid(&mut svg, &y.ticks(4), up, [LEFT, right]);
    for tick in x.ticks(5) {
        let (at, below) = (across(tick), bottom + 18.0);
        let _ = write!(svg, "<text class=\"tick x\" x=\"{at:.1}\" y=\"{below}\">{}</text>", number(tick));
    }
    let _ = write!(svg, "<text class=\"tick y\" x=\"{right}\" y=\"{}\">{}</text>", bottom - 6.0, escape(axis));
    let _ = write!(svg, "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{bottom}\" y2=\"{bottom}\"/>");
    for (series, points) in drawn {
        let places: Vec<(f64, f64)> = points.iter().map(|(step, value)| (across(*step), up(*value))).collect();
        line(&mut svg, axis, series, points, &places);
    }
    svg.push_str("</svg>");
    svg
}

/// Lines across at values of the upward axis, numbers to their left; `ends`: left and right.
pub(super) fn level_grid(svg: &mut String, ticks: &[f64], up: impl Fn(f64) -> f64, ends: [f64; 2]) {
    let [left, right] = ends;
    for tick in ticks {
        let at = up(*tick);
        let _ = write!(svg, "<line class=\"grid\" x1=\"{left}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>");
        let _ =
            write!(svg, "<text class=\"tick y\" x=\"{}\" y=\"{:.1}\">{}</text>", left - 7.0, at + 3.5, number(*tick));
    }
}

/// Lines upwards at values of the axis from left to right, numbers beneath; `ends`: top and bottom.
pub(super) fn upright_grid(svg: &mut String, ticks: &[f64], across: impl Fn(f64) -> f64, ends: [f64; 2]) {
    let [top, bottom] = ends;
    for tick in ticks {
        let at = across(*tick);
        let _ = write!(svg, "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{top}\" y2=\"{bottom}\"/>");
        let _ = write!(svg, "<text class=\"tick x\" x=\"{at:.1}\" y=\"{}\">{}</text>", bottom + 16.0, number(*tick));
    }
}

/// One series at its places, with its numbers under the pointer.
fn line(svg: &mut String, axis: &str, series: &Series, points: &[(f64, f64)], places: &[(f64, f64)]) {
    let joined: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let colour = series.colour % COLOURS;
    let seldom = if series.seldom { " seldom" } else { "" };
    let _ = write!(svg, "<polyline class=\"c{colour}{seldom}\" points=\"{}\"/>", joined.join(" "));
    let every = points.len().div_ceil(TOUCHED).max(1);
    let mark = if series.seldom || points.len() == 1 { "mark" } else { "touch" };
    let radius = if mark == "mark" { 3 } else { 6 };
    for ((step, value), (x, y)) in points.iter().zip(places).step_by(every) {
        let _ = write!(
            svg,
            "<circle class=\"{mark} c{colour}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\"><title>{}: {} {}, {}</title></circle>",
            escape(&series.name),
            escape(axis),
            if axis == "step" { step.to_string() } else { number(*step) },
            number(*value)
        );
    }
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
pub(super) struct Axis {
    low: f64,
    high: f64,
}

impl Axis {
    /// Of values, with a share of their range as room at both ends; does not leave the side of zero they are on.
    pub(super) fn of(values: impl Iterator<Item = f64>, room: f64) -> Axis {
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

    pub(super) fn share(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }

    /// Round values inside, about so many.
    pub(super) fn ticks(&self, wanted: usize) -> Vec<f64> {
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
