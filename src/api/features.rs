//! `POST /v1/features` (columnar, many users) and `GET /v1/users/{id}/features` (one row).

use super::ApiState;
use super::staleness::{Staleness, freshen};
use super::wire::{self, Encoding};
use crate::event::decode::check_id;
use crate::feature::{self, FromBlob, Group, GroupStatus, GroupView, UNREACHABLE, UNREADABLE};
use crate::http::{ApiError, KeyNumber, RequestId, Scope};
use crate::live::{Models, View};
use crate::store::{Each, RecordKind, StoreError, StoredFeatures};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Extension, Path, Query, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::Response;
use serde::Deserialize;
use std::sync::Arc;

/// Groups read when a request names none.
pub(super) const DEFAULT_GROUPS: [Group; 3] = [Group::Intra, Group::Cross, Group::Scid];

/// Says how many users were behind and not refreshed, because the readers' budget did not hold them.
const OVER_BUDGET: HeaderName = HeaderName::from_static("x-refreshes-over-budget");

/// The views of some groups of some users, user by user; as much of each as the answer needs.
pub(super) struct ReadViews<R = GroupView> {
    pub users: Vec<String>,
    pub groups: Vec<Group>,
    /// Length of the default sparse IDs.
    pub slots: usize,
    /// `[user][group]`, one row behind the other.
    views: Vec<R>,
    /// As the store gave them.
    stored: Each<Option<StoredFeatures>>,
}

impl<R: FromBlob> ReadViews<R> {
    /// Of what the store had at that time.
    pub fn of(
        users: Vec<String>,
        groups: Vec<Group>,
        stored: Each<Option<StoredFeatures>>,
        (now_ms, slots): (i64, usize),
    ) -> ReadViews<R> {
        let mut views = Vec::with_capacity(users.len() * groups.len());
        for stored in &stored {
            let one = |group: &Group| match stored {
                Ok(features) => {
                    let blob = features.as_ref().and_then(|features| features.group(*group));
                    feature::view(blob, *group, now_ms, slots)
                }
                Err(error) if error.is_unreadable() => R::absent(*group, UNREADABLE, slots),
                Err(_) => R::absent(*group, UNREACHABLE, slots),
            };
            views.extend(groups.iter().map(one));
        }
        ReadViews { users, groups, slots, views, stored }
    }

    /// All groups of one user after the other. There is always a group.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[R]> + Clone {
        self.views.chunks(self.groups.len().max(1))
    }

    /// One group of all users.
    pub fn column(&self, place: usize) -> impl ExactSizeIterator<Item = &R> + Clone {
        self.rows().map(move |row| &row[place])
    }

    /// The message of a user's group as the store keeps it.
    pub fn stored(&self, user: usize, group: Group) -> Option<&[u8]> {
        let features = self.stored.get(user)?.as_ref().ok()?.as_ref()?;
        features.group(group).map(|blob| &blob.bytes[..])
    }

    /// PRESENT as soon as one group is.
    pub fn status(row: &[R]) -> &'static str {
        if row.iter().any(|view| view.reason().is_none()) { "PRESENT" } else { "MISSING" }
    }

    /// The epochs that made what is present, each once, in their order.
    pub fn epochs(&self) -> Vec<u64> {
        let mut epochs: Vec<u64> = Vec::new();
        for view in self.views.iter().filter(|view| view.reason().is_none()) {
            if let Err(place) = epochs.binary_search(&view.epoch()) {
                epochs.insert(place, view.epoch());
            }
        }
        epochs
    }
}

/// [`read_features`] as a route.
pub async fn post_features(
    State(state): State<Arc<ApiState>>,
    Extension(request_id): Extension<RequestId>,
    request: Request,
) -> Result<Response, ApiError> {
    read_features(&state, &request_id, request).await
}

/// Reads many users' features in columns.
pub(super) async fn read_features(
    state: &ApiState,
    request_id: &RequestId,
    request: Request,
) -> Result<Response, ApiError> {
    // Taken apart and not extracted: that would copy the headers.
    let (Parts { headers, .. }, body) = request.into_parts();
    let (encoding, sent, body) = state.read(&headers, body, &Encoding::ALL).await?;
    let request = wire::decode(sent, &body)?;
    if request.spaces.is_some() {
        return Err(ApiError::field("spaces", "is not built yet; leave it out"));
    }
    let staleness = Staleness::of_request(state, request.max_staleness_ms, request.deadline_ms)?;
    let groups = parse_groups(request.groups.iter().flatten().map(String::as_str))?;
    let key = require_scope(state, &headers, &groups)?;
    let view = state.live.view();
    let mut over = 0;
    if let Some(wanted) = staleness {
        check_users(state, &request.users)?;
        over = freshen(state, &view, key, &request.users, &groups, wanted).await?;
    }
    let read = Read { state, request_id, users: request.users, groups };
    let mut answer = read.answer(&view, encoding).await?;
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
    let read = Read { state: &state, request_id: &request_id, users: vec![user], groups };
    match encoding {
        Encoding::Json | Encoding::MessagePack => wire::row(encoding, &view, &read.views(&view).await?),
        // These have one shape for one user and for many.
        Encoding::Protobuf | Encoding::Arrow => read.answer(&view, encoding).await,
    }
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

/// One read of some users' groups.
pub(super) struct Read<'a> {
    pub state: &'a ApiState,
    pub request_id: &'a RequestId,
    pub users: Vec<String>,
    pub groups: Vec<Group>,
}

impl Read<'_> {
    /// The answer in columns. What nobody looks into is not taken apart: protobuf passes on what is stored.
    async fn answer(self, view: &View, encoding: Encoding) -> Result<Response, ApiError> {
        let state = self.state;
        match encoding {
            Encoding::Protobuf if state.served.is_none() => {
                let views: ReadViews<GroupStatus> = self.read(view).await?;
                count_served(state, &views);
                Ok(wire::protobuf(view, &views))
            }
            _ => wire::columnar(encoding, view, &self.views(view).await?),
        }
    }

    /// What is served, counted and told to the served topic.
    pub async fn views(self, view: &View) -> Result<ReadViews, ApiError> {
        let (state, request_id) = (self.state, self.request_id);
        let views = self.read(view).await?;
        count_served(state, &views);
        if let Some(served) = &state.served {
            served.offer(
                request_id.as_str(),
                view.space(),
                &views.users,
                &views.groups,
                views.rows(),
                state.store.clock_ms(),
            );
        }
        Ok(views)
    }

    /// One store read for all users.
    async fn read<R: FromBlob>(self, view: &View) -> Result<ReadViews<R>, ApiError> {
        let Read { state, users, groups, .. } = self;
        check_users(state, &users)?;
        let started = std::time::Instant::now();
        let stored = state.store.feature_groups_each(view.space(), &users, &groups).await?;
        state.metrics.store_duration.with_label_values(&["features"]).observe(started.elapsed().as_secs_f64());
        let shape = (state.store.clock_ms(), view.bundle().codebook.m());
        let views: ReadViews<R> = ReadViews::of(users, groups, stored, shape);
        for ((user, row), _) in
            views.users.iter().zip(views.rows()).zip(&views.stored).filter(|(_, stored)| stored.is_ok())
        {
            note_unreadable(state, user, &views.groups, row);
        }
        Ok(views)
    }
}

/// One counter a group and status, however many users.
fn count_served<R: FromBlob>(state: &ApiState, views: &ReadViews<R>) {
    for (place, group) in views.groups.iter().enumerate() {
        // There are six statuses.
        let mut counts: Vec<(&str, u64)> = Vec::new();
        for view in views.column(place) {
            let status = view.reason().unwrap_or("present");
            match counts.iter_mut().find(|(known, _)| *known == status) {
                Some((_, count)) => *count += 1,
                None => counts.push((status, 1)),
            }
        }
        for (status, count) in counts {
            state.metrics.served.with_label_values(&[group.as_str(), status]).inc_by(count);
        }
    }
}

/// Counts groups that the store handed out and nobody can decode.
fn note_unreadable<R: FromBlob>(state: &ApiState, user: &str, groups: &[Group], row: &[R]) {
    for (group, _) in groups.iter().zip(row).filter(|(_, view)| view.reason() == Some(UNREADABLE)) {
        let message = format!("its group {} cannot be decoded", group.as_str());
        state.store.unreadable().note(RecordKind::Features, &StoreError::Corrupt { key: user.to_string(), message });
    }
}

/// Provenance of the epochs that made what is served, as far as the view knows them.
pub(super) fn provenance<'a, R: FromBlob>(
    view: &'a View,
    views: &ReadViews<R>,
) -> impl Iterator<Item = (u64, &'a Models)> + use<'a, R> {
    views.epochs().into_iter().filter_map(|epoch| Some((epoch, view.provenance(epoch)?)))
}
