//! Keys of the embedded store. In: ids. Out: bytes whose order makes one user's data one range.
//!
//! Ids are preceded by their length, so that no id can run into another's keys whatever characters it holds.

use crate::log_id::LogId;
use crate::store::Queue;

/// What a key of the `users` keyspace holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Kept engagements, main part.
    Engagements = b'e',
    /// Their tail.
    EngagementsTail = b'E',
    /// Kept impressions, main part.
    Impressions = b'i',
    /// Their tail.
    ImpressionsTail = b'I',
    /// Kept queries, main part.
    Queries = b'q',
    /// Their tail.
    QueriesTail = b'Q',
    /// Profile.
    Profile = b'p',
    /// Features in a space.
    Features = b'f',
    /// Number of referrers in a space.
    ReferrerCount = b'n',
    /// One referrer in a space.
    Referrer = b'r',
    /// What is noted beside the counters.
    Notes = b'x',
}

/// `user`, of the keyspaces `states` and `erased`; and what every key of that user begins with.
pub fn of_state(user: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(user.len() + 2);
    push(&mut key, user);
    key
}

/// The user in a key made by [`of_state`].
pub fn parse_user(key: &[u8]) -> Option<&str> {
    let (user, rest) = pop(key)?;
    rest.is_empty().then_some(user)
}

/// `user | kind`.
pub fn of_user(user: &str, kind: Kind) -> Vec<u8> {
    let mut key = Vec::with_capacity(user.len() + 48);
    push(&mut key, user);
    key.push(kind as u8);
    key
}

/// `user | kind | space`.
pub fn of_user_in_space(user: &str, kind: Kind, space: &str) -> Vec<u8> {
    let mut key = of_user(user, kind);
    push(&mut key, space);
    key
}

/// `neighbour | referrer | space | user`.
pub fn of_referrer(neighbour: &str, space: &str, user: &str) -> Vec<u8> {
    let mut key = of_user_in_space(neighbour, Kind::Referrer, space);
    push(&mut key, user);
    key
}

/// `queue | user`, of the `due` keyspace. Programs before had a queue of each kind a space; to them, ours is that of the space without a
/// name, which they leave alone.
pub fn of_due(queue: Queue, user: &str) -> Vec<u8> {
    of_due_in(&queue.of_space(""), user)
}

/// `queue | user`, where the queue is one of a space.
pub fn of_due_in(queue: &str, user: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(queue.len() + user.len() + 4);
    push(&mut key, queue);
    push(&mut key, user);
    key
}

/// The queue and the user in a key of the `due` keyspace, and whether it is the queue of one space.
pub fn parse_due(key: &[u8]) -> Option<(Queue, &str, bool)> {
    let (name, rest) = pop(key)?;
    let (user, rest) = pop(rest)?;
    let suffix = Queue::Fast.of_space("");
    let (queue, space) = name.strip_suffix(&suffix).map_or((Queue::Due, name), |space| (Queue::Fast, space));
    rest.is_empty().then_some((queue, user, !space.is_empty()))
}

/// Whether a key of the `users` keyspace, of this user, holds a referrer, their number, or the user's notes.
pub fn outlives_erasure(user: &str, key: &[u8]) -> bool {
    let kinds = [Kind::Referrer, Kind::ReferrerCount, Kind::Notes].map(|kind| kind as u8);
    matches!(key.get(user.len() + 2), Some(kind) if kinds.contains(kind))
}

/// What the keys of spaces, in the `meta` keyspace, begin with.
pub const SPACE_PREFIX: &[u8] = b"space.";

/// A space that was noted.
pub fn of_space(space: &str) -> Vec<u8> {
    [SPACE_PREFIX, space.as_bytes()].concat()
}

/// The space in a key made by [`of_space`].
pub fn parse_space(key: &[u8]) -> Option<&str> {
    std::str::from_utf8(key.strip_prefix(SPACE_PREFIX)?).ok()
}

/// What the keys of planned erasures of idle users, in the `meta` keyspace, begin with.
pub const IDLE_PREFIX: &[u8] = b"idle.";

/// A planned erasure of an idle user.
pub fn of_idle(user: &str) -> Vec<u8> {
    [IDLE_PREFIX, user.as_bytes()].concat()
}

/// The user in a key made by [`of_idle`].
pub fn parse_idle(key: &[u8]) -> Option<&str> {
    std::str::from_utf8(key.strip_prefix(IDLE_PREFIX)?).ok()
}

/// In the `meta` keyspace: the time in which idle users were looked at, and when that was last.
pub const QUIET_TIME: &str = "quiet_time";

/// `feed | id`, of the `feeds` keyspace; ids sort as numbers.
pub fn of_feed(feed: &str, id: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(feed.len() + 10);
    push(&mut key, feed);
    key.extend_from_slice(&id.to_be_bytes());
    key
}

/// The id in a key made by [`of_feed`], of that feed.
pub fn parse_feed_id(feed: &str, key: &[u8]) -> Option<u64> {
    (key.len() == feed.len() + 10).then(|| key.last_chunk().map(|id| u64::from_be_bytes(*id))).flatten()
}

/// The id in the value of a place key.
pub fn parse_place(value: &[u8]) -> Option<u64> {
    value.try_into().ok().map(u64::from_be_bytes)
}

/// `item | users`, of the `items` keyspace.
pub fn of_item_users(item: &str) -> Vec<u8> {
    let mut key = of_state(item);
    key.push(b'u');
    key
}

/// `item | place in the feed`, of the `items` keyspace.
pub fn of_item_place(item: &str) -> Vec<u8> {
    let mut key = of_state(item);
    key.push(b'p');
    key
}

/// The user in a key made by [`of_vector_place`].
pub fn parse_vector_place(key: &[u8]) -> Option<&str> {
    let (_, rest) = pop(key)?;
    let (user, rest) = pop(rest)?;
    (rest == b"v").then_some(user)
}

/// Where a user's latest vector stands in a space's feed. No item's place key looks like it: those hold one part.
pub fn of_vector_place(space: &str, user: &str) -> Vec<u8> {
    let mut key = Vec::new();
    push(&mut key, space);
    push(&mut key, user);
    key.push(b'v');
    key
}

/// `member | source`, of the `unreadable` keyspace; begins like every key of the user, where the member is one.
pub fn of_aside(member: &[u8], source: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(member.len() + source.len() + 2);
    push_bytes(&mut key, member);
    key.extend_from_slice(source.as_bytes());
    key
}

/// A key as the log may show it: hashes stand in the place of its parts, which may be users.
pub fn loggable(key: &[u8]) -> String {
    let mut shown = String::new();
    let mut rest = key;
    while !rest.is_empty() {
        if let Some((part, after)) = pop(rest) {
            shown.push_str(&LogId(part).to_string());
            rest = after;
            continue;
        }
        match rest {
            [kind, after @ ..] if !shown.is_empty() && kind.is_ascii_alphabetic() => {
                shown.push(char::from(*kind));
                rest = after;
            }
            _ => return format!("{shown}({} bytes)", rest.len()),
        }
    }
    shown
}

fn push(key: &mut Vec<u8>, part: &str) {
    push_bytes(key, part.as_bytes());
}

fn push_bytes(key: &mut Vec<u8>, part: &[u8]) {
    // Ids hold at most 128 bytes (DESIGN 5.1); a longer one would only share its length bytes with another, never a key.
    key.extend_from_slice(&(part.len() as u16).to_be_bytes());
    key.extend_from_slice(part);
}

fn pop(key: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = key.split_first_chunk::<2>()?;
    let (part, rest) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
    Some((std::str::from_utf8(part).ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn audit_21_a_key_in_the_log_names_no_user() {
        let (user, space) = (LogId("carol"), LogId("space"));
        assert_eq!(loggable(&of_state("carol")), user.to_string());
        assert_eq!(loggable(&of_user_in_space("carol", Kind::Features, "space")), format!("{user}f{space}"));
        assert_eq!(loggable(&of_due_in("space", "carol")), format!("{space}{user}"));
        for odd in [&b"carol"[..], &of_user("carol", Kind::Profile)[1..], &of_feed("feed", 7)] {
            assert!(!loggable(odd).contains("carol"), "{}", loggable(odd));
        }
    }
}
