//! Files as TRL, verl and LLaMA-Factory read them.
//!
//! TRL: its standard form, `prompt` and `completion` as texts. verl: chat messages in Parquet ([`super::verl`]); its template must be the plain
//! one that is written beside. LLaMA-Factory: alpaca's columns and `dataset_info.json`; train with `template: empty`.

use super::verl;
use crate::data::write_jsonl;
use crate::nn::tensor_file::{write_atomically, write_json};
use crate::sft::SftExample;
use crate::stage::StageError;
use clap::ValueEnum;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use taiji::event::Item;

/// Messages are joined as they are.
const PLAIN_TEMPLATE: &str = "{% for message in messages %}{{ message['content'] }}{% endfor %}";
/// The same for a tokenizer in which the answer's tag ends nothing.
const ENDING_TEMPLATE: &str = "{% for message in messages %}{{ message['content'] }}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}";

/// Whose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Hugging Face TRL: SFTTrainer, GRPOTrainer, DPOTrainer.
    Trl,
    /// verl.
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
    /// The answer's tag is one token, and so the end of a text.
    ends_by_tag: bool,
    /// LLaMA-Factory's list of data sets.
    sets: Map<String, Value>,
}

impl<'a> Files<'a> {
    pub(super) fn new(format: Format, out: &'a Path, ends_by_tag: bool) -> Self {
        Self { format, out, ends_by_tag, sets: Map::new() }
    }

    /// Examples of a part, `train` or `validation`.
    pub(super) fn sft(&mut self, part: &str, examples: &[SftExample]) -> Result<(), StageError> {
        let name = format!("sft_{part}");
        if self.format == Format::Verl {
            return verl::sft(&self.parquet(&name), examples);
        }
        let line = |SftExample { prompt, completion }: &SftExample| match self.format {
            Format::LlamaFactory => json!({ "instruction": prompt, "input": "", "output": completion }),
            _ => json!({ "prompt": prompt, "completion": completion }),
        };
        let lines: Vec<Value> = examples.iter().map(line).collect();
        self.write(&name, &lines, json!({}))
    }

    pub(super) fn rl(&mut self, prompts: &[Prompt<'_>]) -> Result<(), StageError> {
        if self.format == Format::Verl {
            return verl::rl(&self.parquet("rl"), prompts);
        }
        let line = |Prompt { user_id, prompt, .. }: &Prompt<'_>| match self.format {
            Format::LlamaFactory => json!({ "instruction": prompt, "input": "", "output": "", "user_id": user_id }),
            _ => json!({ "prompt": prompt, "user_id": user_id }),
        };
        let lines: Vec<Value> = prompts.iter().map(line).collect();
        self.write("rl", &lines, json!({}))
    }

    pub(super) fn preference(&mut self, pairs: &[Preference<'_>]) -> Result<(), StageError> {
        if self.format == Format::Verl {
            return verl::preference(&self.parquet("preference"), pairs);
        }
        let line = |Preference { prompt, chosen, rejected }: &Preference<'_>| match self.format {
            Format::LlamaFactory => {
                json!({ "instruction": prompt, "input": "", "chosen": chosen, "rejected": rejected })
            }
            _ => json!({ "prompt": prompt, "chosen": chosen, "rejected": rejected }),
        };
        let lines: Vec<Value> = pairs.iter().map(line).collect();
        let ranking = json!({
            "ranking": true,
            "columns": { "prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected" }
        });
        self.write("preference", &lines, ranking)
    }

    fn parquet(&self, name: &str) -> PathBuf {
        self.out.join(format!("{name}.parquet"))
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

    /// What stands beside the data.
    pub(super) fn finish(self) -> Result<(), StageError> {
        let template = if self.ends_by_tag { PLAIN_TEMPLATE } else { ENDING_TEMPLATE };
        match self.format {
            Format::Trl => Ok(()),
            Format::Verl => Ok(write_atomically(&self.out.join("chat_template.jinja"), template.as_bytes())?),
            Format::LlamaFactory => Ok(write_json(&self.out.join("dataset_info.json"), &Value::Object(self.sets))?),
        }
    }
}
