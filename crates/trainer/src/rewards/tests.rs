//! The routes over small sources: what is answered, what is refused, who waits for whom.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use crate::align::PromptCase;
use crate::reward::{Answered, Reward, RewardError, RewardKind, RewardSet, RewardSettings, Sources};
use crate::sft::TextTokenizer;
use crate::stages::Written;
use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use serde_json::{Value, json};
use std::sync::mpsc;
use taiji::event::Item;
use taiji::prompt::{PromptMode, PromptSchema};
use tower::ServiceExt;

fn item(id: &str, title: &str) -> Item {
    serde_json::from_value(json!({ "id": id, "title": title, "categories": ["Garden", "Tools", title] })).unwrap()
}

fn tokenizer() -> TextTokenizer {
    TextTokenizer::train(["Garden > Tools > rake: rake", "Garden > Tools > spade: spade"], 300, &[]).unwrap()
}

fn sources(rewards: RewardSet) -> AlignSources {
    let tokenizer = tokenizer();
    let prompt = |user: &str, truth: Option<Item>| PromptCase {
        user_id: user.into(),
        tokens: tokenizer.encode("what next").unwrap(),
        mode: PromptMode::NoThink,
        truth,
    };
    let prompts = vec![prompt("anna", Some(item("1", "rake"))), prompt("ben", None)];
    let schema = PromptSchema { modes: vec![PromptMode::NoThink], ..PromptSchema::small() };
    let items = vec![item("1", "rake"), item("2", "spade")];
    let texts = vec![vec![answer("rake"), answer("spade")], vec![answer("rake"), "x".into()]];
    let values = vec![vec![1.0, 0.5, 0.0, 0.0]; rewards.names().len()];
    let written = Some(Written { texts, values, group: 2 });
    AlignSources { schema, vocab_size: tokenizer.vocab_size() + 2, tokenizer, items, prompts, rewards, written }
}

fn answer(title: &str) -> String {
    format!("<answer>Garden > Tools > {title}: {title}</answer>")
}

/// Category, which does not apply to who bought nothing known, and format.
fn plain() -> RewardSet {
    let kinds = [RewardKind::Category, RewardKind::Format].map(RewardSettings::of);
    RewardSet::new(&kinds, Sources { items: &[], encoder: None, simulator: None, max_title_chars: 48 }).unwrap()
}

fn settings() -> ServeSettings {
    ServeSettings {
        listen: "127.0.0.1:0".parse().unwrap(),
        keys: Vec::new(),
        max_answers: 4,
        max_waiting: 2,
        max_body_bytes: 2000,
        threads: None,
    }
}

fn post(body: impl Into<Body>) -> Request<Body> {
    Request::post("/v1/rewards").body(body.into()).unwrap()
}

async fn read(response: Response<Body>) -> (StatusCode, Value) {
    let status = response.status();
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, serde_json::from_slice(&bytes).unwrap())
}

#[tokio::test]
async fn answers_are_worth_the_same_as_text_and_as_tokens() {
    let app = router(sources(plain()), &settings()).unwrap();
    let tokens = tokenizer().encode(&answer("spade")).unwrap();
    let answers = json!([
        { "user_id": "anna", "text": answer("rake") },
        { "user_id": "anna", "tokens": tokens },
        { "user_id": "anna", "text": answer("spade") },
        { "user_id": "ben", "text": "no idea" },
    ]);
    let (status, found) = read(app.oneshot(post(json!({ "answers": answers }).to_string())).await.unwrap()).await;
    assert_eq!(status, 200, "{found}");
    assert_eq!(found["names"], json!(["category", "format"]));
    let two_of_three = 2.0 / 3.0;
    assert_eq!(found["rewards"]["category"], json!([1.0, two_of_three, two_of_three, null]));
    assert_eq!(found["rewards"]["format"], json!([1.0, 1.0, 1.0, 0.0]));
    assert_eq!(found["format"], json!([true, true, true, false]));
    assert_eq!(found["items"], json!(["1", "2", "2", null]));
    assert_eq!(found["start"]["format"], json!([0.75, 0.75, 0.75, 0.0]));
}

#[tokio::test]
async fn the_service_says_what_it_is() {
    let app = router(sources(plain()), &settings()).unwrap();
    let get = |path: &str| Request::get(path).body(Body::empty()).unwrap();
    let (status, found) = read(app.clone().oneshot(get("/v1/rewards")).await.unwrap()).await;
    assert_eq!(status, 200);
    let deviation = found["start_deviations"]["category"].as_f64().unwrap();
    assert!((deviation - 0.25).abs() < 1e-12, "{found}");
    assert_eq!((&found["mode"], &found["users"], &found["max_answers"]), (&json!("no_think"), &json!(2), &json!(4)));
    let body = json!({ "answers": [{ "user_id": "anna", "text": answer("rake") }] }).to_string();
    app.clone().oneshot(post(body)).await.unwrap();
    let response = app.clone().oneshot(get("/metrics")).await.unwrap();
    let text = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    let text = String::from_utf8(text.to_vec()).unwrap();
    for line in ["taiji_rewards_requests_total{status=\"200\"} 1", "taiji_rewards_answers_total 1"] {
        assert!(text.contains(line), "{text}");
    }
    assert_eq!(app.oneshot(get("/healthz")).await.unwrap().status(), 200);
}

#[tokio::test]
async fn what_cannot_be_valued_is_refused_with_place_and_remedy() {
    let app = router(sources(plain()), &settings()).unwrap();
    let one = |answer: Value| json!({ "answers": [answer] }).to_string();
    let rake = json!({ "user_id": "anna", "text": answer("rake") });
    let long = format!("{{\"answers\": [], \"pad\": \"{}\"}}", "x".repeat(3000));
    for (body, status, code, words) in [
        (one(json!({ "user_id": "carl", "text": "x" })), 404, "unknown_user", "answers[0]: user carl"),
        (one(json!({ "user_id": "anna" })), 400, "bad_request", "give tokens or text"),
        (one(json!({ "user_id": "anna", "text": "x", "tokens": [1] })), 400, "bad_request", "one of them"),
        (one(json!({ "user_id": "anna", "tokens": [99999] })), 400, "bad_request", "token 99999"),
        (one(json!({ "user_id": "anna", "tokens": [-1] })), 400, "bad_request", "answers[0].tokens[0]"),
        (one(json!({ "user": "anna" })), 400, "bad_request", "user"),
        (json!({ "answers": [] }).to_string(), 400, "bad_request", "answers is empty"),
        (json!({ "answers": vec![rake; 5] }).to_string(), 400, "bad_request", "5 answers, at most 4"),
        (json!({ "answers": [], "mode": "loud" }).to_string(), 400, "bad_request", "mode"),
        ("[1]".into(), 400, "bad_request", "json object"),
        ("<html>".into(), 400, "bad_request", "body"),
        (long, 413, "too_large", "2000 bytes"),
    ] {
        let (found, answer) = read(app.clone().oneshot(post(body.clone())).await.unwrap()).await;
        let error = &answer["error"];
        assert_eq!((found.as_u16(), error["code"].as_str().unwrap()), (status, code), "{body}: {answer}");
        assert!(error["message"].as_str().unwrap().contains(words), "{body}: {answer}");
    }
    let other = Request::put("/v1/rewards").body(Body::empty()).unwrap();
    assert_eq!(app.clone().oneshot(other).await.unwrap().status(), 405);
    let nowhere = Request::get("/v2").body(Body::empty()).unwrap();
    assert_eq!(app.oneshot(nowhere).await.unwrap().status(), 404);
    assert!(router(sources(plain()), &ServeSettings { max_waiting: 0, ..settings() }).is_err());
}

#[tokio::test]
async fn a_key_is_asked_for_where_there_are_keys() {
    let app = router(sources(plain()), &ServeSettings { keys: vec!["secret".into()], ..settings() }).unwrap();
    let body = || json!({ "answers": [{ "user_id": "anna", "text": answer("rake") }] }).to_string();
    assert_eq!(app.clone().oneshot(post(body())).await.unwrap().status(), 401);
    let with_key = |key: &str| {
        Request::post("/v1/rewards").header("authorization", format!("Bearer {key}")).body(Body::from(body())).unwrap()
    };
    assert_eq!(app.clone().oneshot(with_key("wrong")).await.unwrap().status(), 401);
    assert_eq!(app.oneshot(with_key("secret")).await.unwrap().status(), 200);
}

/// A model may draw tokens that its tokenizer does not have: they are nothing, not an error.
#[tokio::test]
async fn a_token_beyond_the_tokenizer_is_no_text() {
    let app = router(sources(plain()), &settings()).unwrap();
    let mut tokens = tokenizer().encode(&answer("rake")).unwrap();
    tokens.push(tokenizer().vocab_size() as u32 + 1);
    let body = json!({ "answers": [{ "user_id": "anna", "tokens": tokens }] }).to_string();
    let (status, found) = read(app.oneshot(post(body)).await.unwrap()).await;
    assert_eq!((status.as_u16(), &found["format"]), (200, &json!([true])), "{found}");
}

/// Tells when it is asked, and answers when it is let; NaN where the answer says so.
struct Held {
    asked: mpsc::Sender<usize>,
    go: mpsc::Receiver<()>,
}

impl Reward for Held {
    fn values(&mut self, answers: &[Answered<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        self.asked.send(answers.len()).unwrap();
        self.go.recv().unwrap();
        Ok(answers.iter().map(|answer| Some(if answer.text == "poison" { f64::NAN } else { 1.0 })).collect())
    }
}

/// While the worker is busy, calls wait, are valued together, and one whose answer cannot be valued harms no other; beyond the queue they
/// are refused.
#[tokio::test]
async fn calls_that_wait_are_valued_together_and_one_harms_no_other() {
    let ((asked, hears), (lets, go)) = (mpsc::channel(), mpsc::channel());
    let free = [f64::NEG_INFINITY, f64::INFINITY];
    let rewards = RewardSet::default().with("held", Box::new(Held { asked, go }), false, free);
    let app = router(sources(rewards), &settings()).unwrap();
    let call = |text: &str| {
        let body = json!({ "answers": [{ "user_id": "anna", "text": text }] }).to_string();
        tokio::spawn(app.clone().oneshot(post(body)))
    };
    let hear = || hears.recv().unwrap();
    let first = call("x");
    tokio::task::yield_now().await;
    assert_eq!(hear(), 1);
    let (good, poisoned) = (call("y"), call("poison"));
    // Tasks of one thread begin in the order in which they were made: both stand in the queue when a third is refused.
    let refused = call("z").await.unwrap().unwrap();
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.headers()["retry-after"], "1");
    // The first round, the joint one, and each of the two alone.
    (0..4).for_each(|_| lets.send(()).unwrap());
    assert_eq!(first.await.unwrap().unwrap().status(), 200);
    assert_eq!(hear(), 2, "what waits is valued together");
    let (status, found) = read(good.await.unwrap().unwrap()).await;
    assert_eq!((status.as_u16(), &found["rewards"]["held"]), (200, &json!([1.0])));
    let (status, found) = read(poisoned.await.unwrap().unwrap()).await;
    assert_eq!(status, 500);
    assert!(found["error"]["message"].as_str().unwrap().contains("reward held of answer 0 is NaN"), "{found}");
}
