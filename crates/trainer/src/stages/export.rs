//! `export`: a checkpoint as ONNX graphs.

use super::settings::{Context, KeyError, read, value};
use crate::models::{OWN_STOPS, stops};
use crate::sft::tokenizer::TOKENIZER_FILE;
use crate::stage::{Artefact, Input, Inputs, Stage, StageError};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use taiji::llm::GENERATION_FILE;
use taiji_export::{Element, ExportOptions, Flavour, Precision, export};

/// Version of what int4 means where nothing is said; part of the hash of such exports.
const ROUNDING: u32 = 2;

/// The options of `taiji-trainer export`, spelt as there.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    precision: String,
    flavour: Vec<String>,
    block: Option<usize>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    zero_points: bool,
    accuracy_level: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    activations: Option<String>,
    head_bits: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sensitive_bits: Option<usize>,
    max_positions: Option<usize>,
    /// Tokens that end an answer.
    stop: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            precision: "f32".to_string(),
            flavour: vec!["gqa".to_string()],
            block: None,
            zero_points: false,
            accuracy_level: 4,
            activations: None,
            head_bits: None,
            sensitive_bits: None,
            max_positions: None,
            stop: OWN_STOPS.map(str::to_string).to_vec(),
        }
    }
}

struct Export {
    options: ExportOptions,
    stop: Vec<String>,
    value: Value,
}

pub(super) fn make(table: toml::Table, _: &Context) -> Result<Arc<dyn Stage>, KeyError> {
    let settings: Settings = read(table)?;
    let precision = one_of::<Precision>("precision", &settings.precision)?;
    let mut value = value(&settings)?;
    if precision == Precision::Int4 {
        value["rounding"] = json!(ROUNDING);
    }
    let activations = settings.activations.as_deref().map(|name| one_of::<Element>("activations", name)).transpose()?;
    let flavours = settings.flavour.iter().map(|name| one_of::<Flavour>("flavour", name));
    let options = ExportOptions {
        precision,
        flavours: flavours.collect::<Result<_, _>>()?,
        block: settings.block,
        zero_points: settings.zero_points,
        accuracy_level: settings.accuracy_level,
        activations: activations.unwrap_or_default(),
        head_bits: settings.head_bits,
        sensitive_bits: settings.sensitive_bits,
        max_positions: settings.max_positions,
        ..ExportOptions::default()
    };
    Ok(Arc::new(Export { options, stop: settings.stop, value }))
}

/// A choice of the command line by its name there.
fn one_of<T: ValueEnum>(key: &str, name: &str) -> Result<T, KeyError> {
    T::from_str(name, false).map_err(|_| {
        let values = T::value_variants().iter().filter_map(|known| known.to_possible_value());
        let names: Vec<String> = values.map(|known| known.get_name().to_string()).collect();
        KeyError::new(key, format!("{name:?} is none of {}", names.join(", ")))
    })
}

impl Stage for Export {
    fn kind(&self) -> &'static str {
        "export"
    }

    fn version(&self) -> u32 {
        1
    }

    fn settings(&self) -> Value {
        self.value.clone()
    }

    fn inputs(&self) -> Vec<Input> {
        vec![Input::one(Artefact::Checkpoint)]
    }

    fn output(&self) -> Artefact {
        Artefact::Graphs
    }

    fn run(&self, inputs: &Inputs, folder: &Path, _: Option<usize>) -> Result<(), StageError> {
        export(inputs.one(Artefact::Checkpoint)?, folder, &self.options)?;
        // Where generation stops is part of the model: prompt and answer tags are ours.
        let path = folder.join(GENERATION_FILE);
        let checkpoint = inputs.one(Artefact::Checkpoint)?;
        let has_tokenizer = checkpoint.join(TOKENIZER_FILE).is_file();
        // A checkpoint of somebody else may have its end elsewhere: where nothing is said, it is asked.
        let stop = match self.stop == OWN_STOPS && has_tokenizer {
            true => stops(checkpoint)?,
            false => json!({ "stop": self.stop }),
        };
        let generation = serde_json::to_string_pretty(&stop)?;
        std::fs::write(&path, generation).map_err(StageError::io(&path))
    }
}
