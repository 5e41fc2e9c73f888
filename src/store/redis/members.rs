//! Live processes: one hash a process, `ns:member:<id>`, which expires unless it is renewed.
//!
//! In: what a process says of itself. Out: the entry; and all live entries, of every namespace, for `taiji migrate clean`.
//! 0.1.0 writes no entry.

use super::RedisStore;
use super::call::Call;
use super::functions::{self, function};
use super::link::Link;
use super::schema::{self, Epoch};
use super::values::read;
use crate::store::{Member, Members, StoreError, StoreResult, rehearsal};
use async_trait::async_trait;
use std::collections::HashMap;
use std::sync::atomic::Ordering;

/// An entry that was not renewed is gone after this, in ms: three renewals.
const LIFE_MS: u64 = 3 * crate::store::MEMBER_RENEWAL_MS;

/// A live process of some namespace, as its entry says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its namespace.
    pub namespace: String,
    /// Its id.
    pub id: String,
    /// Its roles.
    pub roles: String,
    /// Version of its program.
    pub build: String,
    /// Its library of functions.
    pub library: String,
    /// The newest layout it knew to be allowed; 0 where it says nothing of that.
    pub written: u64,
    /// By how much its machine's clock is ahead of Redis', in ms; `None` where it says nothing of that.
    pub ahead_ms: Option<i64>,
}

#[async_trait]
impl Members for RedisStore {
    async fn announce(&self, member: &Member) -> StoreResult<()> {
        let epochs: Vec<String> = member.epochs.iter().map(u64::to_string).collect();
        let mut call = Call::function(function!("member"), &[self.keys.member(&member.id)])
            .arg(self.clock_argument())
            .arg(LIFE_MS);
        for (field, value) in [
            ("roles", member.roles.as_str()),
            ("build", env!("CARGO_PKG_VERSION")),
            ("library", functions::library()),
            ("layouts", &format!("{}-{}", schema::OLDEST_KNOWN, schema::NEWEST_KNOWN)),
            ("written", &self.forms.written().to_string()),
            ("epochs", &epochs.join(",")),
            ("ahead_ms", &(-self.ahead_ms.load(Ordering::Relaxed)).to_string()),
        ] {
            call = call.arg(field).arg(value);
        }
        if let Some(build) = rehearsal::build() {
            call = call.arg(rehearsal::FIELD).arg(build);
        }
        // Layouts may have changed since the start; and a server that lost everything is a new, empty namespace.
        let mut epoch = Epoch::read(&self.link, &self.keys).await?;
        if epoch.schema.is_none() {
            schema::initialise(&self.link, &self.keys, self.shards, &self.cluster).await?;
            epoch = Epoch::read(&self.link, &self.keys).await?;
        }
        // Who started when the namespace was nobody's, and has no name, goes on until he starts anew.
        if self.cluster.is_empty() {
            epoch.check_layouts(&self.link)?;
        } else {
            epoch.check(&self.link, &self.cluster)?;
        }
        self.link.one("announce", call).await?;
        self.forms.learn(&epoch);
        Ok(())
    }

    async fn leave(&self, id: &str) -> StoreResult<()> {
        self.link.one("leave", Call::new("DEL", &self.keys.member(id))).await?;
        Ok(())
    }
}

/// Every live process on these servers, whatever its namespace.
pub async fn all(link: &Link) -> StoreResult<Vec<Found>> {
    let mut found = Vec::new();
    for key in link.scan("read members", "*:member:*").await? {
        let Some((namespace, id)) = parts(&key) else { continue };
        let fields = match link.one("read members", Call::new("HGETALL", &key)).await {
            Ok(answer) => read::<HashMap<String, String>>(&key, answer)?,
            // Somebody's key of that name is no entry.
            Err(StoreError::Corrupt { .. }) => continue,
            Err(error) => return Err(error),
        };
        let field = |name: &str| fields.get(name).cloned().unwrap_or_default();
        // Expired since the scan.
        if !fields.is_empty() {
            found.push(Found {
                namespace: namespace.to_string(),
                id: id.to_string(),
                roles: field("roles"),
                build: field("build"),
                library: field("library"),
                written: field("written").parse().unwrap_or(0),
                ahead_ms: field("ahead_ms").parse().ok(),
            });
        }
    }
    found.sort_by(|left, right| (&left.namespace, &left.id).cmp(&(&right.namespace, &right.id)));
    Ok(found)
}

/// Namespace and id in the key of an entry; a namespace has neither `:` nor braces, unlike users' keys.
fn parts(key: &str) -> Option<(&str, &str)> {
    let (namespace, rest) = key.split_once(':')?;
    let id = rest.strip_prefix("member:")?;
    (!id.is_empty() && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some((namespace, id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_entries_look_like_entries() {
        assert_eq!(parts("taiji:member:00ff"), Some(("taiji", "00ff")));
        for other in ["taiji:{x:member:00ff}:st", "taiji:member:", "taiji:member:x y", "taiji:item:{a:member:1}:users"]
        {
            assert_eq!(parts(other), None, "{other}");
        }
    }
}
