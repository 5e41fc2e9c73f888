//! `POST /get-online-features`: Feast's request and response shapes, the plain `features` list.

use super::ApiState;
use super::features::{Read, ReadViews};
use super::wire::{self, Encoding, Sequence};
use crate::feature::{EXPIRED, Feature, FeatureValue, Group, GroupView, HAS_LLM_FEATURE};
use crate::http::{ApiError, RequestId, parse_json};
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::HeaderMap;
use axum::response::Response;
use chrono::{DateTime, SecondsFormat};
use serde::de::IgnoredAny;
use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Most features of one call; there are twelve different ones.
const MAX_FEATURES: usize = 64;

/// Feast's feature views and the groups behind them.
const VIEWS: [(&str, Group); 3] =
    [("taiji_intra", Group::Intra), ("taiji_cross", Group::Cross), ("taiji_scid", Group::Scid)];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FeastRequest {
    #[serde(default)]
    features: Option<Vec<String>>,
    /// Not built yet: refused by name.
    #[serde(default)]
    feature_service: Option<IgnoredAny>,
    entities: BTreeMap<String, Vec<Value>>,
    #[serde(default)]
    full_feature_names: bool,
    /// Feast's client says false; views have no versions here.
    #[serde(default)]
    include_feature_view_version_metadata: bool,
}

/// One requested feature: `view:name`.
struct Wanted {
    view: &'static str,
    feature: &'static Feature,
}

/// Answers like Feast's Python server; a missing value is null with a status, never an error.
pub async fn get_online_features(
    State(state): State<Arc<ApiState>>,
    Extension(request_id): Extension<RequestId>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let (encoding, sent, body) = state.read(&headers, body, &Encoding::OF_SERDE).await?;
    let request: FeastRequest = match sent {
        Encoding::MessagePack => wire::of_message_pack(&body)?,
        _ => parse_json(&body)?,
    };
    if request.feature_service.is_some() {
        return Err(ApiError::field("feature_service", "is not built yet; list the features"));
    }
    if request.include_feature_view_version_metadata {
        return Err(ApiError::field("include_feature_view_version_metadata", "views have no versions; leave it out"));
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
    let mut groups: Vec<Group> = wanted.iter().map(|wanted| wanted.feature.group).collect();
    groups.sort();
    groups.dedup();
    let view = state.live.view();
    let read = Read { state: &state, request_id: &request_id, users, groups };
    let views = read.views(&view).await?;
    wire::serialized(encoding, &Answer::new(&wanted, &views, request.full_feature_names))
}

fn parse_feature(text: &str) -> Result<Wanted, ApiError> {
    let unknown = || ApiError::field("features", format!("unknown feature {text:?}; e.g. taiji_intra:sparse_ids"));
    let (view_name, feature) = text.split_once(':').ok_or_else(unknown)?;
    let (view, group) = VIEWS.into_iter().find(|(view, _)| *view == view_name).ok_or_else(unknown)?;
    let feature = group.features().find(|known| known.name() == feature).ok_or_else(unknown)?;
    Ok(Wanted { view, feature })
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

/// The answer as Feast's Python server writes it.
struct Answer<'a> {
    wanted: &'a [Wanted],
    views: &'a ReadViews,
    full_names: bool,
    /// When each user's group was made: `[group][user]`.
    made: Vec<Vec<String>>,
}

impl<'a> Answer<'a> {
    fn new(wanted: &'a [Wanted], views: &'a ReadViews, full_names: bool) -> Answer<'a> {
        let of = |place: usize| views.column(place).map(|view| timestamp(view.meta().generated_at_ms)).collect();
        Answer { wanted, views, full_names, made: (0..views.groups.len()).map(of).collect() }
    }

    fn names(&self) -> impl Iterator<Item = String> {
        let name = |wanted: &Wanted| match self.full_names {
            true => format!("{}__{}", wanted.view, wanted.feature.name()),
            false => wanted.feature.name().to_string(),
        };
        std::iter::once("user_id".to_string()).chain(self.wanted.iter().map(name))
    }

    fn results(&self) -> impl Iterator<Item = Column<'_>> {
        let of = |wanted: &'a Wanted| {
            let place = self.views.groups.iter().position(|group| *group == wanted.feature.group).unwrap_or(0);
            Column::Feature { views: self.views, place, feature: wanted.feature, made: &self.made[place] }
        };
        std::iter::once(Column::Users(&self.views.users)).chain(self.wanted.iter().map(of))
    }
}

impl Serialize for Answer<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut answer = serializer.serialize_struct("Answer", 2)?;
        answer.serialize_field("metadata", &BTreeMap::from([("feature_names", self.names().collect::<Vec<_>>())]))?;
        answer.serialize_field("results", &Sequence(|| self.results()))?;
        answer.end()
    }
}

/// One entry of `results`.
enum Column<'a> {
    Users(&'a [String]),
    Feature { views: &'a ReadViews, place: usize, feature: &'static Feature, made: &'a [String] },
}

impl Serialize for Column<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut column = serializer.serialize_struct("Column", 3)?;
        match *self {
            Column::Users(users) => {
                column.serialize_field("values", users)?;
                column.serialize_field("statuses", &Sequence(|| users.iter().map(|_| PRESENT)))?;
                column.serialize_field("event_timestamps", &Sequence(|| users.iter().map(|_| NEVER)))?;
            }
            Column::Feature { views, place, feature, made } => {
                let cells = || views.column(place).map(|view| cell(view, feature));
                column.serialize_field("values", &Sequence(|| cells().map(|(value, _)| value)))?;
                column.serialize_field("statuses", &Sequence(|| cells().map(|(_, status)| status)))?;
                column.serialize_field("event_timestamps", made)?;
            }
        }
        column.end()
    }
}

/// Feast's word for a value that is there.
const PRESENT: &str = "PRESENT";
/// The time of what has none.
const NEVER: &str = "1970-01-01T00:00:00.000Z";

/// A value and Feast's status of it. [`HAS_LLM_FEATURE`] is always PRESENT: 0 says there is none.
fn cell<'a>(view: &'a GroupView, feature: &Feature) -> (Option<FeatureValue<'a>>, &'static str) {
    match view.reason {
        None => match feature.value(&view.group) {
            // Feast's client cannot tell the type of an empty list and gives up.
            Some(value) if value.is_empty_list() => (None, "NULL_VALUE"),
            value => (value, PRESENT),
        },
        Some(_) if feature.key == HAS_LLM_FEATURE => (feature.value(&view.group), PRESENT),
        Some(EXPIRED) => (None, "OUTSIDE_MAX_AGE"),
        Some(_) => (None, "NOT_FOUND"),
    }
}

/// RFC 3339 in UTC, as Feast prints timestamps.
fn timestamp(ms: i64) -> String {
    if ms == 0 {
        return NEVER.to_string();
    }
    DateTime::from_timestamp_millis(ms).unwrap_or_default().to_rfc3339_opts(SecondsFormat::Millis, true)
}
