//! Rotary tables: cos and sin of every position and frequency.
//!
//! In: rope settings. Out: two weights [positions, hd/2]. Called by `decoder`.

use super::checkpoint::Weight;
use super::config::{Llama3Rope, Rope};

/// Names of the tables in the graph, and what makes each.
pub fn tables(rope: &Rope, positions: usize, head: usize) -> [(&'static str, impl FnOnce() -> Weight); 2] {
    let frequencies = frequencies(rope, head);
    let table = |function: fn(f64) -> f64| {
        let frequencies = frequencies.clone();
        move || Weight {
            shape: vec![positions, frequencies.len()],
            values: (0..positions)
                .flat_map(|position| frequencies.iter().map(move |&frequency| position as f32 * frequency))
                .map(|angle| function(f64::from(angle)) as f32)
                .collect(),
        }
    };
    [("rope.cos", table(f64::cos)), ("rope.sin", table(f64::sin))]
}

/// theta^(-2i/hd), stretched if need be; in f32 as the reference does: at high positions the rounding matters.
fn frequencies(rope: &Rope, head: usize) -> Vec<f32> {
    (0..head / 2)
        .map(|index| (1.0 / rope.theta.powf(2.0 * index as f64 / head as f64)) as f32)
        .map(|frequency| rope.stretch.map_or(frequency, |settings| stretched(frequency, &settings)))
        .collect()
}

/// Long waves slowed down by the factor, short ones kept, those between mixed.
fn stretched(frequency: f32, settings: &Llama3Rope) -> f32 {
    let wave = std::f32::consts::TAU / frequency;
    let original = settings.original_max_position_embeddings;
    if wave > original / settings.low_freq_factor {
        return frequency / settings.factor;
    }
    if wave < original / settings.high_freq_factor {
        return frequency;
    }
    let kept = (original / wave - settings.low_freq_factor) / (settings.high_freq_factor - settings.low_freq_factor);
    (1.0 - kept) * frequency / settings.factor + kept * frequency
}
