//! Pairs and lines; the whole way is in `tests/e2e/elsewhere.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::formats::{Files, Preference, Prompt};
use super::*;
use crate::stages::Written;
use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::{Value, json};

fn lines(folder: &Path, name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_best_and_the_worst_answer_are_a_pair() {
    let texts = vec![vec![String::new(); 3]; 3];
    // To the second prompt all are worth the same; of the third the rewards disagree: alike they cancel, else the weight decides.
    let first = vec![0.1, 0.9, 0.5, 0.3, 0.3, 0.3, 1.0, 0.0, 0.5];
    let second = vec![2.0, 9.0, 1.0, 7.0, 7.0, 7.0, 0.0, 1.0, 0.5];
    let written = Written { texts, values: vec![first, second], group: 3 };
    let names = ["one", "two"];
    let equal = written.best_and_worst(&names, None).unwrap();
    assert_eq!(equal, [Some([1, 0]), None, None]);
    let weighted = written.best_and_worst(&names, Some(&[0.9, 0.1])).unwrap();
    assert_eq!(weighted[2], Some([0, 1]));
    let other = written.best_and_worst(&names, Some(&[0.1, 0.9])).unwrap();
    assert_eq!(other[2], Some([1, 0]));
}

/// A row of Parquet, as its reader shows it.
fn rows(folder: &Path, name: &str) -> Vec<String> {
    let reader = SerializedFileReader::new(std::fs::File::open(folder.join(name)).unwrap()).unwrap();
    reader.get_row_iter(None).unwrap().map(|row| row.unwrap().to_string()).collect()
}

fn written(format: Format, ends_by_tag: bool) -> tempfile::TempDir {
    let example = |text: &str| SftExample { prompt: text.into(), completion: "<answer>rake</answer>".into() };
    let folder = tempfile::tempdir().unwrap();
    let mut files = Files::new(format, folder.path(), ends_by_tag);
    files.sft("train", &[example("what next?"), example("and now?")]).unwrap();
    let prompt = |user_id| Prompt { user_id, prompt: "p", truth: None };
    files.rl(&[prompt("u"), prompt("v")]).unwrap();
    files.preference(&[Preference { prompt: "p", chosen: "a", rejected: "b" }]).unwrap();
    files.finish().unwrap();
    folder
}

#[test]
fn each_format_has_the_columns_that_its_trainer_reads() {
    let folder = written(Format::Trl, true);
    let first = |name: &str| lines(folder.path(), name).swap_remove(0);
    assert_eq!(first("sft_train.jsonl"), json!({ "prompt": "what next?", "completion": "<answer>rake</answer>" }));
    assert_eq!(first("rl.jsonl"), json!({ "prompt": "p", "user_id": "u" }));
    assert_eq!(first("preference.jsonl"), json!({ "prompt": "p", "chosen": "a", "rejected": "b" }));

    let folder = written(Format::LlamaFactory, true);
    let first = |name: &str| lines(folder.path(), name).swap_remove(0);
    let sft = json!({ "instruction": "what next?", "input": "", "output": "<answer>rake</answer>" });
    assert_eq!(first("sft_train.jsonl"), sft);
    assert_eq!(first("preference.jsonl"), json!({ "instruction": "p", "input": "", "chosen": "a", "rejected": "b" }));
    let text = std::fs::read_to_string(folder.path().join("dataset_info.json")).unwrap();
    let sets: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(sets["taiji_sft_train"], json!({ "file_name": "sft_train.jsonl" }));
    assert_eq!(sets["taiji_preference"]["ranking"], json!(true));
    assert_eq!(sets["taiji_preference"]["columns"]["prompt"], json!("instruction"));
}

#[test]
fn verl_has_messages_in_parquet_and_a_template_that_ends_where_the_tag_does_not() {
    let folder = written(Format::Verl, true);
    let message = |role: &str, text: &str| format!("{{role: \"{role}\", content: \"{text}\"}}");
    let answer = message("assistant", "<answer>rake</answer>");
    let sft = |text: &str| format!("{{messages: [{}, {answer}]}}", message("user", text));
    assert_eq!(rows(folder.path(), "sft_train.parquet"), [sft("what next?"), sft("and now?")]);
    let rl = rows(folder.path(), "rl.parquet");
    let expected = format!(
        "{{data_source: \"taiji\", prompt: [{}], ability: \"next_item\", reward_model: {{style: \"rule\", ground_truth: \"\"}}, \
         extra_info: {{index: 1, user_id: \"v\"}}}}",
        message("user", "p")
    );
    assert_eq!((rl.len(), rl[1].as_str()), (2, expected.as_str()));
    let template = |folder: &Path| std::fs::read_to_string(folder.join("chat_template.jinja")).unwrap();
    assert!(!template(folder.path()).contains("eos_token"));
    assert!(template(written(Format::Verl, false).path()).contains("eos_token"));
}
