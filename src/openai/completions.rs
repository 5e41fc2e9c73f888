//! `POST /v1/completions`: prompts as they stand, answers out, whole or as a stream.
//!
//! Prompts are a text, a list of texts, token ids, or a list of lists of them. Answers come in the order of the prompts,
//! `n` for each.

use super::answer::{self, Answer, Token, finish_reason};
use super::options::Options;
use super::respond::{Shape, respond};
use super::{Fields, OpenAiError, OpenAiState};
use crate::llm::{Finish, Prompt, ServedModel};
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde_json::{Value, json};
use std::sync::Arc;

/// The handler.
pub async fn post_completions(
    State(state): State<Arc<OpenAiState>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, OpenAiError> {
    let mut fields = state.read(&headers, body).await?;
    let serving = state.serving()?;
    let model = state.require_model(&mut fields, serving.llm.model_id())?;
    let prompts = prompts(&mut fields)?;
    let options = options(fields, &serving.model)?;
    state.check_count("prompt", prompts.len() * options.n)?;

    let requests = prompts.iter().flat_map(|prompt| {
        let budget = serving.budget(options.max_tokens, prompt);
        options.requests(prompt, budget, state.deadline())
    });
    let stops = if options.ignore_eos { Vec::new() } else { serving.model.stops.clone() };
    let choices = answer::start(serving.llm.as_ref(), requests.collect(), stops).await?;
    let shape = CompletionShape { head: serving.head("cmpl", "text_completion", &model), logprobs: options.logprobs };
    respond(choices, shape, options.plan()).await
}

fn options(mut fields: Fields, model: &ServedModel) -> Result<Options, OpenAiError> {
    let mut options = Options::take(&mut fields, model)?;
    options.max_tokens = fields.integer("max_tokens", 0..=i64::from(u32::MAX))?.map(|value| value as usize);
    // 0 and 1 both mean the token that was chosen; alternatives are not kept.
    options.logprobs = match fields.integer("logprobs", 0..=i64::MAX)? {
        None => false,
        Some(0 | 1) => true,
        Some(_) => return Err(OpenAiError::field("logprobs", "only the chosen token's is given: 0 or 1")),
    };
    fields.refuse("echo", &[json!(false)])?;
    fields.refuse("best_of", &[json!(1), json!(options.n)])?;
    fields.refuse("suffix", &[json!("")])?;
    fields.finish()?;
    Ok(options)
}

/// The four forms of `prompt`.
fn prompts(fields: &mut Fields) -> Result<Vec<Prompt>, OpenAiError> {
    let wrong = || {
        OpenAiError::field("prompt", "must be a string, a list of strings, token ids, or a list of lists of token ids")
    };
    let found = match fields.take("prompt") {
        None => return Err(OpenAiError::field("prompt", "is missing")),
        Some(Value::String(text)) => vec![Prompt::Text(text)],
        Some(Value::Array(list)) => match list.first() {
            Some(Value::Number(_)) => vec![token_ids(&list).ok_or_else(wrong)?],
            Some(_) => list.iter().map(one_prompt).collect::<Option<Vec<Prompt>>>().ok_or_else(wrong)?,
            None => Vec::new(),
        },
        Some(_) => return Err(wrong()),
    };
    let is_empty = |prompt: &Prompt| match prompt {
        Prompt::Text(text) => text.is_empty(),
        Prompt::Tokens(tokens) => tokens.is_empty(),
    };
    match found.is_empty() || found.iter().any(is_empty) {
        true => Err(OpenAiError::field("prompt", "is empty")),
        false => Ok(found),
    }
}

fn one_prompt(value: &Value) -> Option<Prompt> {
    match value {
        Value::String(text) => Some(Prompt::Text(text.clone())),
        Value::Array(list) => token_ids(list),
        _ => None,
    }
}

fn token_ids(list: &[Value]) -> Option<Prompt> {
    let id = |value: &Value| u32::try_from(value.as_u64()?).ok();
    list.iter().map(id).collect::<Option<Vec<u32>>>().map(Prompt::Tokens)
}

struct CompletionShape {
    head: Value,
    logprobs: bool,
}

impl CompletionShape {
    fn logprobs(&self, tokens: &[Token]) -> Option<Value> {
        self.logprobs.then(|| {
            json!({
                "tokens": tokens.iter().map(|token| &token.text).collect::<Vec<_>>(),
                "token_logprobs": tokens.iter().map(|token| token.logprob).collect::<Vec<_>>(),
                "top_logprobs": null,
                "text_offset": tokens.iter().map(|token| token.offset).collect::<Vec<_>>(),
            })
        })
    }
}

impl Shape for CompletionShape {
    fn head(&self) -> &Value {
        &self.head
    }

    fn whole(&self, index: usize, answer: &Answer) -> Value {
        json!({
            "index": index,
            "text": answer.text,
            "logprobs": self.logprobs(&answer.tokens),
            "finish_reason": finish_reason(answer.generation.finish),
        })
    }

    fn opening(&self, _index: usize) -> Option<Value> {
        None
    }

    fn token(&self, index: usize, token: &Token) -> Value {
        let logprobs = self.logprobs(std::slice::from_ref(token));
        json!({ "index": index, "text": token.text, "logprobs": logprobs, "finish_reason": null })
    }

    fn closing(&self, index: usize, finish: Finish) -> Value {
        json!({ "index": index, "text": "", "logprobs": null, "finish_reason": finish_reason(finish) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: Value) -> Result<Vec<Prompt>, OpenAiError> {
        prompts(&mut Fields::parse(json!({ "prompt": value }).to_string().as_bytes())?)
    }

    #[test]
    fn the_four_forms_of_a_prompt() {
        let text = |text: &str| Prompt::Text(text.into());
        assert_eq!(read(json!("a")).expect("text"), [text("a")]);
        assert_eq!(read(json!(["a", "b"])).expect("texts"), [text("a"), text("b")]);
        assert_eq!(read(json!([1, 2])).expect("ids"), [Prompt::Tokens(vec![1, 2])]);
        let lists = [Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])];
        assert_eq!(read(json!([[1], [2, 3]])).expect("lists"), lists);
    }

    #[test]
    fn other_forms_are_refused() {
        for value in [
            json!(null),
            json!(3),
            json!({}),
            json!(""),
            json!([]),
            json!([""]),
            json!([[]]),
            json!([1, "a"]),
            json!([-1]),
            json!([1.5]),
            json!([4294967296_u64]),
            json!([["a"]]),
            json!([true]),
        ] {
            let body = read(value.clone()).expect_err("refused").body();
            assert_eq!(body["error"]["param"], json!("prompt"), "{value}");
        }
    }
}
