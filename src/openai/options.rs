//! What `/v1/completions` and `/v1/chat/completions` have in common: sampling, stops, number of answers, streaming.
//!
//! In: the request's [`Fields`] and the model's own defaults. Out: [`Options`], and from them engine requests.

use super::respond::Plan;
use super::{Fields, OpenAiError};
use crate::llm::{GenerateRequest, Priority, Prompt, Sampling, ServedModel};
use rand::Rng;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Most stop strings, as at OpenAI.
const MAX_STOPS: usize = 4;

/// What a request asks for, besides its prompt.
#[derive(Debug, Clone)]
pub struct Options {
    /// Most tokens of an answer; `None` = as many as `openai.max_tokens_default` says and as fit.
    pub max_tokens: Option<usize>,
    /// The model's own settings with the request's laid over.
    pub sampling: Sampling,
    /// Strings that end an answer.
    pub stop: Vec<String>,
    /// Answers per prompt, each with a seed of its own.
    pub n: usize,
    /// Send pieces as they come.
    pub stream: bool,
    /// End the stream with the counts.
    pub include_usage: bool,
    /// The model's own stops do not end an answer (load tests).
    pub ignore_eos: bool,
    /// Give the log-probability of each token of the answer.
    pub logprobs: bool,
}

impl Options {
    /// Takes the common fields; those the two calls spell differently (`max_tokens`, `logprobs`) are their own matter.
    pub fn take(fields: &mut Fields, model: &ServedModel) -> Result<Options, OpenAiError> {
        for (name, defaults) in refused() {
            fields.refuse(name, &defaults)?;
        }
        let stream = fields.flag("stream")?;
        Ok(Options {
            max_tokens: None,
            sampling: sampling(fields, model.sampling)?,
            stop: stops(fields)?,
            n: fields.integer("n", 1..=128)?.unwrap_or(1) as usize,
            stream,
            include_usage: stream_options(fields, stream)?,
            ignore_eos: fields.flag("ignore_eos")?,
            logprobs: false,
        })
    }

    /// How the response is to be written.
    pub fn plan(&self) -> Plan {
        Plan { stream: self.stream, n: self.n, include_usage: self.include_usage, every_token: self.logprobs }
    }

    /// The engine's requests for one prompt: one for each answer, with seeds that follow one another.
    pub fn requests<'a>(
        &'a self,
        prompt: &'a Prompt,
        max_new_tokens: usize,
        deadline: Option<Duration>,
    ) -> impl Iterator<Item = GenerateRequest> + 'a {
        let deadline = deadline.map(|time| Instant::now() + time);
        (0..self.n).map(move |place| {
            let request = match prompt {
                Prompt::Text(text) => GenerateRequest::new(text.as_str(), max_new_tokens),
                Prompt::Tokens(tokens) => GenerateRequest::tokens(tokens.clone(), max_new_tokens),
            };
            let seed = self.sampling.seed.wrapping_add(place as u64);
            GenerateRequest {
                sampling: Some(Sampling { seed, ..self.sampling }),
                stop: self.stop.clone(),
                ignore_stop: self.ignore_eos,
                logprobs: self.logprobs,
                priority: Priority::Interactive,
                deadline,
                ..request
            }
        })
    }
}

/// Fields of OpenAI's API that would change the answer and are not built, with the values that change nothing.
fn refused() -> Vec<(&'static str, Vec<Value>)> {
    vec![
        ("frequency_penalty", vec![json!(0)]),
        ("presence_penalty", vec![json!(0)]),
        ("logit_bias", vec![]),
        ("min_tokens", vec![json!(0)]),
    ]
}

/// What is given wins over the model's own `generation.json`. Without a seed each request draws one.
fn sampling(fields: &mut Fields, model: Sampling) -> Result<Sampling, OpenAiError> {
    let seed = fields.integer("seed", i64::MIN..=i64::MAX)?;
    let top_k = fields.integer("top_k", -1..=i64::from(u32::MAX))?;
    Ok(Sampling {
        temperature: fields.number("temperature", 0.0..=2.0)?.map_or(model.temperature, |value| value as f32),
        // -1 means all, as load tools write it.
        top_k: top_k.map_or(model.top_k, |value| usize::try_from(value).unwrap_or(0)),
        top_p: fields.number("top_p", 0.0..=1.0)?.map_or(model.top_p, |value| value as f32),
        repetition_penalty: fields
            .number("repetition_penalty", 0.01..=100.0)?
            .map_or(model.repetition_penalty, |value| value as f32),
        seed: seed.map_or_else(|| rand::rng().random(), |value| value as u64),
    })
}

fn stops(fields: &mut Fields) -> Result<Vec<String>, OpenAiError> {
    let wrong = || OpenAiError::field("stop", format!("must be a string or a list of at most {MAX_STOPS} strings"));
    let given = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(list)) if list.len() <= MAX_STOPS => {
            let text = |value: Value| value.as_str().map(str::to_string);
            list.into_iter().map(text).collect::<Option<Vec<String>>>().ok_or_else(wrong)?
        }
        Some(_) => return Err(wrong()),
    };
    match given.iter().any(String::is_empty) {
        true => Err(OpenAiError::field("stop", "a stop string must not be empty")),
        false => Ok(given),
    }
}

/// Whether the stream ends with the counts.
fn stream_options(fields: &mut Fields, stream: bool) -> Result<bool, OpenAiError> {
    let wrong = |message: &str| OpenAiError::field("stream_options", message);
    let object = match fields.take("stream_options") {
        None => return Ok(false),
        Some(Value::Object(object)) => object,
        Some(_) => return Err(wrong("must be an object")),
    };
    if !stream {
        return Err(wrong("is only for stream = true"));
    }
    let mut include_usage = false;
    for (name, value) in object {
        match (name.as_str(), value) {
            ("include_usage", Value::Bool(flag)) => include_usage = flag,
            // Padding against eavesdroppers; without it nothing is wrong.
            ("include_obfuscation", Value::Bool(_)) | (_, Value::Null | Value::Bool(false)) => {}
            _ => return Err(OpenAiError::field(&format!("stream_options.{name}"), "is not supported here")),
        }
    }
    Ok(include_usage)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(value: Value) -> Result<Options, OpenAiError> {
        let model = ServedModel {
            sampling: Sampling { temperature: 0.6, top_k: 20, top_p: 0.95, repetition_penalty: 1.1, seed: 0 },
            ..ServedModel::default()
        };
        let mut fields = Fields::parse(value.to_string().as_bytes())?;
        let options = Options::take(&mut fields, &model)?;
        fields.finish()?;
        Ok(options)
    }

    #[test]
    fn what_is_absent_is_as_the_model_says_and_what_is_given_wins() {
        let own = options(json!({})).expect("empty").sampling;
        assert_eq!((own.temperature, own.top_k, own.top_p, own.repetition_penalty), (0.6, 20, 0.95, 1.1));
        let given = options(json!({"temperature": 1, "top_p": 1, "top_k": -1, "seed": -1})).expect("given").sampling;
        assert_eq!((given.temperature, given.top_k, given.top_p, given.seed), (1.0, 0, 1.0, u64::MAX));
        assert_eq!(given.repetition_penalty, 1.1);
    }

    #[test]
    fn without_a_seed_each_request_draws_one() {
        let seeds: std::collections::BTreeSet<u64> =
            (0..20).map(|_| options(json!({})).expect("empty").sampling.seed).collect();
        assert!(seeds.len() > 15);
    }

    #[test]
    fn answers_of_one_prompt_have_seeds_that_follow_one_another() {
        let options = options(json!({"n": 3, "seed": 7, "stop": "a", "ignore_eos": true})).expect("options");
        let prompt = Prompt::Text("p".into());
        let requests: Vec<GenerateRequest> = options.requests(&prompt, 5, None).collect();
        let seeds: Vec<u64> = requests.iter().map(|request| request.sampling.expect("sampling").seed).collect();
        assert_eq!(seeds, [7, 8, 9]);
        assert!(requests.iter().all(|request| request.priority == Priority::Interactive && request.ignore_stop));
        assert_eq!((requests[0].stop.as_slice(), requests[0].max_new_tokens), (["a".to_string()].as_slice(), 5));
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        for (field, value) in [
            ("temperature", json!(2.5)),
            ("temperature", json!("hot")),
            ("top_p", json!(-0.1)),
            ("top_k", json!(1.5)),
            ("repetition_penalty", json!(0)),
            ("seed", json!("x")),
            ("n", json!(0)),
            ("stop", json!(["a", "b", "c", "d", "e"])),
            ("stop", json!([3])),
            ("stop", json!("")),
            ("stream", json!(1)),
            ("stream_options", json!({"include_usage": true})),
            ("logit_bias", json!({"1": 5})),
            ("frequency_penalty", json!(0.1)),
            ("presence_penalty", json!(-1)),
            ("nonsense", json!(1)),
        ] {
            let body = options(json!({ field: value })).expect_err("refused").body();
            assert_eq!(body["error"]["param"], json!(field), "{body}");
        }
        let bad = options(json!({"stream": true, "stream_options": {"chunks": 3}})).expect_err("refused").body();
        assert_eq!(bad["error"]["param"], json!("stream_options.chunks"));
    }

    #[test]
    fn values_that_change_nothing_pass() {
        let value = json!({"frequency_penalty": 0.0, "logit_bias": {}, "user": "u", "metadata": {"a": "b"}, "store": true,
            "stream": true, "stream_options": {"include_usage": true, "continuous_usage_stats": false}});
        let options = options(value).expect("defaults");
        assert!(options.stream && options.include_usage && options.n == 1);
    }
}
