//! One request with its retries.

use super::cache::Reply;
use super::gate::Gate;
use super::{Endpoint, EndpointError};
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode};
use serde_json::Value;
use std::time::Duration;
use taiji::backoff::Backoff;

/// Bytes of a wrong answer that a message shows.
const SHOWN: usize = 200;
/// The first pause; they double.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// A client of one endpoint.
pub(super) struct Caller {
    client: Client,
    url: String,
    key: Option<String>,
    attempts: u32,
    longest_pause: Duration,
}

/// Why one attempt failed.
enum Failed {
    /// Another one may succeed, after the pause that the endpoint asks for.
    ForNow(String, Option<Duration>),
    /// No other one will.
    ForGood(EndpointError),
}

impl Caller {
    pub(super) fn new(endpoint: &Endpoint) -> Result<Caller, EndpointError> {
        taiji::tls::choose_provider();
        let failed = |error: reqwest::Error| EndpointError::Client { url: endpoint.url.clone(), message: told(&error) };
        let client = Client::builder().timeout(endpoint.timeout()).build().map_err(failed)?;
        let key = match &endpoint.key_env {
            None => None,
            Some(name) => Some(std::env::var(name).map_err(|_| EndpointError::NoKey(name.clone()))?),
        };
        let url = format!("{}/chat/completions", endpoint.url.trim_end_matches('/'));
        Ok(Caller { client, url, key, attempts: endpoint.attempts, longest_pause: endpoint.longest_pause() })
    }

    /// Asks until there is an answer, a failure for good, or no attempt left.
    pub(super) async fn call(&self, question: &Value, gate: &Gate) -> Result<Reply, EndpointError> {
        let mut backoff = Backoff::new(FIRST_PAUSE.min(self.longest_pause), self.longest_pause);
        let mut last = String::new();
        for attempt in 1..=self.attempts {
            gate.pass().await;
            match self.attempt(question).await {
                Ok(reply) => return Ok(reply),
                Err(Failed::ForGood(error)) => return Err(error),
                Err(Failed::ForNow(why, wanted)) => {
                    last = why;
                    if attempt == self.attempts {
                        break;
                    }
                    match wanted {
                        // Everybody waits: the others would be refused as well.
                        Some(pause) => gate.hold(pause.min(self.longest_pause)),
                        None => tokio::time::sleep(backoff.pause()).await,
                    }
                }
            }
        }
        Err(EndpointError::GaveUp { url: self.url.clone(), attempts: self.attempts, last })
    }

    async fn attempt(&self, question: &Value) -> Result<Reply, Failed> {
        let plain = self.client.post(&self.url).json(question);
        let request = match &self.key {
            Some(key) => plain.bearer_auth(key),
            None => plain,
        };
        // Nothing came, or not all of it: the network, or a time-out.
        let for_now = |error: reqwest::Error| Failed::ForNow(told(&error), None);
        let response = request.send().await.map_err(for_now)?;
        let (status, pause) = (response.status(), retry_after(&response));
        let header = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let kind = header.unwrap_or("nothing").to_string();
        let body = response.text().await.map_err(for_now)?;
        let url = || self.url.clone();
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT) || status.is_server_error() {
            return Err(Failed::ForNow(format!("status {}: {}", status.as_u16(), begin(&body)), pause));
        }
        if !status.is_success() {
            let (status, body) = (status.as_u16(), begin(&body));
            return Err(Failed::ForGood(EndpointError::Refused { url: url(), status, body }));
        }
        let Ok(value) = serde_json::from_str::<Value>(&body) else {
            return Err(Failed::ForGood(EndpointError::NotJson { url: url(), kind, body: begin(&body) }));
        };
        let Some(text) = value["choices"][0]["message"]["content"].as_str() else {
            return Err(Failed::ForGood(EndpointError::Shape { url: url(), body: begin(&body) }));
        };
        let count = |name: &str| value["usage"][name].as_u64().unwrap_or(0);
        Ok(Reply {
            text: text.to_string(),
            prompt_tokens: count("prompt_tokens"),
            completion_tokens: count("completion_tokens"),
        })
    }
}

/// Whole seconds; the form with a date is passed over, and the own pauses count.
fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// An error with its causes: reqwest's own message leaves them out.
fn told(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text += &format!(": {inner}");
        cause = inner.source();
    }
    text
}

/// The beginning of a body, on one line.
fn begin(body: &str) -> String {
    let plain = body.split_whitespace().collect::<Vec<_>>().join(" ");
    plain.chars().take(SHOWN).collect()
}
