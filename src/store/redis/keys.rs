//! Names of keys (DESIGN 5.2) and the slots they live in. In: namespace and ids. Out: key text.
//!
//! A key's slot is that of its first `{…}`; ids inside it are percent-escaped for `{`, `}` and `%`, so that no id can end
//! the tag or look like another's.

use crate::log_id::LogId;
use crate::store::Queue;
use std::borrow::Cow;
use xxhash_rust::xxh3::xxh3_64;

/// Slots of Redis Cluster.
pub const SLOTS: u16 = 16384;
/// Classes of the due queue that have a sorted set; what is less urgent waits in the last one.
pub const CLASSES: u8 = 4;
/// Keys of one form of a queue in a shard.
const FORM_KEYS: usize = CLASSES as usize + 4;

/// Makes keys of one namespace.
#[derive(Debug, Clone)]
pub struct Keys {
    namespace: String,
}

impl Keys {
    /// Keys that begin with `namespace:`.
    pub fn new(namespace: &str) -> Keys {
        Keys { namespace: namespace.to_string() }
    }

    /// A key of one user; all of them share a slot.
    pub fn of_user(&self, user: &str, part: &str) -> String {
        // One allocation, where `format!` has several: there are a dozen an event.
        let user = escape(user);
        let mut key = String::with_capacity(self.namespace.len() + user.len() + part.len() + 4);
        for piece in [self.namespace.as_str(), ":{", &user, "}:", part] {
            key.push_str(piece);
        }
        key
    }

    /// A user's features in a space.
    pub fn features(&self, user: &str, space: &str) -> String {
        self.of_user(user, &format!("f:{space}"))
    }

    /// Users who show this one in a space.
    pub fn referrers(&self, user: &str, space: &str) -> String {
        self.of_user(user, &format!("refs:{space}"))
    }

    /// Pattern of all users' counters.
    pub fn all_states(&self) -> String {
        format!("{}:{{*}}:st", self.namespace)
    }

    /// The user in a key of counters.
    pub fn user_of_state(&self, key: &str) -> Option<String> {
        let inner = key.strip_prefix(&self.namespace)?.strip_prefix(":{")?.strip_suffix("}:st")?;
        unescape(inner)
    }

    /// The queue of a shard: the form of all spaces, those of these spaces, and the two of what is put aside.
    pub fn queue_forms(&self, queue: Queue, shard: u32, spaces: &[String]) -> Vec<String> {
        let mut keys = self.queue(queue, shard);
        keys.extend(spaces.iter().flat_map(|space| self.queue_of_space(queue, shard, space)));
        keys.extend(self.unreadable(&shard.to_string()));
        keys
    }

    /// A queue's form of all spaces: a sorted set a class, the leases' ends, the leases, until when callers wait, and where their users
    /// stood before.
    fn queue(&self, queue: Queue, shard: u32) -> Vec<String> {
        let base = match queue {
            Queue::Due => self.namespace.clone(),
            Queue::Fast => format!("{}:fast", self.namespace),
        };
        form(&base, shard, "")
    }

    /// The same of one space, as programs that know no layout 3 keep it.
    fn queue_of_space(&self, queue: Queue, shard: u32, space: &str) -> Vec<String> {
        form(&self.namespace, shard, &format!(":{}", queue.of_space(space)))
    }

    /// What could not be read of the keys in a tag's slot: when it was put aside, and what it was.
    pub fn unreadable(&self, tag: &str) -> [String; 2] {
        let base = format!("{}:unreadable:{{{tag}}}", self.namespace);
        [base.clone(), format!("{base}:v")]
    }

    /// A shard of a space's feed of vectors: ids, values, last id.
    pub fn vectors(&self, shard: u32, space: &str) -> [String; 3] {
        feed(format!("{}:vec:{{{shard}}}:{space}", self.namespace))
    }

    /// The feed of catalogue changes.
    pub fn items(&self) -> [String; 3] {
        feed(format!("{}:items:{{items}}", self.namespace))
    }

    /// Every key that holds something of many users, with its type; `read` are the spaces whose form of the queues is read.
    pub fn of_many(&self, spaces: &[String], read: &[String], shards: u32) -> Vec<(String, &'static str)> {
        let mut all = vec![(self.epoch(), "hash"), (self.spaces(), "set"), (self.user_count(), "string")];
        let [erased, last_erasure, open, done] = self.erasures();
        all.extend([(erased, "hash"), (last_erasure, "string"), (open, "zset"), (done, "zset")]);
        all.extend(self.idle().map(|key| (key, "hash")));
        all.push((self.held_count(), "string"));
        let feed = |[ids, values, last]: [String; 3]| [(ids, "zset"), (values, "hash"), (last, "string")];
        all.extend(feed(self.items()));
        for (shard, space) in (0..shards).flat_map(|shard| spaces.iter().map(move |space| (shard, space))) {
            all.extend(feed(self.vectors(shard, space)));
        }
        for shard in 0..shards {
            for queue in Queue::ALL {
                let form = std::iter::repeat_n("zset", usize::from(CLASSES) + 1).chain(["hash", "zset", "hash"]);
                let kinds = form.cycle().take(FORM_KEYS * (1 + read.len()));
                all.extend(self.queue_forms(queue, shard, read).into_iter().zip(kinds));
            }
            all.extend(self.unreadable(&shard.to_string()).into_iter().zip(["zset", "hash"]));
        }
        all
    }

    /// Who engaged with an item.
    pub fn item_users(&self, item: &str) -> String {
        format!("{}:item:{{{}}}:users", self.namespace, escape(item))
    }

    /// What a live process says of itself.
    pub fn member(&self, id: &str) -> String {
        format!("{}:member:{id}", self.namespace)
    }

    /// A key that `taiji doctor` tries its rights on; those of one number share a slot.
    pub fn of_doctor(&self, number: u64, kind: &str) -> String {
        format!("{}:doctor:{{{number:016x}}}:{kind}", self.namespace)
    }

    /// Whether these are the keys of that namespace.
    pub fn is_namespace(&self, name: &str) -> bool {
        self.namespace == name
    }

    /// Layouts and shard count.
    pub fn epoch(&self) -> String {
        format!("{}:epoch", self.namespace)
    }

    /// Erasures by user, the last id, users of unfinished ones by id, users of finished ones by id.
    pub fn erasures(&self) -> [String; 4] {
        let base = format!("{}:erased:{{erased}}", self.namespace);
        [base.clone(), format!("{base}:n"), format!("{base}:open"), format!("{base}:done")]
    }

    /// Plans of erasures of idle users, by user; and the time in which such users were looked at. In the slot of the erasures.
    pub fn idle(&self) -> [String; 2] {
        let [base, ..] = self.erasures();
        [format!("{base}:idle"), format!("{base}:quiet")]
    }

    /// A chore: who is at it, and where.
    pub fn chore(&self, chore: &str) -> String {
        format!("{}:chore:{{{}}}", self.namespace, escape(chore))
    }

    /// Spaces that were noted.
    pub fn spaces(&self) -> String {
        format!("{}:spaces", self.namespace)
    }

    /// Number of users, counted apart from their keys.
    pub fn user_count(&self) -> String {
        format!("{}:users", self.namespace)
    }

    /// Users held back by bulk history, as of the last sweep.
    pub fn held_count(&self) -> String {
        format!("{}:held", self.namespace)
    }
}

/// Keys of one form of a queue in a shard; `tail` is what follows the shard.
fn form(base: &str, shard: u32, tail: &str) -> Vec<String> {
    let mut keys: Vec<String> = (0..CLASSES).map(|class| format!("{base}:due:{{{shard}}}{tail}:{class}")).collect();
    keys.push(format!("{base}:lease:{{{shard}}}{tail}"));
    keys.push(format!("{base}:leased:{{{shard}}}{tail}"));
    keys.push(format!("{base}:awaited:{{{shard}}}{tail}:until"));
    keys.push(format!("{base}:awaited:{{{shard}}}{tail}:stood"));
    keys
}

fn feed(base: String) -> [String; 3] {
    [base.clone(), format!("{base}:v"), format!("{base}:n")]
}

/// The user's shard of the due queue and of the vector feeds.
pub fn shard_of(user: &str, shards: u32) -> u32 {
    (xxh3_64(user.as_bytes()) % u64::from(shards.max(1))) as u32
}

/// The slot of a key, as Redis Cluster computes it.
pub fn slot_of(key: &str) -> u16 {
    crc16(tag_of(key).as_bytes()) % SLOTS
}

/// The part of a key that decides its slot.
pub fn tag_of(key: &str) -> &str {
    let tagged = key.find('{').and_then(|open| {
        let rest = &key[open + 1..];
        rest.find('}').filter(|length| *length > 0).map(|length| &rest[..length])
    });
    tagged.unwrap_or(key)
}

/// CRC-16/XMODEM.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc: u16, byte| {
        (0..8).fold(
            crc ^ (u16::from(*byte) << 8),
            |crc, _| {
                if crc & 0x8000 != 0 { (crc << 1) ^ 0x1021 } else { crc << 1 }
            },
        )
    })
}

/// A key as the log may show it: where it is a user's, the hash stands in the place of the id.
pub fn loggable(key: &str) -> String {
    let users = key.split_once(":{").filter(|(namespace, _)| !namespace.contains(':'));
    let Some((namespace, (tag, rest))) =
        users.and_then(|(namespace, tagged)| Some((namespace, tagged.split_once('}')?)))
    else {
        return key.to_string();
    };
    let user = unescape(tag).unwrap_or_else(|| tag.to_string());
    format!("{namespace}:{{{}}}{rest}", LogId(&user))
}

fn escape(id: &str) -> Cow<'_, str> {
    if !id.contains(['%', '{', '}']) {
        return Cow::Borrowed(id);
    }
    Cow::Owned(id.replace('%', "%25").replace('{', "%7B").replace('}', "%7D"))
}

fn unescape(escaped: &str) -> Option<String> {
    let mut id = String::with_capacity(escaped.len());
    let mut rest = escaped;
    while let Some(at) = rest.find('%') {
        id.push_str(&rest[..at]);
        id.push(match rest.get(at..at + 3)? {
            "%25" => '%',
            "%7B" => '{',
            "%7D" => '}',
            _ => return None,
        });
        rest = &rest[at + 3..];
    }
    id.push_str(rest);
    Some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_back_and_stay_inside_their_tag() {
        let keys = Keys::new("ns");
        for user in ["u", "{}", "a{b}c", "%7B", "ü 😀", "}", "%", "x:st"] {
            let key = keys.of_user(user, "st");
            assert_eq!(keys.user_of_state(&key).as_deref(), Some(user));
            assert_eq!(slot_of(&key), slot_of(&keys.features(user, "space")), "{user}");
        }
        assert_eq!(keys.user_of_state("ns:{%zz}:st"), None);
    }

    #[test]
    fn audit_21_a_key_in_the_log_names_no_user() {
        let keys = Keys::new("ns");
        let shown = loggable(&keys.of_user("a{b}", "st"));
        assert_eq!(shown, format!("ns:{{{}}}:st", LogId("a{b}")));
        for other in ["ns:items:{items}:v", "ns:vec:{3}:space", "ns:epoch", "due queue"] {
            assert_eq!(loggable(other), other);
        }
    }

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
        assert_eq!(slot_of("{user1000}.following"), slot_of("user1000"));
        assert_eq!(slot_of("foo{}{bar}"), crc16(b"foo{}{bar}") % SLOTS);
    }
}
