//! The latest engagements of the users in a generation's main part (`users.parquet`).
//!
//! A bundle must stand on its own on a cold store: a neighbour found in the main part may have no history in this
//! store yet. The store always wins over the snapshot.

use super::RetrieveError;
use crate::columns::{Column, ColumnData, read_columns, write_columns};
use crate::proto::{Behaviour, CrossGroup};
use prost::Message;
use std::collections::HashMap;
use std::path::Path;

/// One user of the main part.
#[derive(Debug, Clone, PartialEq)]
pub struct SnapshotUser {
    /// Who; the row number is the index row.
    pub user: String,
    /// Newest first: item, action, ts.
    pub engagements: Vec<Behaviour>,
}

/// Histories by user, as compact as they are on disk; decoded when asked for.
#[derive(Debug, Default)]
pub struct UserSnapshot {
    blobs: HashMap<String, Vec<u8>>,
}

impl UserSnapshot {
    /// Writes `users.parquet`: `user_id`, `engagements` (an encoded `CrossGroup` with items, actions, times).
    pub fn write(path: &Path, users: &[SnapshotUser]) -> Result<(), RetrieveError> {
        let names = users.iter().map(|user| Some(user.user.clone().into_bytes())).collect();
        let blobs = users.iter().map(|user| Some(pack(&user.engagements))).collect();
        let columns = [
            Column::utf8("user_id", ColumnData::Bytes(names)),
            Column::binary("engagements", ColumnData::Bytes(blobs)),
        ];
        write_columns(path, &columns).map_err(|message| load_error(path, message))
    }

    /// Reads `users.parquet`: the users in row order, and their histories.
    pub fn read(path: &Path) -> Result<(Vec<String>, UserSnapshot), RetrieveError> {
        let mut columns =
            read_columns(path, &["user_id", "engagements"]).map_err(|message| load_error(path, message))?;
        let (Some(ColumnData::Bytes(blobs)), Some(ColumnData::Bytes(names))) = (columns.pop(), columns.pop()) else {
            return Err(load_error(path, "columns are not binary".into()));
        };
        let mut users = Vec::with_capacity(names.len());
        let mut snapshot = UserSnapshot::default();
        for (name, blob) in names.into_iter().zip(blobs) {
            let name = name.ok_or_else(|| load_error(path, "a user_id is null".into()))?;
            let user = String::from_utf8(name).map_err(|error| load_error(path, error.to_string()))?;
            snapshot.blobs.insert(user.clone(), blob.unwrap_or_default());
            users.push(user);
        }
        Ok((users, snapshot))
    }

    /// The user's engagements, newest first; `None` for a user not in the main part.
    pub fn engagements(&self, user: &str) -> Option<Vec<Behaviour>> {
        let cross = CrossGroup::decode(self.blobs.get(user)?.as_slice()).ok()?;
        Some(crate::feature::cross_behaviours(&cross))
    }
}

fn pack(engagements: &[Behaviour]) -> Vec<u8> {
    crate::feature::cross_sequence(engagements).encode_to_vec()
}

fn load_error(path: &Path, message: String) -> RetrieveError {
    RetrieveError::Load { path: path.display().to_string(), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_comes_back_as_written() {
        let behaviour = |ts_ms, item: &str| Behaviour {
            ts_ms,
            item_id: item.into(),
            action: "click".into(),
            ..Behaviour::default()
        };
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("users.parquet");
        let user = SnapshotUser { user: "u1".into(), engagements: vec![behaviour(30, "b"), behaviour(10, "a")] };
        let empty = SnapshotUser { user: "u2".into(), engagements: Vec::new() };
        UserSnapshot::write(&path, &[user.clone(), empty]).expect("write");
        let (users, snapshot) = UserSnapshot::read(&path).expect("read");
        assert_eq!(users, ["u1", "u2"]);
        assert_eq!(snapshot.engagements("u1"), Some(user.engagements));
        assert_eq!(snapshot.engagements("u3"), None);
    }
}
