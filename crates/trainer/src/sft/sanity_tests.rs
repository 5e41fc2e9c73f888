//! What any training must show: it learns what can be learned by heart, nothing where there is nothing, and begins where it must.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::model::{Decoder, DecoderConfig, TrainBatch, load_checkpoint};
use crate::nn::Module;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

const LABELS: [&str; 8] = ["A", "B", "C", "D", "E", "F", "G", "H"];

fn settings() -> SftSettings {
    SftSettings {
        d_model: 64,
        layers: 2,
        heads: 2,
        kv_heads: 1,
        ffn: 96,
        vocab: 320,
        max_len: 64,
        batch_tokens: 256,
        warmup: 10,
        prompt_loss_weight: 0.0,
        validate_every: 0,
        checkpoint_every: 0,
        samples: 0,
        ..SftSettings::default()
    }
}

/// Two words, of which the first decides the label: 8 × `others` examples.
fn pairs(others: std::ops::Range<usize>) -> Vec<SftExample> {
    let words = ["stone", "river", "cloud", "candle", "window", "garden", "copper", "violin"];
    let pair = |(label, word): (usize, &str), other: usize| SftExample {
        prompt: format!("{word} with {other}: "),
        completion: format!("{}</answer>", LABELS[label]),
    };
    others.flat_map(|other| words.iter().enumerate().map(move |(label, word)| pair((label, word), other))).collect()
}

/// Trains on some examples; loss (nats) of the labels of others, and the share of them that is the most likely token.
fn trained(settings: &SftSettings, learn: &[SftExample], test: &[SftExample]) -> (f64, f64) {
    let texts = learn.iter().chain(test).flat_map(|example| [example.prompt.as_str(), example.completion.as_str()]);
    let tokenizer = TextTokenizer::train(texts, settings.vocab, &[]).unwrap();
    let out = tempfile::tempdir().unwrap();
    train(settings, &tokenizer, learn, &[], out.path(), &mut |_| {}).unwrap();
    let decoder = load_checkpoint(out.path()).unwrap();
    let (mut loss, mut hits) = (0.0, 0.0);
    for example in test {
        let prompt = tokenizer.encode(&example.prompt).unwrap();
        let label = tokenizer.encode(&example.completion).unwrap()[0];
        let mut batch = TrainBatch::default();
        batch.push_group(&prompt, [[label].as_slice()], 0.0).unwrap();
        let (likelihood, best) = decoder.scores(&batch).unwrap()[0];
        loss -= likelihood;
        hits += f64::from(u8::from(best == label));
    }
    (loss / test.len() as f64, hits / test.len() as f64)
}

#[test]
fn sixty_four_examples_are_learned_by_heart() {
    // Labels in no order: nothing but heart helps.
    let mut examples = pairs(0..8);
    shuffle_labels(&mut examples);
    let by_heart = SftSettings { epochs: 150, lr: 5e-3, ..settings() };
    let (loss, accuracy) = trained(&by_heart, &examples, &examples);
    println!("64 examples by heart: loss {loss:.4}, accuracy {accuracy}");
    assert_eq!(examples.len(), 64);
    assert!(loss < 0.05 && accuracy == 1.0, "{loss} {accuracy}");
}

fn shuffle_labels(examples: &mut [SftExample]) {
    let mut labels: Vec<String> = examples.iter().map(|example| example.completion.clone()).collect();
    labels.shuffle(&mut ChaCha8Rng::seed_from_u64(7));
    for (example, label) in examples.iter_mut().zip(labels) {
        example.completion = label;
    }
}

#[test]
fn a_rule_is_learned_and_shuffled_labels_reach_chance() {
    let (mut learn, test) = (pairs(0..24), pairs(24..32));
    let few = SftSettings { epochs: 12, lr: 5e-3, ..settings() };
    let (loss, accuracy) = trained(&few, &learn, &test);
    println!("a rule: loss {loss:.4}, accuracy {accuracy}");
    assert!(loss < 0.1 && accuracy == 1.0, "{loss} {accuracy}");
    shuffle_labels(&mut learn);
    let (loss, accuracy) = trained(&SftSettings { epochs: 4, ..few }, &learn, &test);
    let chance = (LABELS.len() as f64).ln();
    println!("shuffled labels: loss {loss:.4}, chance {chance:.4}, accuracy {accuracy}");
    // Which labels there are is learned; which belongs where cannot be.
    assert!((chance - 0.1..chance + 0.4).contains(&loss), "{loss}, chance is {chance}");
    assert!(accuracy < 0.3, "{accuracy}");
}

#[test]
fn a_head_of_zeros_begins_at_the_logarithm_of_the_vocabulary() {
    for tied in [true, false] {
        let config = DecoderConfig { tie_word_embeddings: tied, ..DecoderConfig::small(40, 32, 2, 2, 1, 48) };
        let decoder = Decoder::random(&config, 3).unwrap();
        let head = if tied { "model.embed_tokens.weight" } else { "lm_head.weight" };
        let parameters = decoder.parameters();
        let table = &parameters.iter().find(|parameter| parameter.name == head).unwrap().var;
        table.set(&table.zeros_like().unwrap()).unwrap();
        let mut batch = TrainBatch::default();
        batch.push_group(&[1, 2, 3], [[4, 5].as_slice(), [6].as_slice()], 1.0).unwrap();
        for likelihood in decoder.log_likelihoods(&batch).unwrap() {
            assert!((likelihood + (config.vocab_size as f64).ln()).abs() < 1e-6, "{likelihood}");
        }
    }
}
