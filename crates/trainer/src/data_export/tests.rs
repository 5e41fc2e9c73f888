//! Pairs and lines; the whole way is in `tests/e2e/elsewhere.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::formats::{Files, Preference, Prompt};
use super::*;
use crate::stages::Written;
use serde_json::{Value, json};

fn lines(folder: &Path, name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_best_and_the_worst_answer_are_a_pair() {
    let texts = vec![vec![String::new(); 3]; 3];
    // To the second prompt all are worth the same; of the third the rewards disagree, and the first reward's weight decides.
    let first = vec![0.1, 0.9, 0.5, 0.3, 0.3, 0.3, 1.0, 0.0, 0.5];
    let second = vec![2.0, 9.0, 1.0, 7.0, 7.0, 7.0, 0.0, 1.0, 0.5];
    let written = Written { texts, values: vec![first, second], group: 3 };
    let names = ["one", "two"];
    let equal = written.best_and_worst(&names, None).unwrap();
    assert_eq!(equal[..2], [Some([1, 0]), None]);
    let weighted = written.best_and_worst(&names, Some(&[0.9, 0.1])).unwrap();
    assert_eq!(weighted[2], Some([0, 1]));
    let other = written.best_and_worst(&names, Some(&[0.1, 0.9])).unwrap();
    assert_eq!(other[2], Some([1, 0]));
}

#[test]
fn each_format_has_the_columns_that_its_trainer_reads() {
    let example = SftExample { prompt: "what next?".into(), completion: "<answer>rake</answer>".into() };
    for (format, sft, rl, pair) in [
        (
            Format::Trl,
            json!({ "prompt": "what next?", "completion": "<answer>rake</answer>" }),
            json!({ "prompt": "p", "user_id": "u" }),
            json!({ "prompt": "p", "chosen": "a", "rejected": "b" }),
        ),
        (
            Format::Verl,
            json!({ "messages": [
                { "role": "user", "content": "what next?" },
                { "role": "assistant", "content": "<answer>rake</answer>" }
            ] }),
            json!({
                "data_source": "taiji",
                "prompt": [{ "role": "user", "content": "p" }],
                "ability": "next_item",
                "reward_model": { "style": "rule", "ground_truth": "" },
                "extra_info": { "index": 0, "user_id": "u" }
            }),
            json!({
                "prompt": [{ "role": "user", "content": "p" }],
                "chosen": [{ "role": "assistant", "content": "a" }],
                "rejected": [{ "role": "assistant", "content": "b" }]
            }),
        ),
        (
            Format::LlamaFactory,
            json!({ "instruction": "what next?", "input": "", "output": "<answer>rake</answer>" }),
            json!({ "instruction": "p", "input": "", "output": "", "user_id": "u" }),
            json!({ "instruction": "p", "input": "", "chosen": "a", "rejected": "b" }),
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut files = Files::new(format, folder.path());
        files.sft("train", std::slice::from_ref(&example)).unwrap();
        files.rl(&[Prompt { user_id: "u", prompt: "p", truth: None }]).unwrap();
        files.preference(&[Preference { prompt: "p", chosen: "a", rejected: "b" }]).unwrap();
        files.finish().unwrap();
        assert_eq!(lines(folder.path(), "sft_train.jsonl"), [sft], "{format:?}");
        assert_eq!(lines(folder.path(), "rl.jsonl"), [rl], "{format:?}");
        assert_eq!(lines(folder.path(), "preference.jsonl"), [pair], "{format:?}");
        let beside = |name: &str| folder.path().join(name).exists();
        assert_eq!(beside("chat_template.jinja"), format == Format::Verl);
        assert_eq!(beside("dataset_info.json"), format == Format::LlamaFactory);
        if format == Format::LlamaFactory {
            let text = std::fs::read_to_string(folder.path().join("dataset_info.json")).unwrap();
            let sets: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(sets["taiji_sft_train"], json!({ "file_name": "sft_train.jsonl" }));
            assert_eq!(sets["taiji_preference"]["ranking"], json!(true));
            assert_eq!(sets["taiji_preference"]["columns"]["prompt"], json!("instruction"));
        }
    }
}
