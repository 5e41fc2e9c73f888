//! `FeaturesResponse` (proto/taiji.proto). What the store has of a group goes on the wire as it is; only defaults are encoded.

use crate::api::features::{ReadViews, provenance};
use crate::feature::Group;
use crate::live::View;
use crate::proto::{FeaturesResponse, Provenance};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};

/// `FeaturesResponse.users`.
const USERS: u32 = 2;
/// Of `UserFeatures`.
const USER_ID: u32 = 1;
const STATUS: u32 = 2;
const MISSING: u32 = 4;
/// Key and value of a map's entry.
const ENTRY: (u32, u32) = (1, 2);

/// The answer of all users.
pub(super) fn features(view: &View, views: &ReadViews) -> Vec<u8> {
    let provenance = provenance(view, views).map(|(epoch, models)| {
        let made = Provenance {
            epoch,
            model: models.llm.clone(),
            encoder: models.encoder.clone(),
            codebook: models.codebook.clone(),
            prompt_schema: models.prompt_schema.clone(),
        };
        (epoch, made)
    });
    let head =
        FeaturesResponse { space: view.space().to_string(), users: Vec::new(), provenance: provenance.collect() };
    // Fields of a message may come in any order, and messages one after the other are one.
    let mut answer = head.encode_to_vec();
    let mut one = Vec::new();
    for place in 0..views.users.len() {
        one.clear();
        user(views, place, &mut one);
        put(&mut answer, USERS, &one);
    }
    answer
}

/// One `UserFeatures`.
fn user(views: &ReadViews, place: usize, out: &mut Vec<u8>) {
    let row = &views.rows[place];
    put(out, USER_ID, views.users[place].as_bytes());
    put(out, STATUS, ReadViews::status(row).as_bytes());
    for (group, view) in views.groups.iter().zip(row) {
        if let Some(reason) = view.reason {
            let mut entry = Vec::with_capacity(32);
            put(&mut entry, ENTRY.0, group.as_str().as_bytes());
            put(&mut entry, ENTRY.1, reason.as_bytes());
            put(out, MISSING, &entry);
        }
    }
    for (group, view) in views.groups.iter().zip(row) {
        match views.stored(place, *group) {
            Some(bytes) if view.reason.is_none() => put(out, field(*group), bytes),
            // The defaults.
            _ => put(out, field(*group), &view.group.encode()),
        }
    }
}

/// Field of a group in `UserFeatures`.
fn field(group: Group) -> u32 {
    match group {
        Group::Intra => 10,
        Group::Cross => 11,
        Group::Scid => 12,
        Group::Text => 13,
    }
}

fn put(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    encode_key(field, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}
