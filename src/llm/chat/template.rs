//! The model's chat template (Jinja, as Hugging Face stores it): messages in, prompt text out.
//!
//! Rendered as `transformers` does: blocks are trimmed, Python's string methods work, `raise_exception` and
//! `strftime_now` exist, `tojson` does not escape for HTML. Callers: `chat` loads, `openai` renders.

use chrono::{DateTime, Utc};
use minijinja::value::{Kwargs, Value as JinjaValue};
use minijinja::{Environment, Error, ErrorKind};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize;
use serde_json::{Map, Value};
use std::path::Path;
use thiserror::Error;

/// The setting's word for the built-in fallback.
const PLAIN: &str = "plain";
/// `role: content`, one a line, then `assistant:`. Only on request: no model was trained on it.
const PLAIN_TEMPLATE: &str = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}\
                              {% if add_generation_prompt %}assistant:{% endif %}";
const NAME: &str = "chat";
const OWN_FILE: &str = "chat_template.jinja";
const CONFIG_FILE: &str = "tokenizer_config.json";

/// A file of the model's folder that cannot be used.
#[derive(Debug, Error)]
#[error("{path}: {message}")]
pub struct TemplateError {
    /// The file.
    pub path: String,
    /// What is wrong.
    pub message: String,
}

/// A compiled template and the tokens it writes.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: Option<String>,
    eos_token: Option<String>,
}

impl ChatTemplate {
    /// The template of a model's folder, or the one the setting names; `None` where neither has one.
    pub fn load(folder: &Path, setting: &str) -> Result<Option<ChatTemplate>, TemplateError> {
        let config = read_config(&folder.join(CONFIG_FILE))?;
        let (path, source) = match setting {
            "" if folder.join(OWN_FILE).exists() => read_template(&folder.join(OWN_FILE))?,
            "" => match template_of(&config) {
                Some(source) => (folder.join(CONFIG_FILE).display().to_string(), source),
                None => return Ok(None),
            },
            PLAIN => (PLAIN.to_string(), PLAIN_TEMPLATE.to_string()),
            file => read_template(Path::new(file))?,
        };
        let (bos_token, eos_token) = (token_of(&config, "bos_token"), token_of(&config, "eos_token"));
        let compiled = ChatTemplate::compile(source, bos_token, eos_token);
        compiled.map(Some).map_err(|error| TemplateError { path, message: explain(&error) })
    }

    fn compile(source: String, bos_token: Option<String>, eos_token: Option<String>) -> Result<ChatTemplate, Error> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_template_owned(NAME, source)?;
        Ok(ChatTemplate { environment, bos_token, eos_token })
    }

    /// The prompt for these messages, ready for the assistant's turn. `variables` are the template's own switches
    /// (`enable_thinking`, …). An error is what the template itself raised, or what it could not evaluate.
    pub fn render(&self, messages: &[Value], variables: &Map<String, Value>) -> Result<String, String> {
        let mut context = variables.clone();
        context.insert("messages".into(), Value::Array(messages.to_vec()));
        context.insert("add_generation_prompt".into(), Value::Bool(true));
        context.insert("tools".into(), Value::Null);
        context.insert("documents".into(), Value::Null);
        // Templates print these without asking, and an absent one prints nothing.
        context.insert("bos_token".into(), self.bos_token.clone().unwrap_or_default().into());
        context.insert("eos_token".into(), self.eos_token.clone().unwrap_or_default().into());
        let template = self.environment.get_template(NAME).map_err(|error| explain(&error))?;
        template.render(JinjaValue::from_serialize(&context)).map_err(|error| explain(&error))
    }

    /// The tokenizer's end of text.
    pub fn eos_token(&self) -> Option<&String> {
        self.eos_token.as_ref()
    }
}

/// Message and line, without the source's text.
fn explain(error: &Error) -> String {
    let message = error.detail().map_or_else(|| error.kind().to_string(), str::to_string);
    match error.line() {
        Some(line) => format!("{message} (line {line} of the template)"),
        None => message,
    }
}

fn read_template(path: &Path) -> Result<(String, String), TemplateError> {
    let name = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(source) => Ok((name, source)),
        Err(error) => Err(TemplateError { path: name, message: format!("{error}; it should hold a chat template") }),
    }
}

/// `tokenizer_config.json`; absent = nothing known.
fn read_config(path: &Path) -> Result<Value, TemplateError> {
    let failed = |message: String| TemplateError { path: path.display().to_string(), message };
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| failed(error.to_string())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Value::Null),
        Err(error) => Err(failed(error.to_string())),
    }
}

/// One template, or the one called `default` among several.
fn template_of(config: &Value) -> Option<String> {
    match config.get("chat_template")? {
        Value::String(source) => Some(source.clone()),
        Value::Array(list) => {
            let default = list.iter().find(|entry| entry["name"] == "default")?;
            default["template"].as_str().map(str::to_string)
        }
        _ => None,
    }
}

/// A token as text, or as the object that Hugging Face writes for added tokens.
fn token_of(config: &Value, name: &str) -> Option<String> {
    let token = config.get(name)?;
    token.as_str().or_else(|| token["content"].as_str()).map(str::to_string)
}

/// A template's own refusal of its messages.
fn raise_exception(message: String) -> Result<JinjaValue, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// Today in a format of the template's choice.
fn strftime_now(format: String) -> Result<String, Error> {
    use std::fmt::Write;
    let now: DateTime<Utc> = std::time::SystemTime::now().into();
    let mut text = String::new();
    // chrono fails while it writes when the format has a code it does not know.
    write!(text, "{}", now.format(&format))
        .map_err(|_| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: unknown format {format:?}")))?;
    Ok(text)
}

/// JSON as Python's `json.dumps(…, ensure_ascii=False)` writes it; `indent` as there.
fn to_json(value: JinjaValue, options: Kwargs) -> Result<String, Error> {
    let failed = |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    let indent: Option<usize> = options.get("indent")?;
    // Other switches of json.dumps that say what is done anyway.
    for name in ["ensure_ascii", "sort_keys"] {
        if options.get::<Option<bool>>(name)? == Some(true) {
            return Err(Error::new(ErrorKind::InvalidOperation, format!("tojson: {name} is not supported")));
        }
    }
    options.assert_all_used()?;
    let mut bytes = Vec::new();
    match indent {
        Some(width) => {
            let spaces = vec![b' '; width];
            let pretty = serde_json::ser::PrettyFormatter::with_indent(&spaces);
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, pretty)).map_err(failed)?;
        }
        None => {
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, Spaced)).map_err(failed)?;
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Python's separators: `, ` and `: `.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests;
