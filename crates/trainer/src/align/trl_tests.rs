//! One step of every loss beside TRL's GRPOTrainer: value, gradients and advantages (scripts/fixtures/trl.py).

#![allow(clippy::unwrap_used, clippy::expect_used)]

use crate::model::checkpoint::parts;
use crate::model::tests::relative_distance;
use crate::model::{Decoder, TrainBatch, load_checkpoint};
use crate::nn::Module;
use crate::objective::*;
use crate::weighting::{Batch, Probe};
use flate2::read::GzDecoder;
use safetensors::SafeTensors;
use serde_json::Value;
use std::io::Read;
use testkit::tensors::floats;

/// TRL adds it to every deviation that it divides by.
const EPSILON: f64 = 1e-4;

struct Fixture {
    shared: Value,
    gradients: Vec<u8>,
    decoder: Decoder,
    batch: TrainBatch,
    lengths: Vec<usize>,
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

/// `[row][token]` → all rows' tokens end to end.
fn flat(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().flat_map(numbers).collect()
}

fn tokens(value: &Value) -> Vec<u32> {
    numbers(value).into_iter().map(|token| token as u32).collect()
}

impl Fixture {
    fn read() -> Self {
        let folder = testkit::fixture("trl");
        let shared: Value = serde_json::from_slice(&std::fs::read(folder.join("cases.json")).unwrap()).unwrap();
        let mut gradients = Vec::new();
        let packed = std::fs::File::open(folder.join("gradients.safetensors.gz")).unwrap();
        GzDecoder::new(packed).read_to_end(&mut gradients).unwrap();
        let decoder = load_checkpoint(&folder.parent().unwrap().join(shared["checkpoint"].as_str().unwrap())).unwrap();
        let completions: Vec<Vec<u32>> = shared["completions"].as_array().unwrap().iter().map(tokens).collect();
        let mut batch = TrainBatch::default();
        for (prompt, group) in shared["prompts"].as_array().unwrap().iter().zip(completions.chunks(4)) {
            batch.push_group(&tokens(prompt), group.iter().map(Vec::as_slice), 0.0).unwrap();
        }
        let lengths = completions.iter().map(Vec::len).collect();
        Self { shared, gradients, decoder, batch, lengths }
    }

    fn case(&self, name: &str) -> &Value {
        self.shared["cases"].as_array().unwrap().iter().find(|case| case["name"] == name).unwrap()
    }

    /// The objective of a case, by its settings as TRL's trainer holds them.
    fn objective(&self, case: &Value) -> GroupPolicy {
        let settings = &case["settings"];
        let number = |name: &str| settings[name].as_f64();
        let is = |name: &str, value: &str| settings[name] == value;
        let loss = settings["loss_type"].as_str().unwrap();
        let (low, high) = (number("epsilon").unwrap(), number("epsilon_high").or(number("epsilon")).unwrap());
        let surrogate = match loss {
            "cispo" => Surrogate::Truncated { most: high },
            _ => Surrogate::Clipped(Clip { low, high }),
        };
        let masked = settings["mask_truncated_completions"] == true;
        let truncated: Vec<f64> = numbers(&self.shared["truncated"]);
        let counted: Vec<bool> =
            (0..self.lengths.len()).map(|row| !masked || !truncated.contains(&(row as f64))).collect();
        let normaliser = match loss {
            "grpo" => Normaliser::Responses,
            "bnpo" | "dapo" | "cispo" => Normaliser::Tokens,
            "dr_grpo" => Normaliser::Longest { longest: number("max_completion_length").unwrap() as usize },
            "luspo" => Normaliser::Longest { longest: 1 },
            other => panic!("{other}"),
        };
        let (weights, mut divisor) = normaliser.weights(&self.lengths, &counted);
        if loss == "grpo" {
            // TRL keeps a masked row in the mean over rows; ours leaves it.
            divisor = self.lengths.len() as f64;
        }
        let cap = number("vllm_importance_sampling_clip_max").unwrap();
        let correction = match settings["vllm_importance_sampling_mode"].as_str().unwrap() {
            "token_truncate" => Correction::TokenTruncated(cap),
            "token_mask" => Correction::TokenMasked(cap),
            "sequence_truncate" => Correction::ResponseTruncated(cap),
            "sequence_mask" => Correction::ResponseMasked(cap),
            other => panic!("{other}"),
        };
        let sampled = Sampled { log_likelihoods: flat(&self.shared["sampling"]), correction };
        let penalty = number("beta").filter(|beta| *beta > 0.0).map(|strength| KlPenalty {
            strength,
            estimator: KlEstimator::K3,
            ratio: if settings["use_bias_correction_kl"] == true { KlRatio::Live } else { KlRatio::One },
            reference: flat(&self.shared["reference"]),
        });
        let of_rows = numbers(&case["advantages"]).into_iter().zip(&self.lengths);
        GroupPolicy {
            weights: weights.iter().map(|weight| weight / divisor).collect(),
            advantages: of_rows.flat_map(|(advantage, length)| std::iter::repeat_n(advantage, *length)).collect(),
            lengths: self.lengths.clone(),
            old: (case["old"] == "given").then(|| flat(&self.shared["old"])),
            sampled: (settings["vllm_importance_sampling_correction"] == true).then_some(sampled),
            surrogate,
            level: if is("importance_sampling_level", "sequence") { RatioLevel::Response } else { RatioLevel::Token },
            penalty,
        }
    }

    /// Relative distances of loss, and of the gradients that are kept of the case, the worst of them.
    fn compare(&self, name: &str) -> (f64, f64) {
        let case = self.case(name);
        let loss = self.decoder.loss(&self.batch, &self.objective(case)).unwrap();
        let found = f64::from(loss.to_scalar::<f32>().unwrap());
        let wanted = case["loss"].as_f64().unwrap();
        let reference = SafeTensors::deserialize(&self.gradients).unwrap();
        let gradients = loss.backward().unwrap();
        let mut worst = 0.0f64;
        let mut compared = 0;
        for parameter in self.decoder.parameters() {
            let gradient: Vec<f32> = gradients.get(&parameter.var).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let width = parameter.var.dims().get(1).copied().unwrap_or(1);
            let mut rest = gradient.as_slice();
            for (part, rows) in parts(&parameter.name, self.decoder.config(), parameter.var.dims()[0]) {
                let (own, tail) = rest.split_at(rows * width);
                rest = tail;
                let kept = format!("{name}/{part}");
                if reference.tensor(&kept).is_ok() {
                    worst = worst.max(relative_distance(own, &floats(&reference, &kept)));
                    compared += 1;
                }
            }
        }
        assert!(compared >= 5, "{name}: {compared} tensors");
        ((found - wanted).abs() / wanted.abs().max(1e-2), worst)
    }
}

#[test]
fn a_step_of_every_loss_is_trls() {
    let fixture = Fixture::read();
    let cases = [
        "grpo",
        "bnpo",
        "dr_grpo",
        "dapo",
        "cispo",
        "luspo",
        "luspo_token",
        "gspo",
        "grpo_kl",
        "grpo_kl_uncorrected",
        "gspo_kl",
        "dapo_clip_higher",
        "dapo_mask_truncated",
        "grpo_mask_truncated",
        "dapo_token_truncate",
        "dapo_sequence_truncate",
        "dapo_sequence_mask",
        "grpo_kl_token_truncate",
        "normalize_then_sum",
        "scale_batch",
        "scale_none",
        "dapo_present",
        "dapo_halves",
        "grpo_halves",
    ];
    for name in cases {
        let (loss, gradient) = fixture.compare(name);
        println!("{name}: loss {loss:.1e}, worst gradient {gradient:.1e}");
        assert!(loss < 1e-5 && gradient < 1e-5, "{name}: loss {loss}, gradient {gradient}");
    }
}

/// Ours divide by the deviation itself, and by nothing where a group does not differ; TRL adds 1e-4 to each.
#[test]
fn advantages_are_trls_but_for_its_epsilon() {
    let fixture = Fixture::read();
    let rewards: Vec<Vec<f64>> = fixture.shared["rewards"].as_array().unwrap().iter().map(numbers).collect();
    let weights = numbers(&fixture.case("grpo")["settings"]["reward_weights"]);
    let sums: Vec<f64> = (0..12).map(|row| weights[0] * rewards[0][row] + weights[1] * rewards[1][row]).collect();
    let zeros = [0.0; 2];
    let close = |name: &str, found: &[f64]| {
        let wanted = numbers(&fixture.case(name)["advantages"]);
        assert!(
            found.iter().zip(&wanted).all(|(one, other)| (one - other).abs() < 1e-9),
            "{name}: {found:?} {wanted:?}"
        );
    };
    let deviation = |values: &[f64]| {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (values.len() as f64 - 1.0)).sqrt()
    };
    // Normalised as ours, then as if epsilon had been added.
    let softened = |values: &[f64]| -> Vec<f64> {
        let of = [values.to_vec()];
        let batch = Batch::new(&["one"], &of, &zeros[..1], 4).unwrap();
        let soften = |(group, of): (&[f64], &[f64])| -> Vec<f64> {
            let own = deviation(of);
            group.iter().map(|advantage| advantage * own / (own + EPSILON)).collect()
        };
        batch.probed(Probe::Normalised, 0).chunks(4).zip(values.chunks(4)).flat_map(soften).collect()
    };
    close("grpo", &softened(&sums));
    let summed = [sums.clone()];
    let batch = Batch::new(&["sum"], &summed, &zeros[..1], 4).unwrap();
    close("scale_none", &batch.probed(Probe::Centred, 0));
    let apart: Vec<Vec<f64>> = rewards.iter().map(|values| softened(values)).collect();
    let together: Vec<f64> = (0..12).map(|row| weights[0] * apart[0][row] + weights[1] * apart[1][row]).collect();
    let whole = deviation(&together);
    close("normalize_then_sum", &together.iter().map(|value| value / (whole + EPSILON)).collect::<Vec<f64>>());
    // The rule itself, whose weights sum to 1, differs by that alone.
    let rule_weights: Vec<f64> = weights.iter().map(|weight| weight / 1.5).collect();
    let batch = Batch::new(&["one", "two"], &rewards, &zeros, 4).unwrap();
    let mut rule = crate::weighting::Gdpo::new(&rule_weights).unwrap();
    let ours = crate::weighting::Weighting::combine(&mut rule, &batch, None).unwrap().advantages;
    let wanted = numbers(&fixture.case("normalize_then_sum")["advantages"]);
    assert!(ours.iter().zip(&wanted).all(|(one, other)| (one - other).abs() < 2e-3 * other.abs().max(0.1)));
}

/// What the present policy says of the tokens is what TRL's says.
#[test]
fn log_likelihoods_are_trls() {
    let fixture = Fixture::read();
    let reference = SafeTensors::deserialize(&fixture.gradients).unwrap();
    let wanted: Vec<f64> = reference
        .tensor("present")
        .unwrap()
        .data()
        .as_chunks::<8>()
        .0
        .iter()
        .map(|word| f64::from_le_bytes(*word))
        .collect();
    let found = fixture.decoder.log_likelihoods(&fixture.batch).unwrap();
    assert_eq!(found.len(), wanted.len());
    assert!(found.iter().zip(&wanted).all(|(one, other)| (one - other).abs() < 1e-5));
}
