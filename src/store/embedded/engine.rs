//! The fjall database of the embedded store: opening it, its keyspaces, and its errors in our words.
//!
//! In: a folder and options. Out: an [`Engine`] the other files read and write through.
//!
//! Every write is one fjall batch with `PersistMode::Buffer`: the journal record has reached the operating system when
//! the call returns, so a killed process loses nothing that was acknowledged; [`super::flusher`] syncs it to the disk.
//! Readers of more than one key take a snapshot: plain reads may see half of a batch.

use super::keys;
use crate::store::codec::{self, CodecResult};
use crate::store::{StoreError, StoreResult};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode, Readable, Slice, Snapshot};
use std::io::ErrorKind;
use std::path::Path;

/// Layout of keys and records. Raise it with every change that an older version would misread.
const SCHEMA_VERSION: u32 = 1;
/// Journals are replayed at open: fjall's default of 512 MiB took 3 to 8 s on two busy cores, this takes about one.
const JOURNAL_BYTES: u64 = 128 << 20;
const SCHEMA_KEY: &str = "schema_version";

/// Database and keyspaces.
pub struct Engine {
    /// Commits batches, takes snapshots, syncs.
    pub database: Database,
    /// `user` → counters; apart from the rest, because a sweep walks it.
    pub states: Keyspace,
    /// Histories, features and referrers; one range a user ([`keys`]).
    pub users: Keyspace,
    /// `queue | user` → place in that queue.
    pub due: Keyspace,
    /// Vector and item feeds.
    pub feeds: Keyspace,
    /// Item → hashes of the users who engaged with it; and its latest place in the item feed.
    pub items: Keyspace,
    /// `user` → erasure, unfinished or a tombstone.
    pub erased: Keyspace,
    /// Schema version, noted spaces.
    pub meta: Keyspace,
    /// `member | source` → when it was put aside, and what could not be read.
    pub unreadable: Keyspace,
}

impl Engine {
    /// Opens or creates the database in `directory`, under the keyspace names of `namespace`.
    pub fn open(directory: &Path, namespace: &str, cache_bytes: u64) -> StoreResult<Engine> {
        let refuse = |message: String| StoreError::Open { place: directory.display().to_string(), message };
        check_namespace(namespace).map_err(refuse)?;
        std::fs::create_dir_all(directory).map_err(|error| refuse(explain_io(&error)))?;
        let database = Database::builder(directory)
            .cache_size(cache_bytes)
            .max_journaling_size(JOURNAL_BYTES)
            .open()
            .map_err(|error| refuse(explain_open(&error)))?;
        let keyspace = |name: &str| {
            database
                .keyspace(&format!("{namespace}.{name}"), KeyspaceCreateOptions::default)
                .map_err(|error| refuse(explain_open(&error)))
        };
        let meta = keyspace("meta")?;
        check_schema(&database, &meta).map_err(refuse)?;
        Ok(Engine {
            states: keyspace("states")?,
            users: keyspace("users")?,
            due: keyspace("due")?,
            feeds: keyspace("feeds")?,
            items: keyspace("items")?,
            erased: keyspace("erased")?,
            unreadable: keyspace("unreadable")?,
            meta,
            database,
        })
    }

    /// An empty batch.
    pub fn batch(&self) -> OwnedWriteBatch {
        self.database.batch().durability(Some(PersistMode::Buffer))
    }

    /// Commits a batch: all of it survives a kill from now on, or none of it is visible.
    pub fn commit(&self, operation: &'static str, batch: OwnedWriteBatch) -> StoreResult<()> {
        batch.commit().map_err(|error| failed(operation, &error))
    }

    /// A user's counters; `None` for a user never seen.
    pub fn user_record(&self, snapshot: &Snapshot, user: &str) -> StoreResult<Option<codec::UserRecord>> {
        self.read(snapshot, &self.states, &keys::of_state(user), codec::decode_user)
    }

    /// Puts a user's counters into a batch.
    pub fn write_user_record(&self, batch: &mut OwnedWriteBatch, user: &str, record: &codec::UserRecord) {
        batch.insert(&self.states, keys::of_state(user), codec::encode_user(record));
    }

    /// Reads and decodes one value; a value that cannot be decoded is reported with its key.
    pub fn read<T>(
        &self,
        snapshot: &Snapshot,
        keyspace: &Keyspace,
        key: &[u8],
        decode: impl FnOnce(&[u8]) -> CodecResult<T>,
    ) -> StoreResult<Option<T>> {
        let value = self.get(snapshot, keyspace, key)?;
        value.map(|bytes| decode(&bytes).map_err(|message| corrupt(key, message))).transpose()
    }

    /// Reads one value.
    pub fn get(&self, snapshot: &Snapshot, keyspace: &Keyspace, key: &[u8]) -> StoreResult<Option<Slice>> {
        snapshot.get(keyspace, key).map_err(|error| failed("read", &error))
    }

    /// Syncs everything committed to the disk.
    pub fn sync(&self, mode: PersistMode) -> StoreResult<()> {
        self.database.persist(mode).map_err(|error| failed("flush", &error))
    }
}

/// The user in a key of the `states` keyspace.
pub fn user_of_state_key(key: &[u8]) -> StoreResult<&str> {
    keys::parse_user(key).ok_or_else(|| corrupt(key, "not a user's key".into()))
}

/// An engine error in our words.
pub fn failed(operation: &'static str, error: &fjall::Error) -> StoreError {
    let message = match error {
        fjall::Error::Poisoned => {
            let message = "an earlier write failed, so nothing is written until the store is opened again; see the first error in \
                 the log, free disk space if it ran out, then restart";
            return StoreError::Poisoned { operation, message: message.into() };
        }
        fjall::Error::Io(io) => explain_io(io),
        other => other.to_string(),
    };
    StoreError::Engine { operation, message }
}

/// A record that this version cannot read.
pub fn corrupt(key: &[u8], message: String) -> StoreError {
    StoreError::Corrupt { key: keys::loggable(key), message }
}

fn check_namespace(namespace: &str) -> Result<(), String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if (1..=64).contains(&namespace.len()) && namespace.bytes().all(plain) {
        return Ok(());
    }
    Err(format!("namespace {namespace:?} must be 1 to 64 letters, digits, '_' or '-'"))
}

fn check_schema(database: &Database, meta: &Keyspace) -> Result<(), String> {
    let Some(stored) = meta.get(SCHEMA_KEY).map_err(|error| explain_open(&error))? else {
        let mut batch = database.batch();
        batch.insert(meta, SCHEMA_KEY, SCHEMA_VERSION.to_be_bytes());
        batch.commit().map_err(|error| explain_open(&error))?;
        return database.persist(PersistMode::SyncAll).map_err(|error| explain_open(&error));
    };
    let found = stored.first_chunk().filter(|_| stored.len() == 4).map(|bytes| u32::from_be_bytes(*bytes));
    match found {
        Some(SCHEMA_VERSION) => Ok(()),
        Some(newer) if newer > SCHEMA_VERSION => Err(format!(
            "it was written with store schema {newer}, this version reads {SCHEMA_VERSION}; \
             run the newer taiji that wrote it, or name another folder"
        )),
        Some(older) => Err(format!(
            "it was written with store schema {older}, this version reads {SCHEMA_VERSION}; \
             run the taiji that wrote it, or name an empty folder and backfill the events"
        )),
        None => Err("its schema version cannot be read; name an empty folder and backfill the events".into()),
    }
}

fn explain_open(error: &fjall::Error) -> String {
    match error {
        fjall::Error::Locked => {
            "another process has it open; stop that process, or give this one a folder of its own".into()
        }
        fjall::Error::InvalidVersion(_) => {
            "the folder holds a database of another format; name an empty folder, or run the taiji that wrote it".into()
        }
        fjall::Error::Io(io) => explain_io(io),
        fjall::Error::Storage(inner) => {
            format!("{inner:?}; the folder may be damaged: restore it, or name an empty one")
        }
        other => format!("{other}; the folder may be damaged: restore it, or name an empty one"),
    }
}

fn explain_io(error: &std::io::Error) -> String {
    let remedy = match error.kind() {
        ErrorKind::PermissionDenied => "let this user write to the folder, or name another",
        ErrorKind::ReadOnlyFilesystem => "mount it writable, or name another folder",
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists => "a file is in the way: name a folder",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            "free disk space or raise the quota, then restart"
        }
        _ => "check the disk and the folder's permissions",
    };
    format!("{error}; {remedy}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn refusal(directory: &Path, namespace: &str) -> String {
        match Engine::open(directory, namespace, 1 << 20) {
            Err(StoreError::Open { message, .. }) => message,
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("opened"),
        }
    }

    #[test]
    fn a_place_that_cannot_be_used_is_refused_with_a_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert!(refusal(&file, "taiji").contains("name a folder"));
        assert!(refusal(&file.join("below"), "taiji").contains("name a folder"));
        assert!(refusal(folder.path(), "a b").contains("must be 1 to 64"));
        let store = folder.path().join("store");
        let open = Engine::open(&store, "taiji", 1 << 20).unwrap();
        assert!(refusal(&store, "taiji").contains("another process has it open"));
        drop(open);
        assert!(Engine::open(&store, "taiji", 1 << 20).is_ok());
    }

    #[test]
    fn another_schema_is_refused_and_the_way_out_named() {
        let folder = tempfile::tempdir().unwrap();
        for (stored, words) in [
            (99u32.to_be_bytes().to_vec(), "run the newer taiji"),
            (0u32.to_be_bytes().to_vec(), "run the taiji that wrote it"),
            (vec![1], "cannot be read"),
        ] {
            let engine = Engine::open(&folder.path().join(words), "taiji", 1 << 20).unwrap();
            let meta = engine.database.keyspace("taiji.meta", KeyspaceCreateOptions::default).unwrap();
            meta.insert(SCHEMA_KEY, stored).unwrap();
            drop((engine, meta));
            assert!(refusal(&folder.path().join(words), "taiji").contains(words));
        }
    }
}
