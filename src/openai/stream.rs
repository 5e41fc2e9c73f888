//! Answers as server-sent events: `data: {…}` a chunk, `data: [DONE]` at the end.
//!
//! In: [`Choice`]s and the resource's way to write a chunk ([`Shape`]). Out: an HTTP response. What fails after the head
//! was sent is a chunk with OpenAI's error body, and no `[DONE]` follows. Caller: `respond`.

use super::OpenAiError;
use super::answer::{Choice, Event, Usage};
use super::respond::{Plan, Shape};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{BoxStream, SelectAll, StreamExt, select_all, unfold};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::convert::Infallible;

/// Answers with the pieces as they come.
pub fn stream(choices: Vec<Choice>, shape: impl Shape, plan: Plan) -> Response {
    let pending = choices.iter().filter_map(|choice| shape.opening(choice.index)).collect::<Vec<Value>>();
    let mut chunks = Chunks {
        events: select_all(choices.into_iter().map(events)),
        head: shape.head().to_string().strip_suffix('}').unwrap_or_default().to_string(),
        shape,
        plan,
        usage: Usage::default(),
        pending: VecDeque::new(),
        ended: false,
    };
    for opening in pending {
        chunks.push_choice(opening);
    }
    let stream = unfold(chunks, |mut chunks| async move {
        let data = chunks.next().await?;
        Some((Ok::<_, Infallible>(sse::Event::default().data(data)), chunks))
    });
    // While a request waits for its turn, comments keep proxies from closing the connection.
    Sse::new(stream).keep_alive(KeepAlive::default()).into_response()
}

/// A choice as a stream of what happens to it.
fn events(choice: Choice) -> BoxStream<'static, (usize, Event)> {
    let stream = unfold(choice, |mut choice| async move {
        let event = choice.next().await?;
        Some(((choice.index, event), choice))
    });
    stream.boxed()
}

struct Chunks<S> {
    events: SelectAll<BoxStream<'static, (usize, Event)>>,
    /// JSON of the head, still open: it is the same in every chunk, and there is a chunk for every token.
    head: String,
    shape: S,
    plan: Plan,
    usage: Usage,
    pending: VecDeque<String>,
    ended: bool,
}

impl<S: Shape> Chunks<S> {
    /// The data of the next event; `None` at the end of the body.
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(chunk) = self.pending.pop_front() {
                return Some(chunk);
            }
            if self.ended {
                return None;
            }
            match self.events.next().await {
                Some((index, event)) => self.accept(index, event),
                None => self.close(),
            }
        }
    }

    fn accept(&mut self, index: usize, event: Event) {
        match event {
            Event::Token(token) if token.text.is_empty() && !self.plan.every_token => {}
            Event::Token(token) => self.push_choice(self.shape.token(index, &token)),
            Event::End(generation) => {
                self.push_choice(self.shape.closing(index, generation.finish));
                self.usage.add(&generation, index, self.plan.n);
            }
            Event::Failed(error) => {
                self.pending.push_back(OpenAiError::Llm(error).body().to_string());
                // The other answers are cancelled with the streams.
                self.events.clear();
                self.ended = true;
            }
        }
    }

    fn close(&mut self) {
        if self.plan.include_usage {
            self.push(json!([]), self.usage.json());
        }
        self.pending.push_back("[DONE]".to_string());
        self.ended = true;
    }

    fn push_choice(&mut self, choice: Value) {
        self.push(json!([choice]), Value::Null);
    }

    /// One chunk. `usage` is in every chunk once it was asked for, null but for the last.
    fn push(&mut self, choices: Value, usage: Value) {
        let head = &self.head;
        self.pending.push_back(match self.plan.include_usage {
            true => format!("{head},\"choices\":{choices},\"usage\":{usage}}}"),
            false => format!("{head},\"choices\":{choices}}}"),
        });
    }
}
