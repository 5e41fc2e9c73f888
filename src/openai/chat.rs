//! `POST /v1/chat/completions`: messages through the model's chat template, then as a completion.
//!
//! Contents are text, whole or in parts. Tools, images and sound are refused by name.

use super::answer::{self, Answer, Token, finish_reason};
use super::options::Options;
use super::respond::{Shape, respond};
use super::{Fields, OpenAiError, OpenAiState};
use crate::llm::{Finish, GenerateRequest, Prompt, ServedModel};
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// What a message may have besides role and content; passed on to the template.
const PASSED_ON: [&str; 3] = ["name", "reasoning_content", "reasoning"];

/// The handler.
pub async fn post_chat_completions(
    State(state): State<Arc<OpenAiState>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, OpenAiError> {
    let mut fields = state.read(&headers, body).await?;
    let serving = state.serving()?;
    let model = state.require_model(&mut fields, serving.llm.model_id())?;
    let messages = messages(&mut fields)?;
    let variables = template_variables(&mut fields)?;
    let options = options(fields, &serving.model)?;
    state.check_count("n", options.n)?;

    let template = serving.model.template.as_ref().ok_or(OpenAiError::NoTemplate)?;
    let prompt = Prompt::Text(template.render(&messages, &variables).map_err(OpenAiError::Template)?);
    let stops = match options.ignore_eos {
        true => Vec::new(),
        false => serving.model.stops.iter().chain(&serving.model.end_of_text).cloned().collect(),
    };
    // The template's own end of a turn ends the answer even where generation.json does not say so.
    let end_of_turn = serving.model.end_of_text.iter().filter(|_| !options.ignore_eos).map(|(token, _)| *token);
    let stop_tokens: Vec<u32> = end_of_turn.collect();
    let requests: Vec<GenerateRequest> = options
        .requests(&prompt, serving.budget(options.max_tokens, &prompt), state.deadline())
        .map(|request| GenerateRequest { stop_tokens: stop_tokens.clone(), ..request })
        .collect();
    let choices = answer::start(serving.llm.as_ref(), requests, stops).await?;
    let object = if options.stream { "chat.completion.chunk" } else { "chat.completion" };
    let shape = ChatShape { head: serving.head("chatcmpl", object, &model), logprobs: options.logprobs };
    respond(choices, shape, options.plan()).await
}

fn options(mut fields: Fields, model: &ServedModel) -> Result<Options, OpenAiError> {
    let mut options = Options::take(&mut fields, model)?;
    let most = 0..=i64::from(u32::MAX);
    // max_tokens is the older name.
    let older = fields.integer("max_tokens", most.clone())?;
    options.max_tokens = fields.integer("max_completion_tokens", most)?.or(older).map(|value| value as usize);
    options.logprobs = fields.flag("logprobs")?;
    for (name, defaults) in [
        ("top_logprobs", vec![json!(0)]),
        ("tools", vec![]),
        ("tool_choice", vec![json!("none"), json!("auto")]),
        ("functions", vec![]),
        ("function_call", vec![json!("none"), json!("auto")]),
        ("response_format", vec![json!({ "type": "text" })]),
        ("modalities", vec![json!(["text"])]),
        ("audio", vec![]),
        ("prediction", vec![]),
        ("web_search_options", vec![]),
        ("reasoning_effort", vec![]),
        ("verbosity", vec![json!("medium")]),
    ] {
        fields.refuse(name, &defaults)?;
    }
    fields.finish()?;
    Ok(options)
}

/// Switches of the template, such as `{"enable_thinking": false}`.
fn template_variables(fields: &mut Fields) -> Result<Map<String, Value>, OpenAiError> {
    match fields.take("chat_template_kwargs") {
        None => Ok(Map::new()),
        Some(Value::Object(variables)) => Ok(variables),
        Some(_) => Err(OpenAiError::field("chat_template_kwargs", "must be an object")),
    }
}

/// The messages as the template sees them: contents are text, `developer` is `system`.
fn messages(fields: &mut Fields) -> Result<Vec<Value>, OpenAiError> {
    let list = match fields.take("messages") {
        None => return Err(OpenAiError::field("messages", "is missing")),
        Some(Value::Array(list)) if !list.is_empty() => list,
        Some(_) => return Err(OpenAiError::field("messages", "must be a list of at least one message")),
    };
    list.into_iter().enumerate().map(|(place, value)| message(&format!("messages[{place}]"), value)).collect()
}

fn message(path: &str, value: Value) -> Result<Value, OpenAiError> {
    let Value::Object(mut given) = value else { return Err(OpenAiError::field(path, "must be an object")) };
    let role_path = format!("{path}.role");
    let role = match given.shift_remove("role") {
        Some(Value::String(role)) => role,
        _ => return Err(OpenAiError::field(&role_path, "must be system, user or assistant")),
    };
    let role = match role.as_str() {
        // OpenAI's newer name; no open model's template knows it.
        "system" | "developer" => "system",
        "user" | "assistant" => role.as_str(),
        _ => return Err(OpenAiError::field(&role_path, format!("must be system, user or assistant, not {role:?}"))),
    };
    let content = content(&format!("{path}.content"), given.shift_remove("content").unwrap_or_default())?;
    let mut message = Map::from_iter([("role".to_string(), json!(role)), ("content".to_string(), json!(content))]);
    for (name, value) in given {
        match (name.as_str(), value) {
            (name, value @ Value::String(_)) if PASSED_ON.contains(&name) => {
                message.insert(name.to_string(), value);
            }
            // What earlier answers carry along without saying anything.
            (_, Value::Null) => {}
            (_, Value::Array(list)) if list.is_empty() => {}
            (name, _) => return Err(OpenAiError::field(&format!("{path}.{name}"), "is not supported here")),
        }
    }
    Ok(Value::Object(message))
}

/// Text, or text parts; parts are joined by line breaks.
fn content(path: &str, value: Value) -> Result<String, OpenAiError> {
    let parts = match value {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        _ => return Err(OpenAiError::field(path, "must be a string or a list of text parts")),
    };
    let text = |(place, part): (usize, Value)| match (part["type"].as_str(), part["text"].as_str()) {
        (Some("text"), Some(text)) => Ok(text.to_string()),
        (Some("text"), None) => Err(OpenAiError::field(&format!("{path}[{place}].text"), "must be a string")),
        (kind, _) => {
            let kind = kind.unwrap_or("none");
            Err(OpenAiError::field(&format!("{path}[{place}].type"), format!("only text is supported, not {kind}")))
        }
    };
    let texts = parts.into_iter().enumerate().map(text).collect::<Result<Vec<String>, OpenAiError>>()?;
    Ok(texts.join("\n"))
}

struct ChatShape {
    head: Value,
    logprobs: bool,
}

impl ChatShape {
    fn logprobs(&self, tokens: &[Token]) -> Option<Value> {
        let entry = |token: &Token| {
            json!({
                "token": token.text,
                "logprob": token.logprob,
                "bytes": token.text.as_bytes(),
                "top_logprobs": [],
            })
        };
        self.logprobs.then(|| json!({ "content": tokens.iter().map(entry).collect::<Vec<_>>(), "refusal": null }))
    }
}

impl Shape for ChatShape {
    fn head(&self) -> &Value {
        &self.head
    }

    fn whole(&self, index: usize, answer: &Answer) -> Value {
        json!({
            "index": index,
            "message": { "role": "assistant", "content": answer.text, "refusal": null },
            "logprobs": self.logprobs(&answer.tokens),
            "finish_reason": finish_reason(answer.generation.finish),
        })
    }

    fn opening(&self, index: usize) -> Option<Value> {
        let delta = json!({ "role": "assistant", "content": "", "refusal": null });
        Some(json!({ "index": index, "delta": delta, "logprobs": null, "finish_reason": null }))
    }

    fn token(&self, index: usize, token: &Token) -> Value {
        let logprobs = self.logprobs(std::slice::from_ref(token));
        json!({ "index": index, "delta": { "content": token.text }, "logprobs": logprobs, "finish_reason": null })
    }

    fn closing(&self, index: usize, finish: Finish) -> Value {
        json!({ "index": index, "delta": {}, "logprobs": null, "finish_reason": finish_reason(finish) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: Value) -> Result<Vec<Value>, OpenAiError> {
        messages(&mut Fields::parse(json!({ "messages": value }).to_string().as_bytes())?)
    }

    #[test]
    fn contents_become_text_and_developer_is_system() {
        let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
        let given = json!([
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": parts, "name": "me"},
            {"role": "assistant", "content": "x", "refusal": null, "tool_calls": [], "reasoning_content": "r"},
        ]);
        let wanted = [
            json!({"role": "system", "content": "be brief"}),
            json!({"role": "user", "content": "a\nb", "name": "me"}),
            json!({"role": "assistant", "content": "x", "reasoning_content": "r"}),
        ];
        assert_eq!(read(given).expect("messages"), wanted);
    }

    #[test]
    fn what_is_no_text_is_refused_by_its_path() {
        let image = json!([{"type": "image_url", "image_url": {"url": "x"}}]);
        for (value, path) in [
            (json!([]), "messages"),
            (json!("hi"), "messages"),
            (json!(["hi"]), "messages[0]"),
            (json!([{"content": "x"}]), "messages[0].role"),
            (json!([{"role": "tool", "content": "x"}]), "messages[0].role"),
            (json!([{"role": "user"}]), "messages[0].content"),
            (json!([{"role": "user", "content": 3}]), "messages[0].content"),
            (json!([{"role": "user", "content": image}]), "messages[0].content[0].type"),
            (json!([{"role": "user", "content": [{"type": "text"}]}]), "messages[0].content[0].text"),
            (json!([{"role": "assistant", "content": "x", "tool_calls": [{}]}]), "messages[0].tool_calls"),
        ] {
            let body = read(value).expect_err("refused").body();
            assert_eq!(body["error"]["param"], json!(path), "{body}");
        }
    }
}
