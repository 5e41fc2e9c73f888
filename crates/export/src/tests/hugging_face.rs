//! Checkpoints of `tests/fixtures/hf`, made by scripts/fixtures/checkpoints.py: graphs against logits in f64 of transformers.

use super::run::{Reference, Runner, error_of, prompt_then_answer};
use super::*;

/// Logits are within this of the reference.
const CLOSE: f32 = 1e-4;

#[test]
fn every_published_form_matches_the_reference_in_f64() {
    for name in ["qwen2-sharded", "qwen2-yarn", "qwen3-wide", "llama-linear", "llama3"] {
        let (checkpoint, out) = (format!("hf/{name}"), tempfile::tempdir().unwrap());
        export(&fixture(&checkpoint), out.path(), &ExportOptions::default()).unwrap();
        let reference = Reference::of(&checkpoint);
        let mut runner = Runner::open(&out.path().join(GRAPH_FILE), reference.rows(), 40, 7.0_f32);
        let mut worst = 0.0_f32;
        for pieces in prompt_then_answer(&reference) {
            worst = worst.max(error_of(&runner.shared(&reference, &pieces, None), &reference, &pieces));
        }
        println!("{name}: {worst:e} from the reference, largest logit {}", reference.scale());
        assert!(worst < CLOSE, "{name}: {worst}");
    }
}

/// The scalings differ from none: a reader that ignored them would be found out above.
#[test]
fn scalings_change_frequencies() {
    for name in ["qwen2-yarn", "llama-linear", "llama3"] {
        let config = Config::read(&fixture(&format!("hf/{name}")).join(CONFIG_FILE)).unwrap();
        let rope = config.rope().unwrap();
        let plain = Rope { scaling: RopeScaling::Default, ..rope.clone() };
        let (scaled, plain) = (rope.frequencies(16), plain.frequencies(16));
        let slower = scaled.iter().zip(&plain).filter(|(scaled, plain)| *scaled < *plain).count();
        assert!(slower >= 3, "{name}: {scaled:?} {plain:?}");
    }
}
