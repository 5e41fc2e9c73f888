//! A later build, played by this one: for tests of upgrades only.
//!
//! In: the environment variable `TAIJI_REHEARSAL`, any text, no setting and not documented for users. Out: what makes this
//! program another build than the same one without it: the text salts the hash in the names of the functions, and
//! every stored form gets a field that nobody knows. Callers: the stores.

use prost::encoding::string;
use serde::Serialize;
use std::sync::LazyLock;

/// Name of the field that a rehearsal adds to stored forms.
pub const FIELD: &str = "rehearsal";

static REHEARSAL: LazyLock<Option<String>> =
    LazyLock::new(|| std::env::var("TAIJI_REHEARSAL").ok().filter(|text| !text.is_empty()));

/// The text of the variable; `None` in every real process.
pub fn build() -> Option<&'static str> {
    REHEARSAL.as_deref()
}

/// A field of protobuf that no message of ours has.
const MESSAGE_FIELD: u32 = 2000;

/// Adds to a record of [`super::codec`]: readers pass over what follows the last field they know.
pub fn extend_record(mut record: Vec<u8>) -> Vec<u8> {
    if let Some(build) = build() {
        record.extend_from_slice(build.as_bytes());
    }
    record
}

/// Adds a field to a protobuf message.
pub fn extend_message(message: &mut Vec<u8>) {
    if let Some(build) = build() {
        string::encode(MESSAGE_FIELD, &build.to_string(), message);
    }
}

/// The JSON of something stored as an object, with the field.
pub fn json<T: Serialize>(stored: &T) -> serde_json::Result<Vec<u8>> {
    let Some(build) = build() else { return serde_json::to_vec(stored) };
    let mut value = serde_json::to_value(stored)?;
    if let Some(fields) = value.as_object_mut() {
        fields.insert(FIELD.to_string(), build.into());
    }
    serde_json::to_vec(&value)
}
