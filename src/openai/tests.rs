//! The port over a scripted engine: shapes, counts, errors, streams, cancelling. (The built program is in `tests/e2e`.)

use super::*;
use crate::bundle::{Inference, testing};
use crate::encode::NullEncoder;
use crate::llm::{Beam, BeamRequest, Finish, GenerateRequest, Generation, LlmError, NullLlm, Piece, QueueDepth};
use async_trait::async_trait;
use axum::http::{Method, Request, StatusCode};
use axum::response::Response;
use futures::StreamExt;
use http_body_util::BodyExt;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tower::ServiceExt;

/// Token that ends a text, as the script spells it.
const STOP: (u32, &str) = (1, "</answer>");

/// Continues a prompt with its own words, over and over: token `i` is ` w`. What the prompt begins with decides how it goes:
/// `overloaded`, `late`, `closed`, `long` fail; `hang` writes one word and then nothing until its caller goes.
#[derive(Default)]
struct Script {
    seen: Mutex<Vec<GenerateRequest>>,
    cancelled: Arc<Notify>,
}

impl Script {
    fn words(request: &GenerateRequest) -> Vec<String> {
        match &request.prompt {
            Prompt::Text(text) => text.split_whitespace().map(str::to_string).collect(),
            Prompt::Tokens(tokens) => tokens.iter().map(|token| format!("t{token}")).collect(),
        }
    }

    /// Words of the prompt, then the stop token, unless the budget or the request says otherwise.
    fn answer(request: &GenerateRequest) -> (Vec<(u32, String)>, Generation) {
        let words = Script::words(request);
        let mut tokens: Vec<(u32, String)> = words.iter().map(|word| (2, format!(" {word}"))).collect();
        tokens.push((STOP.0, STOP.1.to_string()));
        let finish = match tokens.len() > request.max_new_tokens {
            true => Finish::Length,
            false => Finish::Stop,
        };
        tokens.truncate(request.max_new_tokens);
        let generation = Generation {
            text: tokens.iter().map(|(_, text)| text.as_str()).collect(),
            tokens: tokens.iter().map(|(token, _)| *token).collect(),
            logprobs: tokens.iter().map(|_| -0.5).filter(|_| request.logprobs).collect(),
            prompt_tokens: words.len(),
            cached_tokens: words.len() / 2,
            new_tokens: tokens.len(),
            finish,
        };
        (tokens, generation)
    }
}

#[async_trait]
impl LlmEngine for Script {
    async fn generate(&self, request: GenerateRequest) -> Result<Generation, LlmError> {
        Ok(Script::answer(&request).1)
    }

    async fn stream(&self, request: GenerateRequest) -> Result<mpsc::UnboundedReceiver<Piece>, LlmError> {
        self.seen.lock().push(request.clone());
        let (sender, receiver) = mpsc::unbounded_channel();
        let send = |piece| assert!(sender.send(piece).is_ok());
        let (tokens, generation) = Script::answer(&request);
        let piece = |(token, text): (u32, String)| {
            let logprob = request.logprobs.then_some(-0.5);
            Piece::Token { token, text, logprob }
        };
        match Script::words(&request).first().map_or("", String::as_str) {
            "overloaded" => return Err(LlmError::Overloaded { requests: 1, tokens: 2 }),
            "closed" => return Err(LlmError::Closed),
            "long" => return Err(LlmError::PromptTooLong { tokens: 9, limit: 8 }),
            "late" => {
                tokens.into_iter().take(1).for_each(|token| send(piece(token)));
                send(Piece::End(Err(LlmError::Deadline { new_tokens: 1 })));
            }
            "hang" => {
                tokens.into_iter().take(1).for_each(|token| send(piece(token)));
                let (sender, cancelled) = (sender.clone(), self.cancelled.clone());
                tokio::spawn(async move {
                    sender.closed().await;
                    cancelled.notify_one();
                });
            }
            _ => {
                tokens.into_iter().for_each(|token| send(piece(token)));
                send(Piece::End(Ok(generation)));
            }
        }
        Ok(receiver)
    }

    async fn beam(&self, _request: BeamRequest) -> Result<Vec<Beam>, LlmError> {
        Ok(Vec::new())
    }

    async fn score(&self, _prompt: Vec<u32>, _continuation: Vec<u32>) -> Result<Vec<crate::llm::Scored>, LlmError> {
        Ok(Vec::new())
    }

    fn tokenize(&self, text: &str) -> Result<Vec<u32>, LlmError> {
        Ok(text.split_whitespace().map(|word| if word == STOP.1 { STOP.0 } else { 2 }).collect())
    }

    fn count_tokens(&self, text: &str) -> usize {
        text.split_whitespace().count()
    }

    fn prompt_limit(&self, max_new_tokens: usize) -> usize {
        50_usize.saturating_sub(max_new_tokens)
    }

    fn model_id(&self) -> &str {
        "script-1"
    }

    fn queue_depth(&self) -> QueueDepth {
        QueueDepth::default()
    }

    fn stalled(&self) -> Option<std::time::Duration> {
        None
    }

    fn healthy(&self) -> bool {
        true
    }
}

struct Port {
    script: Arc<Script>,
    state: Arc<OpenAiState>,
    router: Router,
}

impl Port {
    fn of(script: Arc<Script>, state: OpenAiState) -> Port {
        let state = Arc::new(state);
        Port { script, router: router(state.clone()), state }
    }
}

fn port_with(keys: ApiKeys, max_in_flight: usize) -> Port {
    let script = Arc::new(Script::default());
    let folder = tempfile::tempdir().expect("tempdir");
    let generation = r#"{"stop": ["</answer>"], "temperature": 0.25}"#;
    std::fs::write(folder.path().join("generation.json"), generation).expect("write");
    let tokenizer = testkit::fixture("qwen2/tokenizer.json");
    std::fs::copy(tokenizer, folder.path().join("tokenizer.json")).expect("copy");
    let settings = OpenAiSettings {
        listen: None,
        max_tokens_default: 20,
        max_inputs: 4,
        max_in_flight,
        deadline_ms: 60_000,
        template: "plain".into(),
    };
    let served = Some(Arc::new(ServedModel::load(folder.path(), &settings.template).expect("model")));
    let encoder = Arc::new(NullEncoder::new(4));
    let models = Inference { encoder, served, ..testing::models(script.clone()) };
    let state = OpenAiState {
        live: Live::new(testing::bundle(1, "space", Some(models))),
        settings,
        bodies: BodyLimits::of_size(4096),
        keys,
        metrics: Arc::new(Metrics::new().expect("metrics")),
        started: 7,
    };
    Port::of(script, state)
}

fn port() -> Port {
    port_with(ApiKeys::default(), 8)
}

impl Port {
    async fn send(&self, method: Method, path: &str, key: &str, body: &str) -> Response {
        let request = Request::builder().method(method).uri(path).header("authorization", format!("Bearer {key}"));
        let request = request.body(Body::from(body.to_string())).expect("request");
        self.router.clone().oneshot(request).await.expect("answer")
    }

    async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        read_json(self.send(Method::POST, path, "", &body.to_string()).await).await
    }

    /// The data of each event of a stream.
    async fn stream(&self, path: &str, body: Value) -> Vec<String> {
        let response = self.send(Method::POST, path, "", &body.to_string()).await;
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let bytes = response.into_body().collect().await.expect("body").to_bytes();
        let text = String::from_utf8(bytes.to_vec()).expect("utf-8");
        let events: Vec<String> = text
            .split_terminator("\n\n")
            .map(|event| event.strip_prefix("data: ").expect("data").to_string())
            .collect();
        assert!(events.iter().all(|event| !event.contains('\n')), "one line an event");
        events
    }
}

async fn read_json(response: Response) -> (StatusCode, Value) {
    let status = response.status();
    let bytes = response.into_body().collect().await.expect("body").to_bytes();
    (status, serde_json::from_slice(&bytes).expect("json"))
}

fn parsed(event: &str) -> Value {
    serde_json::from_str(event).expect("json")
}

#[tokio::test]
async fn a_completion_has_text_counts_and_no_stop_token() {
    let port = port();
    let body = json!({"model": "script-1", "prompt": "a b c", "logprobs": 1, "seed": 5});
    let (status, answer) = port.post("/v1/completions", body).await;
    assert_eq!(status, StatusCode::OK);
    let choice = &answer["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(" a b c"), &json!("stop")));
    assert_eq!(choice["logprobs"]["tokens"], json!([" a", " b", " c"]));
    assert_eq!(choice["logprobs"]["text_offset"], json!([0, 2, 4]));
    assert_eq!(choice["logprobs"]["token_logprobs"], json!([-0.5, -0.5, -0.5]));
    let usage = json!({"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 1}});
    assert_eq!(answer["usage"], usage);
    assert_eq!((&answer["object"], &answer["model"]), (&json!("text_completion"), &json!("script-1")));
    let request = port.script.seen.lock()[0].clone();
    let sampling = request.sampling.expect("sampling");
    assert_eq!((sampling.seed, sampling.temperature, request.max_new_tokens), (5, 0.25, 20));
    assert!(request.deadline.is_some());
}

#[tokio::test]
async fn several_prompts_and_answers_keep_their_order_and_count_prompts_once() {
    let port = port();
    let body = json!({"prompt": ["a", "b b"], "n": 2, "max_tokens": 1});
    let (_, answer) = port.post("/v1/completions", body).await;
    let choices = answer["choices"].as_array().expect("choices");
    let texts: Vec<&str> = choices.iter().map(|choice| choice["text"].as_str().expect("text")).collect();
    assert_eq!(texts, [" a", " a", " b", " b"]);
    assert!(choices.iter().enumerate().all(|(index, choice)| choice["index"] == index));
    assert!(choices.iter().all(|choice| choice["finish_reason"] == "length"));
    assert_eq!((&answer["usage"]["prompt_tokens"], &answer["usage"]["completion_tokens"]), (&json!(3), &json!(4)));
    let (status, error) = port.post("/v1/completions", json!({"prompt": ["a", "b", "c"], "n": 2})).await;
    assert_eq!((status, &error["error"]["param"]), (StatusCode::BAD_REQUEST, &json!("prompt")));
    let (_, tokens) = port.post("/v1/completions", json!({"prompt": [[4], [5, 6]], "ignore_eos": true})).await;
    assert_eq!(tokens["choices"][1]["text"], json!(" t5 t6</answer>"), "not ended by it, so it is part of the text");
}

#[tokio::test]
async fn a_default_budget_gives_way_to_the_prompt() {
    let port = port();
    let words = |count: usize| vec!["w"; count].join(" ");
    for (count, wanted) in [(10, 20), (40, 10), (60, 1)] {
        port.post("/v1/completions", json!({"prompt": words(count)})).await;
        assert_eq!(port.script.seen.lock().last().expect("request").max_new_tokens, wanted);
    }
}

#[tokio::test]
async fn a_streamed_completion_ends_with_its_counts_and_done() {
    let port = port();
    let body = json!({"prompt": "a b", "stream": true, "stream_options": {"include_usage": true}, "logprobs": 0});
    let events = port.stream("/v1/completions", body).await;
    let (done, chunks) = events.split_last().expect("events");
    assert_eq!(done, "[DONE]");
    let chunks: Vec<Value> = chunks.iter().map(|event| parsed(event)).collect();
    let (counts, pieces) = chunks.split_last().expect("chunks");
    assert_eq!((&counts["choices"], &counts["usage"]["completion_tokens"]), (&json!([]), &json!(3)));
    let texts: Vec<&Value> = pieces.iter().map(|chunk| &chunk["choices"][0]["text"]).collect();
    assert_eq!(texts, [" a", " b", ""]);
    assert_eq!(pieces[1]["choices"][0]["logprobs"]["text_offset"], json!([2]));
    let finishes: Vec<&Value> = pieces.iter().map(|chunk| &chunk["choices"][0]["finish_reason"]).collect();
    assert_eq!(finishes, [&Value::Null, &Value::Null, &json!("stop")]);
    assert!(pieces.iter().all(|chunk| chunk["usage"].is_null() && chunk["id"] == counts["id"]));
}

#[tokio::test]
async fn a_chat_goes_through_the_template_and_streams_its_role_first() {
    let port = port();
    let messages = json!([{"role": "user", "content": "hi"}]);
    let (status, answer) = port.post("/v1/chat/completions", json!({"messages": messages, "logprobs": true})).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let message = &answer["choices"][0]["message"];
    assert_eq!((&message["role"], &message["content"]), (&json!("assistant"), &json!(" user: hi assistant:")));
    assert_eq!(answer["choices"][0]["logprobs"]["content"][1]["bytes"], json!(b" hi"));
    assert_eq!(port.script.seen.lock()[0].prompt, Prompt::Text("user: hi\nassistant:".into()));

    let events = port.stream("/v1/chat/completions", json!({"messages": messages, "stream": true, "n": 2})).await;
    let deltas = |index: usize| -> Vec<Value> {
        let choices = events[..events.len() - 1].iter().map(|event| parsed(event)["choices"][0].clone());
        choices.filter(|choice| choice["index"] == index).collect()
    };
    for index in [0, 1] {
        let deltas = deltas(index);
        assert_eq!(deltas[0]["delta"]["role"], json!("assistant"));
        let text: String = deltas.iter().filter_map(|choice| choice["delta"]["content"].as_str()).collect();
        assert_eq!(text, " user: hi assistant:");
        assert_eq!(deltas.last().expect("last")["finish_reason"], json!("stop"));
    }
}

#[tokio::test]
async fn what_is_not_built_is_refused_by_name() {
    let port = port();
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    for (field, value) in [
        ("tools", tools),
        ("tool_choice", json!("required")),
        ("response_format", json!({"type": "json_object"})),
        ("top_logprobs", json!(2)),
        ("reasoning_effort", json!("high")),
        ("modalities", json!(["audio"])),
    ] {
        let body = json!({"messages": [{"role": "user", "content": "hi"}], field: value});
        let (status, answer) = port.post("/v1/chat/completions", body).await;
        assert_eq!((status, &answer["error"]["param"]), (StatusCode::BAD_REQUEST, &json!(field)));
    }
    for (field, value) in [("echo", json!(true)), ("best_of", json!(3)), ("suffix", json!("x")), ("logprobs", json!(5))]
    {
        let (status, answer) = port.post("/v1/completions", json!({"prompt": "a", field: value})).await;
        assert_eq!((status, &answer["error"]["param"]), (StatusCode::BAD_REQUEST, &json!(field)));
    }
    assert!(port.script.seen.lock().is_empty(), "nothing reached the engine");
}

#[tokio::test]
async fn a_model_without_a_template_names_the_remedy() {
    let Port { script, state, router } = port();
    drop(router);
    let Ok(mut state) = Arc::try_unwrap(state) else { panic!("shared") };
    let models = Inference { served: Some(Arc::default()), ..testing::models(script.clone()) };
    state.live = Live::new(testing::bundle(1, "space", Some(models)));
    let port = Port::of(script, state);
    let (status, answer) =
        port.post("/v1/chat/completions", json!({"messages": [{"role": "user", "content": "hi"}]})).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(answer["error"]["message"].as_str().expect("message").contains("openai.template"), "{answer}");
}

#[tokio::test]
async fn audit_18_a_request_takes_the_models_that_are_active_as_it_comes() {
    let port = port();
    let answer = async || port.post("/v1/completions", json!({"prompt": "a b"})).await;
    let before = answer().await;
    assert_eq!((before.0, &before.1["system_fingerprint"]), (StatusCode::OK, &json!("script-1")));
    let encoder = Arc::new(NullEncoder::new(4));
    let models = Inference { encoder, served: Some(Arc::default()), ..testing::models(Arc::new(NullLlm::default())) };
    port.state.live.swap(testing::bundle(2, "space", Some(models)), 1);
    let after = answer().await;
    assert_eq!((after.0, &after.1["system_fingerprint"]), (StatusCode::OK, &json!(NullLlm::default().model_id())));
    port.state.live.swap(testing::bundle(3, "space", None), 2);
    let (status, refused) = answer().await;
    assert_eq!((status, &refused["error"]["code"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("unavailable")));
    assert!(refused["error"]["message"].as_str().expect("message").contains("role infer"), "{refused}");
}

#[tokio::test]
async fn errors_of_the_engine_come_before_the_head_or_as_a_last_chunk() {
    let port = port();
    for (prompt, status, code) in [
        ("overloaded", 429, "rate_limit_exceeded"),
        ("closed", 503, "unavailable"),
        ("long", 400, "context_length_exceeded"),
    ] {
        for stream in [false, true] {
            let body = json!({"prompt": ["fine", prompt], "stream": stream});
            let (found, answer) = port.post("/v1/completions", body).await;
            assert_eq!((found.as_u16(), &answer["error"]["code"]), (status, &json!(code)));
        }
    }
    let (status, _) = port.post("/v1/completions", json!({"prompt": "late"})).await;
    assert_eq!(status, StatusCode::GATEWAY_TIMEOUT);
    let events = port.stream("/v1/completions", json!({"prompt": "late", "stream": true})).await;
    assert_eq!(parsed(events.last().expect("event"))["error"]["code"], json!("deadline_exceeded"));
    assert_eq!(events.len(), 2, "the token that was written, the error, and no [DONE]");
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_its_requests() {
    let port = port();
    let response = port.send(Method::POST, "/v1/completions", "", r#"{"prompt": "hang", "stream": true}"#).await;
    let mut body = response.into_body().into_data_stream();
    assert!(body.next().await.expect("an event").is_ok());
    assert_eq!(port.state.metrics.http_in_flight.get(), 1, "an open stream is under way");
    drop(body);
    port.script.cancelled.notified().await;
    assert_eq!(port.state.metrics.http_in_flight.get(), 0);

    let whole = port.post("/v1/completions", json!({"prompt": "hang"}));
    let mut whole = Box::pin(whole);
    assert!(futures::poll!(whole.as_mut()).is_pending());
    drop(whole);
    port.script.cancelled.notified().await;
}

#[tokio::test]
async fn an_open_stream_keeps_its_place() {
    let port = port_with(ApiKeys::default(), 1);
    let open = port.send(Method::POST, "/v1/completions", "", r#"{"prompt": "hang", "stream": true}"#).await;
    let refused = port.send(Method::GET, "/v1/models", "", "").await;
    assert_eq!(refused.headers()["retry-after"], "1");
    let (status, answer) = read_json(refused).await;
    assert_eq!((status.as_u16(), &answer["error"]["type"]), (429, &json!("rate_limit_error")));
    drop(open);
    assert_eq!(port.send(Method::GET, "/v1/models", "", "").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn texts_become_vectors_as_numbers_or_base64() {
    let port = port();
    let (_, answer) = port.post("/v1/embeddings", json!({"input": ["tea", "two words"]})).await;
    assert_eq!(answer["usage"], json!({"prompt_tokens": 3, "total_tokens": 3}));
    let vector = answer["data"][0]["embedding"].as_array().expect("numbers").clone();
    let (_, other) = port.post("/v1/embeddings", json!({"input": "tea", "encoding_format": "base64"})).await;
    use base64::Engine;
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(other["data"][0]["embedding"].as_str().expect("text"))
        .expect("base64");
    let numbers: Vec<f32> =
        bytes.chunks(4).map(|four| f32::from_le_bytes(four.try_into().expect("four bytes"))).collect();
    assert_eq!(numbers.len(), 4);
    assert!(vector.iter().zip(numbers).all(|(left, right)| left.as_f64() == Some(f64::from(right))));
    for (body, param) in [
        (json!({}), "input"),
        (json!({"input": [1, 2]}), "input"),
        (json!({"input": [""]}), "input"),
        (json!({"input": ["a", "b", "c", "d", "e"]}), "input"),
        (json!({"input": "a", "dimensions": 2}), "dimensions"),
        (json!({"input": "a", "encoding_format": "int8"}), "encoding_format"),
        (json!({"input": "a", "model": "script-1"}), "model"),
    ] {
        let (_, answer) = port.post("/v1/embeddings", body).await;
        assert_eq!(answer["error"]["param"], json!(param), "{answer}");
    }
}

#[tokio::test]
async fn models_are_listed_and_found_by_id() {
    let port = port();
    let (_, list) = read_json(port.send(Method::GET, "/v1/models", "", "").await).await;
    let ids: Vec<&Value> = list["data"].as_array().expect("data").iter().map(|model| &model["id"]).collect();
    assert_eq!(ids, ["script-1", "null"]);
    let (_, one) = read_json(port.send(Method::GET, "/v1/models/null", "", "").await).await;
    assert_eq!(one["created"], json!(7));
    let (status, none) = read_json(port.send(Method::GET, "/v1/models/gpt", "", "").await).await;
    assert_eq!((status.as_u16(), &none["error"]["code"]), (404, &json!("model_not_found")));
    let (status, _) = port.post("/v1/completions", json!({"prompt": "a", "model": "gpt"})).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_port_answers_wrong_requests_in_its_own_shape() {
    let admin = "admin-key-0123456789";
    let port = port_with(ApiKeys::new(&["read-key-0123456789".into()], &[], &[admin.into()]), 8);
    let long = format!(r#"{{"prompt": "{}"}}"#, "x".repeat(5000));
    for (method, path, key, body, status) in [
        (Method::GET, "/v1/models", "read-key-0123456789", "", 401),
        (Method::GET, "/v1/models", admin, "", 200),
        (Method::GET, "/health", "", "", 200),
        (Method::POST, "/v1/completions", "", "{}", 401),
        (Method::POST, "/v1/completions", admin, "{", 400),
        (Method::POST, "/v1/completions", admin, long.as_str(), 413),
        (Method::GET, "/v1/completions", admin, "", 405),
        (Method::GET, "/v1/nothing", admin, "", 404),
    ] {
        let (found, answer) = read_json(port.send(method, path, key, body).await).await;
        assert_eq!(found.as_u16(), status, "{path}: {answer}");
        let error = &answer["error"];
        let shaped = error["message"].is_string() && error["type"].is_string() && error.get("param").is_some();
        assert!(status == 200 || (shaped && error.get("code").is_some()), "{answer}");
    }
}
