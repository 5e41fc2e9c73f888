//! The answer as an Arrow IPC stream of one record batch: a row a user, a column a feature. Space and provenance stand in the schema's metadata.

use crate::api::features::{ReadViews, provenance};
use crate::feature::{Feature, FeatureType, FeatureValue, GroupView};
use crate::live::View;
use crate::proto::GroupMeta;
use arrow_array::builder::{ArrayBuilder, Float32Builder, Int64Builder, ListBuilder, StringBuilder, UInt32Builder};
use arrow_array::{Array, ArrayRef, Float32Array, Int64Array, RecordBatch, StringArray, UInt8Array, UInt64Array};
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{ArrowError, Field, Schema};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The answer of all users.
pub(super) fn features(view: &View, views: &ReadViews) -> Result<Vec<u8>, ArrowError> {
    let mut columns: Vec<(String, ArrayRef)> = vec![
        ("user_id".into(), Arc::new(StringArray::from_iter_values(&views.users))),
        ("status".into(), Arc::new(StringArray::from_iter_values(views.rows().map(ReadViews::status)))),
    ];
    for (place, group) in views.groups.iter().enumerate() {
        let column = || views.column(place);
        for feature in group.features() {
            columns.push((feature.key.into(), values(feature, column())));
        }
        let status = StringArray::from_iter_values(column().map(GroupView::status));
        columns.push((format!("{}.status", group.as_str()), Arc::new(status)));
        let reasons: StringArray = column().map(|view| view.reason).collect();
        columns.push((format!("{}.reason", group.as_str()), Arc::new(reasons)));
        for (name, values) in of_meta(column().map(GroupView::meta)) {
            columns.push((format!("{}.{name}", group.as_str()), values));
        }
    }
    let known: BTreeMap<String, _> =
        provenance(view, views).map(|(epoch, models)| (epoch.to_string(), models)).collect();
    let provenance = serde_json::to_string(&known).map_err(|error| ArrowError::ExternalError(Box::new(error)))?;
    let metadata = HashMap::from([("space".into(), view.space().to_string()), ("provenance".into(), provenance)]);
    // Only the reason of an absence may be absent itself.
    let field =
        |(name, values): &(String, ArrayRef)| Field::new(name, values.data_type().clone(), name.ends_with(".reason"));
    let schema = Arc::new(Schema::new_with_metadata(columns.iter().map(field).collect::<Vec<_>>(), metadata));
    let batch = RecordBatch::try_new(schema.clone(), columns.into_iter().map(|(_, values)| values).collect())?;
    let mut writer = StreamWriter::try_new(Vec::new(), &schema)?;
    writer.write(&batch)?;
    writer.into_inner()
}

/// A column of one feature.
fn values<'a>(feature: &'static Feature, column: impl Iterator<Item = &'a GroupView>) -> ArrayRef {
    let found = column.filter_map(|view| feature.value(&view.group));
    match feature.kind {
        FeatureType::UInt32List => lists(found, UInt32Builder::new(), |list, value| {
            if let FeatureValue::UInt32s(values) = value {
                list.append_slice(values);
            }
        }),
        FeatureType::Float32List => lists(found, Float32Builder::new(), |list, value| {
            if let FeatureValue::Floats(values) = value {
                list.append_slice(values);
            }
        }),
        FeatureType::Int64List => lists(found, Int64Builder::new(), |list, value| {
            if let FeatureValue::Times(cross) = value {
                crate::feature::cross_times(cross).for_each(|time| list.append_value(time));
            }
        }),
        FeatureType::StringList => lists(found, StringBuilder::new(), |list, value| {
            if let FeatureValue::Strings(values) = value {
                values.iter().for_each(|text| list.append_value(text));
            }
        }),
        FeatureType::Float32 => {
            let float = |value| if let FeatureValue::Float(value) = value { value } else { 0.0 };
            Arc::new(Float32Array::from_iter_values(found.map(float)))
        }
        FeatureType::UInt8 => {
            let byte = |value| if let FeatureValue::UInt8(value) = value { value } else { 0 };
            Arc::new(UInt8Array::from_iter_values(found.map(byte)))
        }
        FeatureType::String => {
            let text = |value| if let FeatureValue::Text(text) = value { text } else { "" };
            Arc::new(StringArray::from_iter_values(found.map(text)))
        }
    }
}

/// A list a user; `push` adds what is in one.
fn lists<'a, B: ArrayBuilder>(
    values: impl Iterator<Item = FeatureValue<'a>>,
    builder: B,
    push: impl Fn(&mut B, FeatureValue<'a>),
) -> ArrayRef {
    let mut lists = ListBuilder::new(builder);
    for value in values {
        push(lists.values(), value);
        lists.append(true);
    }
    Arc::new(lists.finish())
}

fn of_meta<'a>(metas: impl Iterator<Item = &'a GroupMeta> + Clone) -> Vec<(&'static str, ArrayRef)> {
    let counts =
        |pick: fn(&GroupMeta) -> u64| Arc::new(UInt64Array::from_iter_values(metas.clone().map(pick))) as ArrayRef;
    let times =
        |pick: fn(&GroupMeta) -> i64| Arc::new(Int64Array::from_iter_values(metas.clone().map(pick))) as ArrayRef;
    vec![
        ("epoch", counts(|meta| meta.epoch)),
        ("generated_at_ms", times(|meta| meta.generated_at_ms)),
        ("source_ts_ms", times(|meta| meta.source_ts_ms)),
        ("expires_at_ms", times(|meta| meta.expires_at_ms)),
        ("seq", counts(|meta| meta.seq)),
        ("tier", counts(|meta| meta.tier.into())),
    ]
}
