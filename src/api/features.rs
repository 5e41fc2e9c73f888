//! `POST /v1/features` (columnar, many users) and `GET /v1/users/{id}/features` (one row).

use super::ApiState;
use super::staleness::{Staleness, freshen};
use super::wire::{self, Encoding};
use crate::event::decode::check_id;
use crate::feature::{self, Group, GroupView, UNREACHABLE, UNREADABLE, absent};
use crate::http::{ApiError, KeyNumber, RequestId, Scope};
use crate::live::{Models, View};
use crate::store::{Each, RecordKind, StoreError, StoreResult, StoredFeatures};
use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Extension, Path, Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::Response;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Groups read when a request names none.
pub(super) const DEFAULT_GROUPS: [Group; 3] = [Group::Intra, Group::Cross, Group::Scid];

/// Says how many users were behind and not refreshed, because the readers' budget did not hold them.
const OVER_BUDGET: HeaderName = HeaderName::from_static("x-refreshes-over-budget");

/// The views of some groups of some users, user by user.
pub(super) struct ReadViews {
    pub users: Vec<String>,
    pub groups: Vec<Group>,
    /// `rows[user][group]`.
    pub rows: Vec<Vec<GroupView>>,
    /// As the store gave them.
    stored: Each<Option<StoredFeatures>>,
}

impl ReadViews {
    pub fn of(
        users: Vec<String>,
        groups: Vec<Group>,
        rows: Vec<Vec<GroupView>>,
        stored: Each<Option<StoredFeatures>>,
    ) -> ReadViews {
        ReadViews { users, groups, rows, stored }
    }

    /// One group of all users.
    pub fn column(&self, place: usize) -> impl ExactSizeIterator<Item = &GroupView> + Clone {
        self.rows.iter().map(move |row| &row[place])
    }

    /// The message of a user's group as the store keeps it.
    pub fn stored(&self, user: usize, group: Group) -> Option<&[u8]> {
        let features = self.stored.get(user)?.as_ref().ok()?.as_ref()?;
        features.group(group).map(|blob| blob.bytes.as_slice())
    }

    /// PRESENT as soon as one group is.
    pub fn status(row: &[GroupView]) -> &'static str {
        if row.iter().any(|view| view.reason.is_none()) { "PRESENT" } else { "MISSING" }
    }
}

/// Reads many users' features in columns.
pub async fn post_features(
    State(state): State<Arc<ApiState>>,
    Extension(request_id): Extension<RequestId>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let (encoding, sent, body) = state.read(&headers, body, &Encoding::ALL).await?;
    let request = wire::decode(sent, &body)?;
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
    let mut answer = wire::columnar(encoding, &view, &views)?;
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
) -> Result<Response, ApiError> {
    let encoding = wire::accepted(&headers, &Encoding::ALL)?;
    let user = path_user(user)?;
    let Query(query) = query.map_err(|error| ApiError::bad_request(format!("query: {}", error.body_text())))?;
    let groups = parse_groups(query.groups.iter().flat_map(|names| names.split(',')))?;
    require_scope(&state, &headers, &groups)?;
    let view = state.live.view();
    let views = read_views(&state, &view, &request_id, vec![user], groups).await?;
    wire::row(encoding, &view, &views)
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
    let views = ReadViews::of(users, groups, rows, stored);
    count_served(state, &views);
    if let Some(served) = &state.served {
        served.offer(request_id.as_str(), view.space(), &views.users, &views.groups, &views.rows, now_ms);
    }
    Ok(views)
}

/// One counter a group and status, however many users.
fn count_served(state: &ApiState, views: &ReadViews) {
    for (place, group) in views.groups.iter().enumerate() {
        let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
        views.column(place).for_each(|view| *counts.entry(view.reason.unwrap_or("present")).or_default() += 1);
        for (status, count) in counts {
            state.metrics.served.with_label_values(&[group.as_str(), status]).inc_by(count);
        }
    }
}

/// Counts groups that the store handed out and nobody can decode.
fn note_unreadable(state: &ApiState, user: &str, groups: &[Group], row: &[GroupView]) {
    for (group, _) in groups.iter().zip(row).filter(|(_, view)| view.reason == Some(UNREADABLE)) {
        let message = format!("its group {} cannot be decoded", group.as_str());
        state.store.unreadable().note(RecordKind::Features, &StoreError::Corrupt { key: user.to_string(), message });
    }
}

/// Provenance of the epochs that made what is served, as far as the view knows them.
pub(super) fn provenance<'a>(view: &'a View, views: &ReadViews) -> impl Iterator<Item = (u64, &'a Models)> + use<'a> {
    let present = views.rows.iter().flatten().filter(|view| view.reason.is_none());
    let epochs: BTreeSet<u64> = present.map(|view| view.meta.epoch).collect();
    epochs.into_iter().filter_map(|epoch| Some((epoch, view.provenance(epoch)?)))
}
