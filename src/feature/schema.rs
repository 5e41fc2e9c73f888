//! The table of features: everything that a reader can ask for, in wire order.
//!
//! Columns, rows, Feast's views, the Arrow schema, `clients/feast/` and the README's table are made of it, or compared with it by a test.

use super::{DecodedGroup, Group, cross_times};
use crate::proto::CrossGroup;
use serde::{Serialize, Serializer};

/// What a feature's values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum FeatureType {
    UInt32List,
    Int64List,
    Float32List,
    StringList,
    Float32,
    UInt8,
    String,
}

/// What stands for a feature of a user who has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultValue {
    /// As many zeros as the bundle's codebook has slots.
    ZeroEachSlot,
    /// A list or text without content.
    Empty,
    /// 0.
    Zero,
}

/// One feature.
#[derive(Debug)]
pub struct Feature {
    /// Where it is kept.
    pub group: Group,
    /// `group.name`.
    pub key: &'static str,
    /// Of its values.
    pub kind: FeatureType,
    /// Without one.
    pub default: DefaultValue,
    /// Out of a group; `None` of another group than its own.
    value: fn(&DecodedGroup) -> Option<FeatureValue<'_>>,
}

/// A value, borrowed from a group.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs)]
pub enum FeatureValue<'a> {
    UInt32s(&'a [u32]),
    Floats(&'a [f32]),
    Strings(&'a [String]),
    /// Times of a sequence, absolute, unix ms.
    Times(&'a CrossGroup),
    Float(f32),
    UInt8(u8),
    Text(&'a str),
}

macro_rules! of {
    ($variant:ident, $group:ident => $value:expr) => {
        |group| match group {
            DecodedGroup::$variant($group) => Some($value),
            _ => None,
        }
    };
}

const fn feature(
    group: Group,
    key: &'static str,
    kind: FeatureType,
    default: DefaultValue,
    value: fn(&DecodedGroup) -> Option<FeatureValue<'_>>,
) -> Feature {
    Feature { group, key, kind, default, value }
}

use DefaultValue::{Empty, Zero, ZeroEachSlot};
use FeatureType::{Float32, Float32List, Int64List, String as Text, StringList, UInt8, UInt32List};
use FeatureValue as V;

/// All features in wire order.
static FEATURES: [Feature; 16] = [
    feature(Group::Intra, "intra.sparse_ids", UInt32List, ZeroEachSlot, of!(Intra, g => V::UInt32s(&g.sparse_ids))),
    feature(Group::Intra, "intra.category_ids", StringList, Empty, of!(Intra, g => V::Strings(&g.category_ids))),
    feature(Group::Intra, HAS_LLM_FEATURE, UInt8, Zero, of!(Intra, g => V::UInt8(u8::from(g.has_llm_feature)))),
    feature(Group::Cross, "cross.item_ids", StringList, Empty, of!(Cross, g => V::Strings(&g.item_ids))),
    feature(Group::Cross, "cross.actions", StringList, Empty, of!(Cross, g => V::Strings(&g.actions))),
    feature(Group::Cross, "cross.ts_ms", Int64List, Empty, of!(Cross, g => V::Times(g))),
    feature(Group::Cross, "cross.similarity", Float32, Zero, of!(Cross, g => V::Float(g.similarity))),
    feature(Group::Cross, "cross.gap_to_second", Float32, Zero, of!(Cross, g => V::Float(g.gap_to_second))),
    feature(Group::Scid, "scid.user", UInt32List, Empty, of!(Scid, g => V::UInt32s(&g.user))),
    feature(Group::Scid, "scid.next_item_ids", StringList, Empty, of!(Scid, g => V::Strings(&g.next_item_ids))),
    feature(Group::Scid, "scid.next_scids", UInt32List, Empty, of!(Scid, g => V::UInt32s(&g.next_scids))),
    feature(Group::Scid, "scid.scores", Float32List, Empty, of!(Scid, g => V::Floats(&g.scores))),
    feature(Group::Text, "text.reasoning", Text, Empty, of!(Text, g => V::Text(&g.reasoning))),
    feature(Group::Text, "text.answer", Text, Empty, of!(Text, g => V::Text(&g.answer))),
    feature(Group::Text, "text.grounded_item_id", Text, Empty, of!(Text, g => V::Text(&g.grounded_item_id))),
    feature(Group::Text, "text.neighbour_user_id", Text, Empty, of!(Text, g => V::Text(&g.neighbour_user_id))),
];

/// The one feature that is never absent: 0 says that there is none.
pub const HAS_LLM_FEATURE: &str = "intra.has_llm_feature";

impl Group {
    /// Its features, in wire order.
    pub fn features(self) -> impl Iterator<Item = &'static Feature> + Clone {
        FEATURES.iter().filter(move |feature| feature.group == self)
    }
}

impl Feature {
    /// Its name in its group.
    pub fn name(&self) -> &'static str {
        self.key.split_once('.').map_or(self.key, |(_, name)| name)
    }

    /// Its value in a group of its kind.
    pub fn value<'a>(&self, group: &'a DecodedGroup) -> Option<FeatureValue<'a>> {
        (self.value)(group)
    }
}

impl FeatureValue<'_> {
    /// A list with nothing in it.
    pub fn is_empty_list(&self) -> bool {
        match self {
            FeatureValue::UInt32s(values) => values.is_empty(),
            FeatureValue::Floats(values) => values.is_empty(),
            FeatureValue::Strings(values) => values.is_empty(),
            FeatureValue::Times(cross) => cross_times(cross).next().is_none(),
            FeatureValue::Float(_) | FeatureValue::UInt8(_) | FeatureValue::Text(_) => false,
        }
    }
}

impl Serialize for FeatureValue<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match *self {
            FeatureValue::UInt32s(values) => values.serialize(serializer),
            FeatureValue::Floats(values) => values.serialize(serializer),
            FeatureValue::Strings(values) => values.serialize(serializer),
            FeatureValue::Times(cross) => serializer.collect_seq(cross_times(cross)),
            FeatureValue::Float(value) => serializer.serialize_f32(value),
            FeatureValue::UInt8(value) => serializer.serialize_u8(value),
            FeatureValue::Text(text) => serializer.serialize_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feature::{NO_FEATURES, absent};

    #[test]
    fn what_stands_for_an_absent_group_is_what_the_table_says() {
        for group in Group::ALL {
            let view = absent(group, NO_FEATURES, 3);
            for feature in group.features() {
                let value = feature.value(&view.group).unwrap();
                let expected = match (feature.default, value) {
                    (DefaultValue::ZeroEachSlot, _) => FeatureValue::UInt32s(&[0, 0, 0]),
                    (DefaultValue::Empty, FeatureValue::UInt32s(_)) => FeatureValue::UInt32s(&[]),
                    (DefaultValue::Empty, FeatureValue::Floats(_)) => FeatureValue::Floats(&[]),
                    (DefaultValue::Empty, FeatureValue::Strings(_)) => FeatureValue::Strings(&[]),
                    (DefaultValue::Empty, FeatureValue::Text(_)) => FeatureValue::Text(""),
                    (DefaultValue::Empty, FeatureValue::Times(cross)) => {
                        assert_eq!(cross_times(cross).count(), 0);
                        continue;
                    }
                    (DefaultValue::Zero, FeatureValue::Float(_)) => FeatureValue::Float(0.0),
                    (DefaultValue::Zero, FeatureValue::UInt8(_)) => FeatureValue::UInt8(0),
                    (default, found) => panic!("{}: {default:?} is no default of {found:?}", feature.key),
                };
                assert_eq!(value, expected, "{}", feature.key);
            }
        }
    }

    fn page(path: &str) -> String {
        std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
    }

    #[test]
    fn the_readme_names_every_feature_in_order_and_no_other() {
        let readme = page("README.md");
        for group in Group::ALL {
            let row = format!("| `{}` | ", group.as_str());
            let line = readme.lines().find(|line| line.starts_with(&row)).unwrap_or_else(|| panic!("no row {row:?}"));
            let cell = line[row.len()..].split(" | ").next().unwrap();
            let quoted = cell.split('`').skip(1).step_by(2);
            let named: Vec<&str> =
                quoted.filter(|word| group.features().any(|feature| feature.name() == *word)).collect();
            assert_eq!(named, group.features().map(Feature::name).collect::<Vec<_>>(), "{line}");
        }
    }

    /// Feast has neither 32 bits without a sign nor bytes.
    fn feast_type(kind: FeatureType) -> &'static str {
        match kind {
            UInt32List | Int64List => "Array(Int64)",
            Float32List => "Array(Float32)",
            StringList => "Array(String)",
            Float32 => "Float32",
            UInt8 => "Int64",
            Text => "String",
        }
    }

    #[test]
    fn feasts_views_are_the_tables_groups() {
        let shipped = page("clients/feast/taiji_features.py");
        let fields: Vec<&str> = shipped.lines().map(str::trim).filter(|line| line.starts_with("Field(")).collect();
        // What the LLM wrote is for admins, and no view of Feast's.
        let groups = [Group::Intra, Group::Cross, Group::Scid];
        let of = |feature: &Feature| format!("Field(name=\"{}\", dtype={}),", feature.name(), feast_type(feature.kind));
        let expected: Vec<String> = groups.iter().flat_map(|group| group.features()).map(of).collect();
        assert_eq!(fields, expected);
        for group in groups {
            assert!(shipped.contains(&format!("    \"taiji_{}\",", group.as_str())));
        }
    }

    #[test]
    fn every_feature_is_of_its_group_and_kind_and_stands_once() {
        let mut keys = std::collections::BTreeSet::new();
        for feature in &FEATURES {
            assert_eq!(feature.key, format!("{}.{}", feature.group.as_str(), feature.name()));
            assert!(keys.insert(feature.key));
            for group in Group::ALL {
                let view = absent(group, NO_FEATURES, 1);
                let kind = feature.value(&view.group).map(|value| match value {
                    FeatureValue::UInt32s(_) => UInt32List,
                    FeatureValue::Floats(_) => Float32List,
                    FeatureValue::Strings(_) => StringList,
                    FeatureValue::Times(_) => Int64List,
                    FeatureValue::Float(_) => Float32,
                    FeatureValue::UInt8(_) => UInt8,
                    FeatureValue::Text(_) => Text,
                });
                assert_eq!(kind, (group == feature.group).then_some(feature.kind), "{} of {group:?}", feature.key);
            }
        }
    }
}
