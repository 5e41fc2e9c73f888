//! Parquet as verl reads it: chat messages as lists of groups, and the columns of its reward functions.
//!
//! Called by `formats`. Its readers take Parquet (RL: JSON, too); names and nesting are those of its own examples.

use super::formats::{Preference, Prompt};
use crate::sft::SftExample;
use crate::stage::StageError;
use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// Values of one leaf of the schema, row after row.
enum Leaf {
    Texts(Vec<String>),
    Numbers(Vec<i64>),
    /// Of a list: values, and for each whether it begins its row's.
    Listed(Vec<String>, Vec<bool>),
}

/// Schema and leaves of a file in the making.
#[derive(Default)]
struct Table {
    schema: String,
    leaves: Vec<Leaf>,
}

impl Table {
    fn text(mut self, name: &str, values: Vec<String>) -> Self {
        self.schema += &format!("required binary {name} (STRING); ");
        self.leaves.push(Leaf::Texts(values));
        self
    }

    fn group(mut self, name: &str, inside: Table) -> Self {
        self.schema += &format!("required group {name} {{ {} }} ", inside.schema);
        self.leaves.extend(inside.leaves);
        self
    }

    fn numbers(mut self, name: &str, values: Vec<i64>) -> Self {
        self.schema += &format!("required int64 {name}; ");
        self.leaves.push(Leaf::Numbers(values));
        self
    }

    /// Messages of each row: (role, content).
    fn messages(mut self, name: &str, rows: &[Vec<(&str, &str)>]) -> Self {
        self.schema += &format!(
            "required group {name} (LIST) {{ repeated group list {{ required group element {{ \
             required binary role (STRING); required binary content (STRING); }} }} }} "
        );
        let begins: Vec<bool> = rows.iter().flat_map(|row| (0..row.len()).map(|place| place == 0)).collect();
        let part = |of: fn(&(&str, &str)) -> String| rows.iter().flatten().map(of).collect();
        self.leaves.push(Leaf::Listed(part(|(role, _)| role.to_string()), begins.clone()));
        self.leaves.push(Leaf::Listed(part(|(_, content)| content.to_string()), begins));
        self
    }

    fn write(self, path: &Path) -> Result<(), StageError> {
        let failed =
            |error: ParquetError| StageError::File { path: path.display().to_string(), message: error.to_string() };
        let file = File::create(path).map_err(StageError::io(path))?;
        self.write_to(file).map_err(failed)
    }

    fn write_to(self, file: File) -> Result<(), ParquetError> {
        let schema = Arc::new(parse_message_type(&format!("message taiji {{ {} }}", self.schema))?);
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_created_by("taiji".to_string())
            .build();
        let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties))?;
        let mut group = writer.next_row_group()?;
        let mut leaves = self.leaves.into_iter();
        while let (Some(mut column), Some(leaf)) = (group.next_column()?, leaves.next()) {
            let bytes = |texts: Vec<String>| -> Vec<ByteArray> {
                texts.into_iter().map(|text| ByteArray::from(text.into_bytes())).collect()
            };
            match leaf {
                Leaf::Texts(texts) => {
                    column.typed::<ByteArrayType>().write_batch(&bytes(texts), None, None)?;
                }
                Leaf::Numbers(numbers) => {
                    column.typed::<Int64Type>().write_batch(&numbers, None, None)?;
                }
                Leaf::Listed(texts, begins) => {
                    let (present, repeats) = (vec![1i16; texts.len()], begins.iter().map(|begins| i16::from(!begins)));
                    let repeats: Vec<i16> = repeats.collect();
                    column.typed::<ByteArrayType>().write_batch(&bytes(texts), Some(&present), Some(&repeats))?;
                }
            }
            column.close()?;
        }
        group.close()?;
        writer.close()?;
        Ok(())
    }
}

pub(super) fn sft(path: &Path, examples: &[SftExample]) -> Result<(), StageError> {
    let rows: Vec<Vec<(&str, &str)>> = examples
        .iter()
        .map(|example| vec![("user", example.prompt.as_str()), ("assistant", example.completion.as_str())])
        .collect();
    Table::default().messages("messages", &rows).write(path)
}

pub(super) fn rl(path: &Path, prompts: &[Prompt<'_>]) -> Result<(), StageError> {
    let all = |text: &str| vec![text.to_string(); prompts.len()];
    let asked: Vec<Vec<(&str, &str)>> = prompts.iter().map(|prompt| vec![("user", prompt.prompt)]).collect();
    // The reward service knows the truth by the user; verl wants the column.
    let truth = prompts.iter().map(|prompt| prompt.truth.map_or(String::new(), |item| item.title.clone())).collect();
    let users = prompts.iter().map(|prompt| prompt.user_id.to_string()).collect();
    Table::default()
        .text("data_source", all("taiji"))
        .messages("prompt", &asked)
        .text("ability", all("next_item"))
        .group("reward_model", Table::default().text("style", all("rule")).text("ground_truth", truth))
        .group(
            "extra_info",
            Table::default().numbers("index", (0..prompts.len() as i64).collect()).text("user_id", users),
        )
        .write(path)
}

pub(super) fn preference(path: &Path, pairs: &[Preference<'_>]) -> Result<(), StageError> {
    let prompts: Vec<Vec<(&str, &str)>> = pairs.iter().map(|pair| vec![("user", pair.prompt)]).collect();
    let chosen: Vec<Vec<(&str, &str)>> = pairs.iter().map(|pair| vec![("assistant", pair.chosen)]).collect();
    let rejected: Vec<Vec<(&str, &str)>> = pairs.iter().map(|pair| vec![("assistant", pair.rejected)]).collect();
    Table::default()
        .messages("prompt", &prompts)
        .messages("chosen", &chosen)
        .messages("rejected", &rejected)
        .write(path)
}
