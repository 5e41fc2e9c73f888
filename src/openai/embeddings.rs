//! `POST /v1/embeddings`: texts through the bundle's encoder, as numbers or base64 (what OpenAI's clients ask for).
//!
//! Vectors are of norm 1; a text over the encoder's limit loses its tail, as in the service itself.

use super::{Fields, OpenAiError, OpenAiState};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::sync::Arc;

/// The handler.
pub async fn post_embeddings(
    State(state): State<Arc<OpenAiState>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, OpenAiError> {
    let mut fields = state.read(&headers, body).await?;
    let encoder = state.serving()?.encoder;
    let model = state.require_model(&mut fields, encoder.model_id())?;
    let texts = inputs(&mut fields)?;
    let base64 = encoding_is_base64(&mut fields)?;
    fields.refuse("dimensions", &[json!(encoder.dim())])?;
    fields.finish()?;
    state.check_count("input", texts.len())?;

    let (vectors, tokens) = tokio::task::spawn_blocking(move || {
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let tokens: usize = texts.iter().map(|text| encoder.count_tokens(text)).sum();
        encoder.encode(&texts).map(|vectors| (vectors, tokens))
    })
    .await
    .map_err(|error| OpenAiError::Lost(error.to_string()))??;
    let written = |vector: &[f32]| match base64 {
        true => json!(STANDARD.encode(vector.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())),
        false => json!(vector),
    };
    let entry = |(index, vector): (usize, &Vec<f32>)| json!({ "object": "embedding", "index": index, "embedding": written(vector) });
    let data: Vec<Value> = vectors.iter().enumerate().map(entry).collect();
    let usage = json!({ "prompt_tokens": tokens, "total_tokens": tokens });
    Ok(Json(json!({ "object": "list", "data": data, "model": model, "usage": usage })))
}

/// One text or a list of texts.
fn inputs(fields: &mut Fields) -> Result<Vec<String>, OpenAiError> {
    let wrong = || OpenAiError::field("input", "must be a string or a list of strings (token ids are not supported)");
    let texts = match fields.take("input") {
        None => return Err(OpenAiError::field("input", "is missing")),
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(list)) => {
            let text = |value: Value| value.as_str().map(str::to_string);
            list.into_iter().map(text).collect::<Option<Vec<String>>>().ok_or_else(wrong)?
        }
        Some(_) => return Err(wrong()),
    };
    match texts.is_empty() || texts.iter().any(String::is_empty) {
        true => Err(OpenAiError::field("input", "is empty")),
        false => Ok(texts),
    }
}

fn encoding_is_base64(fields: &mut Fields) -> Result<bool, OpenAiError> {
    match fields.text("encoding_format")?.as_deref() {
        None | Some("float") => Ok(false),
        Some("base64") => Ok(true),
        Some(other) => Err(OpenAiError::field("encoding_format", format!("must be float or base64, not {other:?}"))),
    }
}
