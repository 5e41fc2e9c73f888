//! `FeaturesResponse` (proto/taiji.proto). What the store has of a group goes on the wire as it is; only defaults are encoded.

use crate::api::features::{ReadViews, provenance};
use crate::feature::{FromBlob, Group, GroupView};
use crate::live::{Models, View};
use prost::encoding::{WireType, encode_key, encode_varint};

/// Of `FeaturesResponse`.
const SPACE: u32 = 1;
const USERS: u32 = 2;
const PROVENANCE: u32 = 3;
/// Of `UserFeatures`.
const USER_ID: u32 = 1;
const STATUS: u32 = 2;
const MISSING: u32 = 4;
/// Key and value of a map's entry.
const ENTRY: (u32, u32) = (1, 2);
/// What an answer has of a user and of an epoch beside the messages, about; room for it is made at once.
const OF_USER: usize = 64;
const OF_EPOCH: usize = 384;

/// The answer of all users.
pub(super) fn features<R: FromBlob>(view: &View, views: &ReadViews<R>) -> Vec<u8> {
    let stored = |place| views.groups.iter().filter_map(move |group| views.stored(place, *group));
    let of_user = |place| OF_USER + stored(place).map(<[u8]>::len).sum::<usize>();
    let room: usize = (0..views.users.len()).map(of_user).sum();
    let mut answer = Vec::with_capacity(room + OF_EPOCH);
    put(&mut answer, SPACE, view.space().as_bytes());
    let mut one = Vec::with_capacity(OF_EPOCH);
    for (place, row) in views.rows().enumerate() {
        one.clear();
        user(views, place, row, &mut one);
        put(&mut answer, USERS, &one);
    }
    for (epoch, models) in provenance(view, views) {
        one.clear();
        encode_key(ENTRY.0, WireType::Varint, &mut one);
        encode_varint(epoch, &mut one);
        put(&mut one, ENTRY.1, &made_by(epoch, models));
        put(&mut answer, PROVENANCE, &one);
    }
    answer
}

/// One `Provenance`.
fn made_by(epoch: u64, models: &Models) -> Vec<u8> {
    let mut out = Vec::with_capacity(OF_EPOCH);
    encode_key(1, WireType::Varint, &mut out);
    encode_varint(epoch, &mut out);
    let texts = [&models.llm, &models.encoder, &models.codebook, &models.prompt_schema];
    for (field, text) in (2..).zip(texts) {
        put(&mut out, field, text.as_bytes());
    }
    out
}

/// One `UserFeatures`.
fn user<R: FromBlob>(views: &ReadViews<R>, place: usize, row: &[R], out: &mut Vec<u8>) {
    put(out, USER_ID, views.users[place].as_bytes());
    put(out, STATUS, ReadViews::status(row).as_bytes());
    for (group, view) in views.groups.iter().zip(row) {
        if let Some(reason) = view.reason() {
            let mut entry = Vec::with_capacity(32);
            put(&mut entry, ENTRY.0, group.as_str().as_bytes());
            put(&mut entry, ENTRY.1, reason.as_bytes());
            put(out, MISSING, &entry);
        }
    }
    for (group, view) in views.groups.iter().zip(row) {
        match (views.stored(place, *group), view.reason()) {
            (Some(bytes), None) => put(out, field(*group), bytes),
            (_, reason) => {
                let defaults = GroupView::absent(*group, reason.unwrap_or_default(), views.slots);
                put(out, field(*group), &defaults.group.encode());
            }
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
