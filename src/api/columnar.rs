//! The columnar answer of `POST /v1/features` (DESIGN 5.4): a ranker reads a column for all its users at once.

use super::features::{ReadViews, provenance};
use crate::feature::{DecodedGroup, Group, GroupView, cross_behaviours};
use crate::live::View;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// Builds the answer; every column has one value a user, defaults where a group is absent.
pub(super) fn columnar(view: &View, views: &ReadViews) -> Value {
    let mut groups = Map::new();
    let mut features = Map::new();
    let mut epochs = BTreeSet::new();
    for (place, group) in views.groups.iter().enumerate() {
        let column: Vec<&GroupView> = views.rows.iter().filter_map(|row| row.get(place)).collect();
        epochs.extend(column.iter().filter(|view| view.reason.is_none()).map(|view| view.meta.epoch));
        groups.insert(group.as_str().to_string(), group_columns(&column));
        for name in feature_names(*group) {
            let values = column.iter().map(|view| feature_value(&view.group, name)).collect();
            features.insert(format!("{}.{name}", group.as_str()), Value::Array(values));
        }
    }
    let status: Vec<&str> = views
        .rows
        .iter()
        .map(|row| if row.iter().any(|view| view.reason.is_none()) { "PRESENT" } else { "MISSING" })
        .collect();
    json!({
        "users": views.users,
        "space": view.space(),
        "status": status,
        "groups": groups,
        "features": features,
        "provenance": provenance(view, &epochs),
    })
}

fn group_columns(column: &[&GroupView]) -> Value {
    let collect = |pick: &dyn Fn(&GroupView) -> Value| column.iter().map(|view| pick(view)).collect::<Vec<_>>();
    json!({
        "status": collect(&|view| json!(view.status())),
        "reason": collect(&|view| json!(view.reason)),
        "epoch": collect(&|view| json!(view.meta.epoch)),
        "generated_at_ms": collect(&|view| json!(view.meta.generated_at_ms)),
        "source_ts_ms": collect(&|view| json!(view.meta.source_ts_ms)),
        "expires_at_ms": collect(&|view| json!(view.meta.expires_at_ms)),
        "seq": collect(&|view| json!(view.meta.seq)),
        "tier": collect(&|view| json!(view.meta.tier)),
    })
}

/// The features of a group, in wire order; also the names of the Feast views.
pub(super) fn feature_names(group: Group) -> &'static [&'static str] {
    match group {
        Group::Intra => &["sparse_ids", "category_ids", "has_llm_feature"],
        Group::Cross => &["item_ids", "actions", "ts_ms", "similarity", "gap_to_second"],
        Group::Scid => &["user", "next_item_ids", "next_scids", "scores"],
        Group::Text => &["reasoning", "answer", "grounded_item_id", "neighbour_user_id"],
    }
}

/// One feature's value as JSON; times are absolute unix ms.
pub(super) fn feature_value(group: &DecodedGroup, name: &str) -> Value {
    match (group, name) {
        (DecodedGroup::Intra(intra), "sparse_ids") => json!(intra.sparse_ids),
        (DecodedGroup::Intra(intra), "category_ids") => json!(intra.category_ids),
        (DecodedGroup::Intra(intra), "has_llm_feature") => json!(u8::from(intra.has_llm_feature)),
        (DecodedGroup::Cross(cross), "item_ids") => json!(cross.item_ids),
        (DecodedGroup::Cross(cross), "actions") => json!(cross.actions),
        (DecodedGroup::Cross(cross), "ts_ms") => {
            cross_behaviours(cross).iter().map(|behaviour| behaviour.ts_ms).collect()
        }
        (DecodedGroup::Cross(cross), "similarity") => json!(cross.similarity),
        (DecodedGroup::Cross(cross), "gap_to_second") => json!(cross.gap_to_second),
        (DecodedGroup::Scid(scid), "user") => json!(scid.user),
        (DecodedGroup::Scid(scid), "next_item_ids") => json!(scid.next_item_ids),
        (DecodedGroup::Scid(scid), "next_scids") => json!(scid.next_scids),
        (DecodedGroup::Scid(scid), "scores") => json!(scid.scores),
        (DecodedGroup::Text(text), "reasoning") => json!(text.reasoning),
        (DecodedGroup::Text(text), "answer") => json!(text.answer),
        (DecodedGroup::Text(text), "grounded_item_id") => json!(text.grounded_item_id),
        (DecodedGroup::Text(text), "neighbour_user_id") => json!(text.neighbour_user_id),
        _ => Value::Null,
    }
}
