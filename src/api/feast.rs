//! `POST /get-online-features`: Feast's request and response shapes, the plain `features` list.

use super::ApiState;
use super::columnar::{feature_names, feature_value};
use super::features::{ReadViews, read_views};
use crate::feature::Group;
use crate::feature::{EXPIRED, GroupView};
use crate::http::{ApiError, RequestId};
use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::HeaderMap;
use chrono::{DateTime, SecondsFormat};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Most features of one call; there are 12 different ones.
const MAX_FEATURES: usize = 64;

/// Feast's feature views and the groups behind them.
const VIEWS: [(&str, Group); 3] =
    [("taiji_intra", Group::Intra), ("taiji_cross", Group::Cross), ("taiji_scid", Group::Scid)];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FeastRequest {
    #[serde(default)]
    features: Option<Vec<String>>,
    /// Not built yet: refused by name.
    #[serde(default)]
    feature_service: Option<Value>,
    entities: BTreeMap<String, Vec<Value>>,
    #[serde(default)]
    full_feature_names: bool,
}

/// One requested feature: `view:name`.
struct Wanted {
    group: Group,
    view: &'static str,
    name: &'static str,
}

/// Answers like Feast's Python server; a missing value is null with a status, never an error.
pub async fn get_online_features(
    State(state): State<Arc<ApiState>>,
    Extension(request_id): Extension<RequestId>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let request: FeastRequest = state.read(&headers, body).await?;
    if request.feature_service.is_some() {
        return Err(ApiError::field("feature_service", "is not built yet; list the features"));
    }
    let names = request.features.ok_or_else(|| ApiError::field("features", "is missing"))?;
    if names.len() > MAX_FEATURES {
        return Err(ApiError::field("features", format!("{} features, at most {MAX_FEATURES}", names.len())));
    }
    let wanted = names.iter().map(|name| parse_feature(name)).collect::<Result<Vec<_>, _>>()?;
    if wanted.is_empty() {
        return Err(ApiError::field("features", "is empty"));
    }
    let users = entity_users(request.entities)?;
    let mut groups: Vec<Group> = wanted.iter().map(|feature| feature.group).collect();
    groups.sort();
    groups.dedup();
    let views = read_views(&state, &state.live.view(), &request_id, users, groups).await?;
    Ok(Json(answer(&wanted, &views, request.full_feature_names)))
}

fn parse_feature(text: &str) -> Result<Wanted, ApiError> {
    let unknown = || ApiError::field("features", format!("unknown feature {text:?}; e.g. taiji_intra:sparse_ids"));
    let (view_name, feature) = text.split_once(':').ok_or_else(unknown)?;
    let (view, group) = VIEWS.into_iter().find(|(view, _)| *view == view_name).ok_or_else(unknown)?;
    let name = feature_names(group).iter().find(|name| **name == feature).ok_or_else(unknown)?;
    Ok(Wanted { group, view, name })
}

fn entity_users(mut entities: BTreeMap<String, Vec<Value>>) -> Result<Vec<String>, ApiError> {
    let users = entities.remove("user_id").ok_or_else(|| ApiError::field("entities", "user_id is missing"))?;
    if let Some(other) = entities.keys().next() {
        return Err(ApiError::field("entities", format!("unknown entity {other:?}; known is user_id")));
    }
    let text = |value: Value| match value {
        Value::String(text) => Ok(text),
        Value::Number(number) => Ok(number.to_string()),
        _ => Err(ApiError::field("entities.user_id", "must hold strings")),
    };
    users.into_iter().map(text).collect()
}

fn answer(wanted: &[Wanted], views: &ReadViews, full_names: bool) -> Value {
    let mut feature_names = vec!["user_id".to_string()];
    let epoch_start = timestamp(0);
    let users = views.users.len();
    let mut results = vec![json!({
        "values": views.users,
        "statuses": vec!["PRESENT"; users],
        "event_timestamps": vec![epoch_start; users],
    })];
    for feature in wanted {
        let name = feature.name;
        feature_names.push(if full_names { format!("{}__{name}", feature.view) } else { name.to_string() });
        let place = views.groups.iter().position(|group| *group == feature.group).unwrap_or(0);
        let column: Vec<&GroupView> = views.rows.iter().filter_map(|row| row.get(place)).collect();
        let cells: Vec<(Value, &str)> = column.iter().map(|view| cell(view, name)).collect();
        results.push(json!({
            "values": cells.iter().map(|(value, _)| value).collect::<Vec<_>>(),
            "statuses": cells.iter().map(|(_, status)| status).collect::<Vec<_>>(),
            "event_timestamps": column.iter().map(|view| timestamp(view.meta.generated_at_ms)).collect::<Vec<_>>(),
        }));
    }
    json!({ "metadata": { "feature_names": feature_names }, "results": results })
}

/// A value and Feast's status of it. `has_llm_feature` is always PRESENT: 0 says there is none.
fn cell(view: &GroupView, name: &str) -> (Value, &'static str) {
    match view.reason {
        _ if name == "has_llm_feature" => (feature_value(&view.group, name), "PRESENT"),
        None => (feature_value(&view.group, name), "PRESENT"),
        Some(EXPIRED) => (Value::Null, "OUTSIDE_MAX_AGE"),
        Some(_) => (Value::Null, "NOT_FOUND"),
    }
}

/// RFC 3339 in UTC, as Feast prints timestamps.
fn timestamp(ms: i64) -> String {
    DateTime::from_timestamp_millis(ms).unwrap_or_default().to_rfc3339_opts(SecondsFormat::Millis, true)
}
