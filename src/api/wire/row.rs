//! One user's row (DESIGN 5.4): every group with its features and all that is known of where it comes from.

use super::Mapping;
use crate::api::features::ReadViews;
use crate::feature::GroupView;
use crate::feature::flags::{FALLBACK, FORMAT_OK, GROUNDED, SAFETY_OK, TRUNCATED};
use crate::proto::GroupMeta;
use serde::ser::{SerializeMap, SerializeStruct};
use serde::{Serialize, Serializer};

/// The first user of a read.
pub(in crate::api) struct Row<'a> {
    pub space: &'a str,
    pub views: &'a ReadViews,
}

impl Serialize for Row<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let views = self.views;
        let row: &[GroupView] = views.rows().next().unwrap_or_default();
        let groups = || views.groups.iter().zip(row).map(|(group, view)| (group.as_str(), RowGroup(view)));
        let mut answer = serializer.serialize_struct("Row", 4)?;
        answer.serialize_field("user_id", views.users.first().map_or("", String::as_str))?;
        answer.serialize_field("space", self.space)?;
        answer.serialize_field("status", ReadViews::status(row))?;
        answer.serialize_field("groups", &Mapping(groups))?;
        answer.end()
    }
}

struct RowGroup<'a>(&'a GroupView);

impl Serialize for RowGroup<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let RowGroup(view) = self;
        let features = view.group.group().features();
        let mut group = serializer.serialize_map(Some(features.clone().count() + 3))?;
        for feature in features {
            group.serialize_entry(feature.name(), &feature.value(&view.group))?;
        }
        group.serialize_entry("status", view.status())?;
        group.serialize_entry("reason", &view.reason)?;
        group.serialize_entry("meta", &Meta(view.meta()))?;
        group.end()
    }
}

struct Meta<'a>(&'a GroupMeta);

impl Serialize for Meta<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Meta(meta) = self;
        let mut out = serializer.serialize_struct("Meta", 12)?;
        out.serialize_field("epoch", &meta.epoch)?;
        out.serialize_field("space", &meta.space)?;
        out.serialize_field("catalogue_generation", &meta.catalogue_generation)?;
        out.serialize_field("index_generation", &meta.index_generation)?;
        out.serialize_field("generated_at_ms", &meta.generated_at_ms)?;
        out.serialize_field("source_ts_ms", &meta.source_ts_ms)?;
        out.serialize_field("expires_at_ms", &meta.expires_at_ms)?;
        out.serialize_field("seq", &meta.seq)?;
        out.serialize_field("turn", &meta.turn)?;
        out.serialize_field("tier", &meta.tier)?;
        out.serialize_field("flags", &flag_names(meta.flags))?;
        out.serialize_field("fallback_reason", &meta.fallback_reason)?;
        out.end()
    }
}

fn flag_names(bits: u32) -> Vec<&'static str> {
    let names = [
        (FORMAT_OK, "format_ok"),
        (GROUNDED, "grounded"),
        (TRUNCATED, "truncated"),
        (SAFETY_OK, "safety_ok"),
        (FALLBACK, "fallback"),
    ];
    names.into_iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| name).collect()
}
