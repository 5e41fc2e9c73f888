//! A chart as one SVG file that stands alone: no scripts, no fonts of its own, light and dark by what the reader prefers.
//!
//! In: axes, lines, bands. Out: text. Points outside of an axis, or not finite, are left out.

use super::number;
use std::fmt::Write;

/// How an axis lays out its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Evenly, from zero to a round number.
    Linear,
    /// Evenly, from zero to the last point.
    Time,
    /// By powers of ten.
    Logarithmic,
    /// Quantiles by how rare is what lies above: 90, 99, 99.9 % at equal distances.
    Tail,
}

/// One direction of a chart.
#[derive(Debug, Clone)]
pub struct Axis {
    /// What it shows, with the unit.
    pub label: &'static str,
    /// How.
    pub scale: Scale,
}

/// One line, drawn from point to point.
#[derive(Debug, Clone)]
pub struct Line {
    /// For the legend.
    pub name: String,
    /// x and y, in the order of x.
    pub points: Vec<(f64, f64)>,
}

/// A part of the x axis that is set off.
#[derive(Debug, Clone)]
pub struct Band {
    /// Where it begins and ends.
    pub from_to: (f64, f64),
    /// What it is.
    pub name: &'static str,
}

/// All of it.
#[derive(Debug, Clone)]
pub struct Chart {
    /// Above.
    pub title: String,
    /// To the right.
    pub x: Axis,
    /// Upwards.
    pub y: Axis,
    /// At most six are told apart by colour.
    pub lines: Vec<Line>,
    /// Behind the lines.
    pub bands: Vec<Band>,
}

const SIZE: (f64, f64) = (720.0, 400.0);
/// Left, right, top, bottom of what is drawn.
const FRAME: (f64, f64, f64, f64) = (76.0, 684.0, 64.0, 344.0);
const COLOURS: usize = 6;
/// Colours stand twice, for not every reader of SVG knows variables.
const STYLE: &str = "<style>\
text{font:12px system-ui,sans-serif}.title{font-size:15px;font-weight:600}.end{text-anchor:end}.middle{text-anchor:middle}\
.line{fill:none;stroke-width:2;stroke-linejoin:round}\
text{fill:#1f2328}.paper{fill:#fff}.band{fill:#f0e6d2}.grid{stroke:#d8dee4}\
.c0{stroke:#0b62c4}.d0{fill:#0b62c4}.c1{stroke:#b3400b}.d1{fill:#b3400b}.c2{stroke:#1a7f37}.d2{fill:#1a7f37}.c3{stroke:#8250df}.d3{fill:#8250df}.c4{stroke:#9a6700}.d4{fill:#9a6700}.c5{stroke:#57606a}.d5{fill:#57606a}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.paper{fill:#0d1117}.band{fill:#33290f}.grid{stroke:#30363d}\
.c0{stroke:#6cb0ff}.d0{fill:#6cb0ff}.c1{stroke:#ff9a5c}.d1{fill:#ff9a5c}.c2{stroke:#56d364}.d2{fill:#56d364}.c3{stroke:#c9a2ff}.d3{fill:#c9a2ff}.c4{stroke:#e3b341}.d4{fill:#e3b341}.c5{stroke:#9da7b3}.d5{fill:#9da7b3}}</style>";

/// Values of an axis on their way to the paper.
struct Laid {
    scale: Scale,
    /// Lowest and highest, as laid.
    range: (f64, f64),
    ticks: Vec<f64>,
}

impl Scale {
    /// `None` where the scale has no place for it.
    fn lay(self, value: f64) -> Option<f64> {
        let laid = match self {
            Scale::Linear | Scale::Time => value,
            Scale::Logarithmic => value.log10(),
            Scale::Tail => -(1.0 - value).log10(),
        };
        laid.is_finite().then_some(laid)
    }
}

impl Laid {
    fn of(scale: Scale, values: impl Iterator<Item = f64>) -> Laid {
        let laid: Vec<f64> = values.filter_map(|value| scale.lay(value)).collect();
        let low = laid.iter().copied().fold(f64::INFINITY, f64::min);
        let high = laid.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let (low, high) = if low <= high { (low, high) } else { (0.0, 1.0) };
        match scale {
            Scale::Linear => {
                let step = round_step((high.max(0.0) - low.min(0.0)) / 5.0);
                let (first, last) = ((low.min(0.0) / step).floor(), (high.max(0.0) / step).ceil().max(1.0));
                let ticks = (first as i64..=last as i64).map(|nth| nth as f64 * step).collect();
                Laid { scale, range: (first * step, last * step), ticks }
            }
            Scale::Time => {
                let step = round_step(high / 6.0);
                let ticks = (0..=(high / step + 1e-9) as i64).map(|nth| nth as f64 * step).collect();
                Laid { scale, range: (0.0, if high > 0.0 { high } else { 1.0 }), ticks }
            }
            Scale::Logarithmic => {
                let (first, last) = (low.floor(), high.ceil().max(low.floor() + 1.0));
                let ticks = (first as i32..=last as i32).map(|power| 10f64.powi(power)).collect();
                Laid { scale, range: (first, last), ticks }
            }
            Scale::Tail => {
                let last = high.ceil().max(1.0);
                let ticks = (0..=last as i32).map(|nines| 1.0 - 10f64.powi(-nines)).collect();
                Laid { scale, range: (0.0, last), ticks }
            }
        }
    }

    /// From 0 to 1.
    fn share(&self, value: f64) -> Option<f64> {
        let (low, high) = self.range;
        let share = (self.scale.lay(value)? - low) / (high - low);
        (-1e-9..=1.0 + 1e-9).contains(&share).then_some(share)
    }

    fn name(&self, tick: f64) -> String {
        match self.scale {
            Scale::Tail => format!(
                "{:.*} %",
                (self.scale.lay(tick).unwrap_or(0.0).round() as usize).saturating_sub(2),
                tick * 100.0
            ),
            // As many digits as a power of ten has.
            Scale::Logarithmic if tick < 1.0 => format!("{:.*}", (-tick.log10()).round() as usize, tick),
            _ => number(tick),
        }
    }
}

/// 1, 2 or 5 times a power of ten.
fn round_step(rough: f64) -> f64 {
    if rough <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(rough.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0];
    steps.into_iter().map(|step| step * power).find(|step| *step >= rough * 0.999).unwrap_or(10.0 * power)
}

/// For text of an element.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

impl Chart {
    /// The file.
    pub fn svg(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let ends = self.bands.iter().flat_map(|band| [band.from_to.0, band.from_to.1]);
        let x = Laid::of(self.x.scale, points().map(|point| point.0).chain(ends));
        let y = Laid::of(self.y.scale, points().map(|point| point.1));
        let (width, height) = SIZE;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\">{STYLE}\
             <rect class=\"paper\" width=\"{width}\" height=\"{height}\"/><title>{title}</title>\
             <text class=\"title\" x=\"{left}\" y=\"24\">{title}</text>",
            title = escape(&self.title),
            left = FRAME.0,
        );
        self.bands.iter().for_each(|band| draw_band(&mut svg, &x, band));
        self.grid(&mut svg, &x, &y);
        for (place, line) in self.lines.iter().enumerate() {
            draw_line(&mut svg, (&x, &y), line, place);
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn grid(&self, svg: &mut String, x: &Laid, y: &Laid) {
        let (left, right, top, bottom) = FRAME;
        for (tick, at) in x.ticks.iter().filter_map(|tick| Some((tick, across(x.share(*tick)?)))) {
            put(svg, format_args!("<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{top}\" y2=\"{bottom}\"/>"));
            put(
                svg,
                format_args!("<text class=\"middle\" x=\"{at:.1}\" y=\"{}\">{}</text>", bottom + 18.0, x.name(*tick)),
            );
        }
        for (tick, at) in y.ticks.iter().filter_map(|tick| Some((tick, up(y.share(*tick)?)))) {
            put(svg, format_args!("<line class=\"grid\" x1=\"{left}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>"));
            put(
                svg,
                format_args!("<text class=\"end\" x=\"{}\" y=\"{:.1}\">{}</text>", left - 8.0, at + 4.0, y.name(*tick)),
            );
        }
        let (x_label, y_label) = (escape(self.x.label), escape(self.y.label));
        put(svg, format_args!("<text class=\"end\" x=\"{right}\" y=\"{}\">{x_label}</text>", bottom + 40.0));
        put(svg, format_args!("<text x=\"{}\" y=\"{}\">{y_label}</text>", 8.0, top - 12.0));
    }
}

fn across(share: f64) -> f64 {
    FRAME.0 + share * (FRAME.1 - FRAME.0)
}

fn up(share: f64) -> f64 {
    FRAME.3 - share * (FRAME.3 - FRAME.2)
}

fn put(svg: &mut String, what: std::fmt::Arguments<'_>) {
    // A string takes everything.
    let _ = svg.write_fmt(what);
}

fn draw_band(svg: &mut String, x: &Laid, band: &Band) {
    let (Some(from), Some(to)) = (x.share(band.from_to.0), x.share(band.from_to.1)) else { return };
    let (from, to, top) = (across(from), across(to), FRAME.2);
    let (width, height) = (to - from, FRAME.3 - FRAME.2);
    put(
        svg,
        format_args!("<rect class=\"band\" x=\"{from:.1}\" y=\"{top}\" width=\"{width:.1}\" height=\"{height}\"/>"),
    );
    put(svg, format_args!("<text x=\"{:.1}\" y=\"{}\">{}</text>", from + 4.0, top + 14.0, escape(band.name)));
}

/// The line, and its name in the legend.
fn draw_line(svg: &mut String, (x, y): (&Laid, &Laid), line: &Line, place: usize) {
    let colour = place % COLOURS;
    let shown = line.points.iter().filter_map(|point| Some((across(x.share(point.0)?), up(y.share(point.1)?))));
    let points: Vec<String> = shown.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    put(svg, format_args!("<polyline class=\"line c{colour}\" points=\"{}\"/>", points.join(" ")));
    let at = FRAME.0 + 90.0 + 150.0 * place as f64;
    put(svg, format_args!("<rect class=\"d{colour}\" x=\"{at}\" y=\"{}\" width=\"12\" height=\"4\"/>", FRAME.2 - 18.0));
    put(svg, format_args!("<text x=\"{}\" y=\"{}\">{}</text>", at + 18.0, FRAME.2 - 12.0, escape(&line.name)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chart(scales: (Scale, Scale), points: Vec<(f64, f64)>) -> Chart {
        Chart {
            title: "a < b & c".into(),
            x: Axis { label: "x", scale: scales.0 },
            y: Axis { label: "y", scale: scales.1 },
            lines: vec![Line { name: "one".into(), points: points.clone() }, Line { name: "two".into(), points }],
            bands: vec![],
        }
    }

    /// Every coordinate pair of the lines.
    fn coordinates(svg: &str) -> Vec<(f64, f64)> {
        let lists = svg.split("points=\"").skip(1).filter_map(|rest| rest.split('"').next());
        let pair = |text: &str| {
            let (x, y) = text.split_once(',').expect("a pair");
            (x.parse::<f64>().expect("x"), y.parse::<f64>().expect("y"))
        };
        lists.flat_map(|list| list.split_whitespace().map(pair).collect::<Vec<_>>()).collect()
    }

    proptest! {
        /// Whatever is measured lies within the frame, higher where it is more, and no number of the file is "NaN" or "inf".
        #[test]
        fn points_lie_within_the_frame(mut points in proptest::collection::vec((0.0..0.99999f64, 1e-3..1e7f64), 1..40), log: bool, tail: bool, time: bool) {
            points.sort_by(|one, other| one.0.total_cmp(&other.0));
            let scales = (if tail { Scale::Tail } else if time { Scale::Time } else { Scale::Linear }, if log { Scale::Logarithmic } else { Scale::Linear });
            let svg = chart(scales, points.clone()).svg();
            prop_assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            let found = coordinates(&svg);
            prop_assert_eq!(found.len(), 2 * points.len());
            for (x, y) in &found {
                prop_assert!((FRAME.0 - 0.1..=FRAME.1 + 0.1).contains(x) && (FRAME.2 - 0.1..=FRAME.3 + 0.1).contains(y));
            }
            for ((one, other), (at, after)) in points.iter().zip(&points[1..]).zip(found.iter().zip(&found[1..])) {
                prop_assert!(at.0 <= after.0 && (other.1 < one.1 || after.1 <= at.1));
            }
        }
    }

    #[test]
    fn it_stands_alone_in_light_and_dark() {
        let mut chart = chart((Scale::Linear, Scale::Linear), vec![(0.0, 1.0), (10.0, 3.0), (20.0, f64::NAN)]);
        chart.bands.push(Band { from_to: (2.0, 4.0), name: "no Redis" });
        let svg = chart.svg();
        assert!(
            svg.contains("@media(prefers-color-scheme:dark)")
                && svg.contains("a &lt; b &amp; c")
                && svg.contains("no Redis")
        );
        for foreign in ["<script", "href", "url(", "<image", "@import"] {
            assert!(!svg.contains(foreign), "{foreign}");
        }
        assert_eq!(coordinates(&svg).len(), 4, "what is not finite is left out");
        assert_eq!(svg.matches("<svg").count(), svg.matches("</svg>").count());
    }

    #[test]
    fn an_empty_chart_is_one() {
        for scale in [Scale::Linear, Scale::Time, Scale::Logarithmic, Scale::Tail] {
            let svg = chart((scale, scale), vec![]).svg();
            assert!(svg.contains("</svg>") && !svg.contains("NaN"), "{svg}");
        }
    }

    #[test]
    fn ticks_are_named_as_people_say_them() {
        let names = |scale, values: &[f64]| {
            let laid = Laid::of(scale, values.iter().copied());
            laid.ticks.iter().map(|tick| laid.name(*tick)).collect::<Vec<_>>()
        };
        assert_eq!(names(Scale::Tail, &[0.0, 0.9995]), ["0 %", "90 %", "99 %", "99.9 %", "99.99 %"]);
        assert_eq!(names(Scale::Logarithmic, &[0.02, 30.0]), ["0.01", "0.1", "1", "10", "100"]);
        assert_eq!(names(Scale::Time, &[0.0, 29.9]), ["0", "5", "10", "15", "20", "25"]);
        assert_eq!(names(Scale::Time, &[0.0, 0.1]), ["0", "0.02", "0.04", "0.06", "0.08", "0.10"]);
        assert_eq!(names(Scale::Linear, &[3.0, 9.0]), ["0", "2", "4", "6", "8", "10"]);
    }
}
