//! Charts out of what was measured. In: histograms, timelines, samples of memory. Out: pictures of a report.

use super::Picture;
use super::svg::{Axis, Band, Chart, Line, Scale};
use crate::load::tally::{SLOT, Slot};
use hdrhistogram::Histogram;

/// Points of a latency curve for each power of ten.
const POINTS: usize = 24;

/// Latency by quantile, a line each.
pub fn latencies(title: &str, measured: &[(String, &Histogram<u64>)]) -> Picture {
    let line =
        |(name, histogram): &(String, &Histogram<u64>)| Line { name: name.clone(), points: quantiles(histogram) };
    let chart = Chart {
        title: title.to_string(),
        x: Axis { label: "share of calls that were as quick", scale: Scale::Tail },
        y: Axis { label: "ms", scale: Scale::Logarithmic },
        lines: measured.iter().map(line).collect(),
        bands: Vec::new(),
    };
    Picture { suffix: "", shows: "latency by quantile", svg: chart.svg() }
}

/// As far out as there are calls to speak of.
fn quantiles(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    if histogram.is_empty() {
        return Vec::new();
    }
    let most = (histogram.len() as f64).log10();
    let steps = (most * POINTS as f64).floor() as usize;
    let quantile = |step: usize| 1.0 - 10f64.powf(-(step as f64) / POINTS as f64);
    (0..=steps).map(|step| (quantile(step), histogram.value_at_quantile(quantile(step)) as f64 / 1e6)).collect()
}

/// What happened to the calls of each tenth of a second, and in which part of it something was done.
pub fn timeline(title: &str, slots: &[Slot], band: Option<Band>) -> Picture {
    let a_second = 1.0 / SLOT.as_secs_f64();
    let points = |count: fn(&Slot) -> u64| {
        let at = |place: usize| place as f64 * SLOT.as_secs_f64();
        slots.iter().enumerate().map(|(place, slot)| (at(place), count(slot) as f64 * a_second)).collect()
    };
    let line = |name: &str, count: fn(&Slot) -> u64| Line { name: name.to_string(), points: points(count) };
    let chart = Chart {
        title: title.to_string(),
        x: Axis { label: "intended start, s", scale: Scale::Time },
        y: Axis { label: "calls/s", scale: Scale::Linear },
        lines: vec![
            line("answered 2xx", |slot| slot.accepted),
            line("answered otherwise", |slot| slot.refused),
            line("no answer", |slot| slot.failed),
        ],
        bands: band.into_iter().collect(),
    };
    Picture { suffix: "-time", shows: "calls a second over time", svg: chart.svg() }
}

/// Resident memory over time: seconds and bytes.
pub fn memory(title: &str, samples: &[(f64, u64)]) -> Picture {
    let points = samples.iter().map(|(at, bytes)| (at / 60.0, *bytes as f64 / f64::from(1 << 20))).collect();
    let chart = Chart {
        title: title.to_string(),
        x: Axis { label: "minutes", scale: Scale::Time },
        y: Axis { label: "MiB", scale: Scale::Linear },
        lines: vec![Line { name: "resident memory".to_string(), points }],
        bands: Vec::new(),
    };
    Picture { suffix: "-memory", shows: "resident memory over time", svg: chart.svg() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_goes_as_far_as_its_calls() {
        let mut histogram = Histogram::<u64>::new(3).expect("histogram");
        assert_eq!(quantiles(&histogram), []);
        (1..=1000).for_each(|ms| histogram.record(ms * 1_000_000).expect("record"));
        let points = quantiles(&histogram);
        let last = points.last().expect("points");
        assert!((0.9985..=0.9995).contains(&last.0), "{last:?}");
        assert!((last.1 - 1000.0).abs() < 3.0, "{last:?}");
        let median =
            points.iter().min_by(|one, other| (one.0 - 0.5).abs().total_cmp(&(other.0 - 0.5).abs())).expect("median");
        assert!((median.1 / 1000.0 - median.0).abs() < 0.01, "{median:?}");
    }

    #[test]
    fn a_timeline_shows_all_three_ends() {
        let slots = [Slot { accepted: 5, refused: 1, failed: 2 }, Slot::default()];
        let svg = timeline("t", &slots, Some(Band { from_to: (0.0, 0.1), name: "cut" })).svg;
        assert_eq!(svg.matches("<polyline").count(), 3);
        assert!(svg.contains("class=\"band\"") && svg.contains(">50<"), "{svg}");
        assert!(memory("m", &[(0.0, 50 << 20), (60.0, 60 << 20)]).svg.contains("MiB"));
    }
}
