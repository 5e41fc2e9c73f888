//! Files as TRL, verl and LLaMA-Factory read them.
//!
//! TRL: its standard form, `prompt` and `completion` as texts. verl: chat messages and the columns of its reward functions; its template must
//! be the plain one that is written beside. LLaMA-Factory: alpaca's columns and `dataset_info.json`; train with `template: empty`.

use crate::data::write_jsonl;
use crate::nn::tensor_file::{write_atomically, write_json};
use crate::sft::SftExample;
use crate::stage::StageError;
use clap::ValueEnum;
use serde_json::{Map, Value, json};
use std::path::Path;
use taiji::event::Item;

/// Messages are joined as they are.
const PLAIN_TEMPLATE: &str = "{% for message in messages %}{{ message['content'] }}{% endfor %}";

/// Whose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Hugging Face TRL: SFTTrainer, GRPOTrainer, DPOTrainer.
    Trl,
    /// verl: parquet's columns as JSON lines, which it reads, too.
    Verl,
    /// LLaMA-Factory.
    #[value(name = "llamafactory")]
    LlamaFactory,
}

/// A prompt and whom it is about.
pub(super) struct Prompt<'a> {
    pub(super) user_id: &'a str,
    pub(super) prompt: &'a str,
    /// What was bought next.
    pub(super) truth: Option<&'a Item>,
}

/// Two answers to a prompt.
pub(super) struct Preference<'a> {
    pub(super) prompt: &'a str,
    pub(super) chosen: &'a str,
    pub(super) rejected: &'a str,
}

/// The folder that is filled.
pub(super) struct Files<'a> {
    format: Format,
    out: &'a Path,
    /// LLaMA-Factory's list of data sets.
    sets: Map<String, Value>,
}

impl<'a> Files<'a> {
    pub(super) fn new(format: Format, out: &'a Path) -> Self {
        Self { format, out, sets: Map::new() }
    }

    /// Examples of a part, `train` or `validation`.
    pub(super) fn sft(&mut self, part: &str, examples: &[SftExample]) -> Result<(), StageError> {
        let line = |SftExample { prompt, completion }: &SftExample| match self.format {
            Format::Trl => json!({ "prompt": prompt, "completion": completion }),
            Format::Verl => json!({ "messages": [user(prompt), assistant(completion)] }),
            Format::LlamaFactory => json!({ "instruction": prompt, "input": "", "output": completion }),
        };
        let lines: Vec<Value> = examples.iter().map(line).collect();
        self.write(&format!("sft_{part}"), &lines, json!({}))
    }

    pub(super) fn rl(&mut self, prompts: &[Prompt<'_>]) -> Result<(), StageError> {
        let line = |(place, Prompt { user_id, prompt, truth }): (usize, &Prompt<'_>)| match self.format {
            Format::Trl => json!({ "prompt": prompt, "user_id": user_id }),
            Format::Verl => json!({
                "data_source": "taiji",
                "prompt": [user(prompt)],
                "ability": "next_item",
                // The reward service knows the truth by the user; verl wants the column.
                "reward_model": { "style": "rule", "ground_truth": truth.map_or("", |item| item.title.as_str()) },
                "extra_info": { "index": place, "user_id": user_id },
            }),
            Format::LlamaFactory => json!({ "instruction": prompt, "input": "", "output": "", "user_id": user_id }),
        };
        let lines: Vec<Value> = prompts.iter().enumerate().map(line).collect();
        self.write("rl", &lines, json!({}))
    }

    pub(super) fn preference(&mut self, pairs: &[Preference<'_>]) -> Result<(), StageError> {
        let line = |Preference { prompt, chosen, rejected }: &Preference<'_>| match self.format {
            Format::Trl => json!({ "prompt": prompt, "chosen": chosen, "rejected": rejected }),
            Format::Verl => json!({
                "prompt": [user(prompt)], "chosen": [assistant(chosen)], "rejected": [assistant(rejected)]
            }),
            Format::LlamaFactory => {
                json!({ "instruction": prompt, "input": "", "chosen": chosen, "rejected": rejected })
            }
        };
        let lines: Vec<Value> = pairs.iter().map(line).collect();
        let ranking = json!({
            "ranking": true,
            "columns": { "prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected" }
        });
        self.write("preference", &lines, ranking)
    }

    fn write(&mut self, name: &str, lines: &[Value], describes: Value) -> Result<(), StageError> {
        let file = format!("{name}.jsonl");
        write_jsonl(&self.out.join(&file), lines)?;
        let mut set = json!({ "file_name": file });
        if let (Some(set), Value::Object(more)) = (set.as_object_mut(), describes) {
            set.extend(more);
        }
        self.sets.insert(format!("taiji_{name}"), set);
        Ok(())
    }

    /// What stands beside the lines.
    pub(super) fn finish(self) -> Result<(), StageError> {
        match self.format {
            Format::Trl => Ok(()),
            Format::Verl => Ok(write_atomically(&self.out.join("chat_template.jinja"), PLAIN_TEMPLATE.as_bytes())?),
            Format::LlamaFactory => Ok(write_json(&self.out.join("dataset_info.json"), &Value::Object(self.sets))?),
        }
    }
}

fn user(content: &str) -> Value {
    json!({ "role": "user", "content": content })
}

fn assistant(content: &str) -> Value {
    json!({ "role": "assistant", "content": content })
}
