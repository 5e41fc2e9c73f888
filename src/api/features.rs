//! `POST /v1/features` (columnar, many users) and `GET /v1/users/{id}/features` (one row).

use super::ApiState;
use super::columnar::columnar;
use super::staleness::{Staleness, freshen};
use crate::event::decode::check_id;
use crate::feature::{self, DecodedGroup, Group, GroupView, UNREACHABLE, UNREADABLE, absent, cross_behaviours};
use crate::http::{ApiError, KeyNumber, RequestId, Scope, require_json};
use crate::live::View;
use crate::proto::GroupMeta;
use crate::store::{RecordKind, StoreError, StoreResult, StoredFeatures};
use axum::Json;
use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Extension, Path, Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Groups read when a request names none.
pub(super) const DEFAULT_GROUPS: [Group; 3] = [Group::Intra, Group::Cross, Group::Scid];

/// Says how many users were behind and not refreshed, because the readers' budget did not hold them.
const OVER_BUDGET: HeaderName = HeaderName::from_static("x-refreshes-over-budget");

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FeaturesRequest {
    users: Vec<String>,
    #[serde(default)]
    groups: Option<Vec<String>>,
    /// Part of the contract, not built yet: refused by name rather than ignored.
    #[serde(default)]
    spaces: Option<Value>,
    /// See `staleness`.
    #[serde(default)]
    max_staleness_ms: Option<u64>,
    #[serde(default)]
    deadline_ms: Option<u64>,
}

/// The views of some groups of some users, user by user.
pub(super) struct ReadViews {
    pub users: Vec<String>,
    pub groups: Vec<Group>,
    /// `rows[user][group]`.
    pub rows: Vec<Vec<GroupView>>,
}

/// Reads many users' features in columns.
pub async fn post_features(
    State(state): State<Arc<ApiState>>,
    Extension(request_id): Extension<RequestId>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let request: FeaturesRequest = state.read(&headers, body).await?;
    if request.spaces.is_some() {
        return Err(ApiError::field("spaces", "is not built yet; leave it out"));
    }
    let staleness = Staleness::of_request(&state, request.max_staleness_ms, request.deadline_ms)?;
    let groups = parse_groups(request.groups.iter().flatten().map(String::as_str))?;
    let key = require_scope(&state, &headers, &groups)?;
    let view = state.live.view();
    let mut over = 0;
    if let Some(wanted) = staleness {
        check_users(&state, &request.users)?;
        over = freshen(&state, &view, key, &request.users, &groups, wanted).await?;
    }
    let views = read_views(&state, &view, &request_id, request.users, groups).await?;
    let mut answer = Json(columnar(&view, &views)).into_response();
    if over > 0 {
        answer.headers_mut().insert(OVER_BUDGET, HeaderValue::from(over));
    }
    Ok(answer)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RowQuery {
    /// Comma-separated; default intra,cross,scid.
    groups: Option<String>,
}

/// Reads one user's features as a row.
pub async fn get_user_features(
    State(state): State<Arc<ApiState>>,
    user: Result<Path<String>, PathRejection>,
    query: Result<Query<RowQuery>, QueryRejection>,
    Extension(request_id): Extension<RequestId>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    require_json(&headers)?;
    let user = path_user(user)?;
    let Query(query) = query.map_err(|error| ApiError::bad_request(format!("query: {}", error.body_text())))?;
    let groups = parse_groups(query.groups.iter().flat_map(|names| names.split(',')))?;
    require_scope(&state, &headers, &groups)?;
    read_row(&state, &state.live.view(), &request_id, user, groups).await.map(Json)
}

/// One user's row (DESIGN 5.4), as it stands in the store.
pub(super) async fn read_row(
    state: &ApiState,
    view: &View,
    request_id: &RequestId,
    user: String,
    groups: Vec<Group>,
) -> Result<Value, ApiError> {
    let mut views = read_views(state, view, request_id, vec![user], groups).await?;
    let (Some(user), Some(row)) = (views.users.pop(), views.rows.pop()) else {
        return Err(ApiError::bad_request("user: is missing"));
    };
    let present = row.iter().any(|view| view.reason.is_none());
    let groups: Map<String, Value> =
        views.groups.iter().zip(&row).map(|(group, view)| (group.as_str().to_string(), row_json(view))).collect();
    Ok(json!({
        "user_id": user,
        "space": view.space(),
        "status": if present { "PRESENT" } else { "MISSING" },
        "groups": groups,
    }))
}

/// The user a path names.
pub(super) fn path_user(path: Result<Path<String>, PathRejection>) -> Result<String, ApiError> {
    let Path(user) = path.map_err(|error| ApiError::field("user_id", error.body_text()))?;
    check_id("user_id", &user).map_err(|error| ApiError::field("user_id", error.reason))?;
    Ok(user)
}

/// What the LLM wrote is for admins; everything else for readers.
fn require_scope(state: &ApiState, headers: &HeaderMap, groups: &[Group]) -> Result<KeyNumber, ApiError> {
    let scope = if groups.contains(&Group::Text) { Scope::Admin } else { Scope::Read };
    state.keys.require(headers, scope)
}

fn parse_groups<'a>(names: impl Iterator<Item = &'a str>) -> Result<Vec<Group>, ApiError> {
    let mut groups = Vec::new();
    for name in names {
        let unknown =
            || ApiError::field("groups", format!("unknown group {name:?}; known are intra, cross, scid, text"));
        let group = Group::parse(name).ok_or_else(unknown)?;
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    Ok(if groups.is_empty() { DEFAULT_GROUPS.to_vec() } else { groups })
}

/// Refuses a list of users that no read takes.
fn check_users(state: &ApiState, users: &[String]) -> Result<(), ApiError> {
    if users.is_empty() {
        return Err(ApiError::field("users", "is empty"));
    }
    if users.len() > state.limits.max_users {
        let limit = state.limits.max_users;
        return Err(ApiError::field("users", format!("{} users, at most {limit} per call", users.len())));
    }
    for (index, user) in users.iter().enumerate() {
        check_id("user_id", user).map_err(|error| ApiError::field(&format!("users[{index}]"), error.reason))?;
    }
    Ok(())
}

/// One store read for all users; counts what is served, and tells the served topic of it.
pub(super) async fn read_views(
    state: &ApiState,
    view: &View,
    request_id: &RequestId,
    users: Vec<String>,
    groups: Vec<Group>,
) -> Result<ReadViews, ApiError> {
    check_users(state, &users)?;
    let started = std::time::Instant::now();
    let stored = state.store.feature_groups_each(view.space(), &users, &groups).await?;
    state.metrics.store_duration.with_label_values(&["features"]).observe(started.elapsed().as_secs_f64());
    let now_ms = state.store.clock_ms();
    let slots = view.bundle().codebook.m();
    let row = |stored: &StoreResult<Option<StoredFeatures>>| -> Vec<GroupView> {
        let one = |group: &Group| match stored {
            Ok(features) => {
                feature::view(features.as_ref().and_then(|features| features.group(*group)), *group, now_ms, slots)
            }
            Err(error) => absent(*group, if error.is_unreadable() { UNREADABLE } else { UNREACHABLE }, slots),
        };
        groups.iter().map(one).collect()
    };
    let rows: Vec<Vec<GroupView>> = stored.iter().map(row).collect();
    for ((user, row), _) in users.iter().zip(&rows).zip(&stored).filter(|(_, stored)| stored.is_ok()) {
        note_unreadable(state, user, &groups, row);
    }
    for (place, group) in groups.iter().enumerate() {
        for views in &rows {
            let status = views.get(place).and_then(|view| view.reason).unwrap_or("present");
            state.metrics.served.with_label_values(&[group.as_str(), status]).inc();
        }
    }
    let views = ReadViews { users, groups, rows };
    if let Some(served) = &state.served {
        served.offer(request_id.as_str(), view.space(), &views.users, &views.groups, &views.rows, now_ms);
    }
    Ok(views)
}

/// Counts groups that the store handed out and nobody can decode.
fn note_unreadable(state: &ApiState, user: &str, groups: &[Group], row: &[GroupView]) {
    for (group, _) in groups.iter().zip(row).filter(|(_, view)| view.reason == Some(UNREADABLE)) {
        let message = format!("its group {} cannot be decoded", group.as_str());
        state.store.unreadable().note(RecordKind::Features, &StoreError::Corrupt { key: user.to_string(), message });
    }
}

/// Provenance of the epochs that made what is served, as far as the view knows them.
pub(super) fn provenance(view: &View, epochs: &BTreeSet<u64>) -> Map<String, Value> {
    let known = epochs.iter().filter_map(|epoch| Some((epoch, view.provenance(*epoch)?)));
    known.map(|(epoch, models)| (epoch.to_string(), json!(models))).collect()
}

fn row_json(view: &GroupView) -> Value {
    let mut object = match &view.group {
        DecodedGroup::Intra(group) => json!({
            "sparse_ids": group.sparse_ids,
            "category_ids": group.category_ids,
            "has_llm_feature": u8::from(group.has_llm_feature),
        }),
        DecodedGroup::Cross(group) => {
            let behaviours = cross_behaviours(group);
            json!({
                "item_ids": group.item_ids,
                "actions": group.actions,
                "ts_ms": behaviours.iter().map(|behaviour| behaviour.ts_ms).collect::<Vec<_>>(),
                "similarity": group.similarity,
                "gap_to_second": group.gap_to_second,
            })
        }
        DecodedGroup::Scid(group) => json!({
            "user": group.user,
            "next_item_ids": group.next_item_ids,
            "next_scids": group.next_scids,
            "scores": group.scores,
        }),
        DecodedGroup::Text(group) => json!({
            "reasoning": group.reasoning,
            "answer": group.answer,
            "grounded_item_id": group.grounded_item_id,
            "neighbour_user_id": group.neighbour_user_id,
        }),
    };
    object["status"] = json!(view.status());
    object["reason"] = json!(view.reason);
    object["meta"] = meta_json(&view.meta);
    object
}

fn meta_json(meta: &GroupMeta) -> Value {
    json!({
        "epoch": meta.epoch,
        "space": meta.space,
        "catalogue_generation": meta.catalogue_generation,
        "index_generation": meta.index_generation,
        "generated_at_ms": meta.generated_at_ms,
        "source_ts_ms": meta.source_ts_ms,
        "expires_at_ms": meta.expires_at_ms,
        "seq": meta.seq,
        "turn": meta.turn,
        "tier": meta.tier,
        "flags": flag_names(meta.flags),
        "fallback_reason": meta.fallback_reason,
    })
}

fn flag_names(bits: u32) -> Vec<&'static str> {
    use crate::feature::flags::{FALLBACK, FORMAT_OK, GROUNDED, SAFETY_OK, TRUNCATED};
    let names = [
        (FORMAT_OK, "format_ok"),
        (GROUNDED, "grounded"),
        (TRUNCATED, "truncated"),
        (SAFETY_OK, "safety_ok"),
        (FALLBACK, "fallback"),
    ];
    names.into_iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| name).collect()
}
