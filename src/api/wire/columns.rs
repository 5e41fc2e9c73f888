//! The columnar answer of `POST /v1/features` (DESIGN 5.4): a ranker reads a column for all its users at once.

use super::{Mapping, Sequence};
use crate::api::features::{ReadViews, provenance};
use crate::feature::GroupView;
use crate::live::{Models, View};
use crate::proto::GroupMeta;
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

/// Every column has one value a user, defaults where a group is absent.
pub(in crate::api) struct Columns<'a> {
    space: &'a str,
    /// By epoch, as text: a map's keys are of one kind in JSON and MessagePack.
    provenance: Vec<(String, &'a Models)>,
    views: &'a ReadViews,
}

impl<'a> Columns<'a> {
    pub fn new(view: &'a View, views: &'a ReadViews) -> Columns<'a> {
        let provenance = provenance(view, views).map(|(epoch, models)| (epoch.to_string(), models)).collect();
        Columns { space: view.space(), provenance, views }
    }
}

impl Serialize for Columns<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let views = self.views;
        let mut answer = serializer.serialize_struct("Columns", 6)?;
        answer.serialize_field("users", &views.users)?;
        answer.serialize_field("space", self.space)?;
        answer.serialize_field("status", &Sequence(|| views.rows().map(ReadViews::status)))?;
        let group = |place: usize| GroupColumns { views, place };
        let groups = || views.groups.iter().enumerate().map(|(place, name)| (name.as_str(), group(place)));
        answer.serialize_field("groups", &Mapping(groups))?;
        let features = || {
            views.groups.iter().enumerate().flat_map(|(place, group)| {
                group.features().map(move |feature| {
                    (feature.key, Sequence(move || views.column(place).map(|view| feature.value(&view.group))))
                })
            })
        };
        answer.serialize_field("features", &Mapping(features))?;
        answer.serialize_field(
            "provenance",
            &Mapping(|| self.provenance.iter().map(|(epoch, models)| (epoch, models))),
        )?;
        answer.end()
    }
}

/// Where the values of one group come from.
struct GroupColumns<'a> {
    views: &'a ReadViews,
    place: usize,
}

impl Serialize for GroupColumns<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let column = || self.views.column(self.place);
        let mut group = serializer.serialize_struct("Group", 8)?;
        group.serialize_field("status", &Sequence(|| column().map(GroupView::status)))?;
        group.serialize_field("reason", &Sequence(|| column().map(|view| view.reason)))?;
        group.serialize_field("epoch", &self.meta(|meta| meta.epoch))?;
        group.serialize_field("generated_at_ms", &self.meta(|meta| meta.generated_at_ms))?;
        group.serialize_field("source_ts_ms", &self.meta(|meta| meta.source_ts_ms))?;
        group.serialize_field("expires_at_ms", &self.meta(|meta| meta.expires_at_ms))?;
        group.serialize_field("seq", &self.meta(|meta| meta.seq))?;
        group.serialize_field("tier", &self.meta(|meta| meta.tier))?;
        group.end()
    }
}

impl GroupColumns<'_> {
    fn meta<T: Serialize>(&self, pick: fn(&GroupMeta) -> T) -> impl Serialize {
        Sequence(move || self.views.column(self.place).map(move |view| pick(view.meta())))
    }
}
