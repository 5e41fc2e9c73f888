//! The token mixer's part of the ONNX graph: what [`Mixer`](super::mixer::Mixer) computes.
//!
//! In: names of the parts' values. Out: the name of the logits' value. Called by `graph`.

use super::RankError;
use super::graph::Graph;
use super::layer::EPSILON;
use super::mixer::{Experts, Mixer, spreads};
use taiji_export::onnx::{int, ints, node};
use taiji_export::{Element, Weight};

/// Weights of the model that no graph needs: those of logits that only the loss sees.
pub(super) const LOSS_ONLY: &str = "mixer.auxiliary.";

impl Graph {
    pub(super) fn mixer_constants(&mut self, mixer: &Mixer) -> Result<(), RankError> {
        let (tokens, settings) = (mixer.tokens as i64, &mixer.settings);
        let head = settings.head as i64;
        self.writer.integers("mixer.pieces", &[4], &[tokens, -1, tokens, head]);
        self.writer.integers("mixer.whole", &[3], &[tokens, -1, tokens * head]);
        let mut floats = vec![("epsilon", vec![1], vec![EPSILON])];
        if settings.experts > 0 {
            let (spread, always) = spreads(settings);
            let inner = always.len();
            self.writer.integers("mixer.active", &[1], &[settings.active as i64]);
            self.writer.integers("mixer.least", &[1], &[settings.active as i64 - 1]);
            floats.push(("mixer.experts", vec![1], vec![settings.experts as f32]));
            floats.push(("mixer.spread", vec![settings.experts, inner], spread));
            floats.push(("mixer.always", vec![inner], always));
        }
        for (name, shape, values) in floats {
            self.writer.weight(name, &Weight { shape, values }, Element::F32)?;
        }
        Ok(())
    }

    /// [impressions, 2] of parts.
    pub(super) fn mixer(&mut self, mixer: &Mixer, parts: &[String]) -> String {
        let token = |graph: &mut Self, (place, part): (usize, &String)| {
            let made = graph.linear(part, &format!("mixer.inputs.{place}"));
            graph.op("Unsqueeze", &[&made, "list.0"], vec![])
        };
        let tokens: Vec<String> = parts.iter().enumerate().map(|part| token(self, part)).collect();
        let mut made = vec![self.joined(&tokens, 0)];
        for (place, block) in mixer.blocks.iter().enumerate() {
            let (x, name) = (made[place].clone(), format!("mixer.{place}"));
            let mixed = self.mix(&x);
            let mut next = match &block.mixed {
                None => {
                    let joined = self.op("Add", &[&mixed, &x], vec![]);
                    let joined = self.normed(&joined, &format!("{name}.own.norm"));
                    let net = self.net(&joined, &block.own, &format!("{name}.own"));
                    self.op("Add", &[&joined, &net], vec![])
                }
                Some(experts) => {
                    let normed = self.normed(&mixed, &format!("{name}.mixed.norm"));
                    let net = self.net(&normed, experts, &format!("{name}.mixed"));
                    let mixed = self.op("Add", &[&mixed, &net], vec![]);
                    let back = self.mix(&mixed);
                    let normed = self.normed(&back, &format!("{name}.own.norm"));
                    let net = self.net(&normed, &block.own, &format!("{name}.own"));
                    self.op("Add", &[&x, &net], vec![])
                }
            };
            if let Some(earlier) = mixer.earlier(place) {
                next = self.op("Add", &[&next, &made[earlier]], vec![]);
            }
            made.push(next);
        }
        let normed = self.normed(&made[mixer.blocks.len()], "mixer.out.norm");
        let mean = self.op("ReduceMean", &[&normed, "list.0"], vec![int("keepdims", 0)]);
        self.linear(&mean, "mixer.out")
    }

    fn mix(&mut self, x: &str) -> String {
        let pieces = self.op("Reshape", &[x, "mixer.pieces"], vec![]);
        let turned = self.op("Transpose", &[&pieces], vec![ints("perm", &[2, 1, 0, 3])]);
        self.op("Reshape", &[&turned, "mixer.whole"], vec![])
    }

    fn net(&mut self, x: &str, experts: &Experts, name: &str) -> String {
        let mut inner = self.gated(x, name);
        if experts.routed() {
            let acting = self.acting(x, &format!("{name}.router"));
            inner = self.op("Mul", &[&inner, &acting], vec![]);
        }
        self.op("MatMul", &[&inner, &format!("{name}.down")], vec![])
    }

    fn acting(&mut self, x: &str, router: &str) -> String {
        let scores = self.op("MatMul", &[x, router], vec![]);
        let chances = self.op("Softmax", &[&scores], vec![int("axis", -1)]);
        let (best, places) = (format!("{router}.best"), format!("{router}.places"));
        let top = node("TopK", &[&chances, "mixer.active"], &[&best, &places], vec![int("axis", -1)]);
        self.writer.node(top);
        let least = self.op("Gather", &[&best, "mixer.least"], vec![int("axis", -1)]);
        let acts = self.op("GreaterOrEqual", &[&chances, &least], vec![]);
        let acts = self.float(&acts);
        let kept = self.op("Mul", &[&chances, &acts], vec![]);
        let counts = self.op("Mul", &[&kept, "mixer.experts"], vec![]);
        let spread = self.op("MatMul", &[&counts, "mixer.spread"], vec![]);
        self.op("Add", &[&spread, "mixer.always"], vec![])
    }
}
