//! A record as it came, kept whole until it is stored, so that a bad one can be set aside as it was.
//!
//! In: librdkafka's borrowed message. Out: [`Record`]. Callers: [`super::consumer`], [`super::dead_letter`], `taiji dlq`.

use super::partitions::{InFlight, PartitionKey, Place, Role};
use crate::config::KafkaSettings;
use rdkafka::Timestamp;
use rdkafka::message::{BorrowedHeaders, BorrowedMessage, Header, Headers, Message, OwnedHeaders};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The header that says how a value is written.
pub(super) const CONTENT_TYPE: &str = "content-type";

/// The topics read, by role.
#[derive(Debug, Clone)]
pub(super) struct Topics {
    events: String,
    /// Empty = none.
    items: String,
}

impl Topics {
    pub fn new(settings: &KafkaSettings) -> Topics {
        Topics { events: settings.events_topic.clone(), items: settings.items_topic.clone() }
    }

    pub fn names(&self) -> Vec<&str> {
        [self.events.as_str(), self.items.as_str()].into_iter().filter(|name| !name.is_empty()).collect()
    }

    pub fn name(&self, role: Role) -> &str {
        match role {
            Role::Events => &self.events,
            Role::Items => &self.items,
        }
    }

    /// `None` for a topic we did not ask for.
    pub fn key(&self, topic: &str, partition: i32) -> Option<PartitionKey> {
        let role = match topic {
            _ if topic == self.events => Role::Events,
            _ if topic == self.items => Role::Items,
            _ => return None,
        };
        Some(PartitionKey { role, partition })
    }
}

/// One record on its way.
pub(super) struct Record {
    pub place: Place,
    pub offset: i64,
    pub body: Body,
    /// Counts it as under way.
    pub _carried: InFlight,
}

/// What producers wrote: kept byte for byte.
#[derive(Debug, Clone)]
pub(crate) struct Body {
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub timestamp: Timestamp,
    /// `None` when a header's name cannot be read; then `raw` has them still.
    pub headers: Option<Vec<(String, Option<Vec<u8>>)>>,
    /// As they came; `None` when there were none.
    raw: Option<OwnedHeaders>,
}

impl Body {
    /// A record out of its parts; `headers` is `None` where a name is no text.
    #[cfg(any(test, feature = "fuzz"))]
    pub fn of_parts(value: Option<Vec<u8>>, headers: Option<Vec<(String, Option<Vec<u8>>)>>) -> Body {
        Body { key: None, value, timestamp: Timestamp::NotAvailable, headers, raw: None }
    }

    /// Copies a message.
    pub fn of(message: &BorrowedMessage<'_>) -> Body {
        let headers = message.headers();
        Body {
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            timestamp: message.timestamp(),
            headers: headers.map_or(Some(Vec::new()), read_headers),
            raw: headers.map(BorrowedHeaders::detach),
        }
    }

    /// Bytes of key and value.
    pub fn bytes(&self) -> usize {
        let length = |part: &Option<Vec<u8>>| part.as_ref().map_or(0, Vec::len);
        length(&self.key) + length(&self.value)
    }

    /// The value of a header, by its name in any case; the last one wins, as Kafka has it.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        let headers = self.headers.as_ref()?;
        let found = headers.iter().rev().find(|(header, _)| header.eq_ignore_ascii_case(name))?;
        found.1.as_deref()
    }

    /// A header as text.
    pub fn header_text(&self, name: &str) -> Option<String> {
        self.header(name).map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    /// How the value says it is written.
    pub fn content_type(&self) -> Option<String> {
        self.header_text(CONTENT_TYPE)
    }

    /// The headers to write again, without those that `drop` names.
    pub fn headers_without(&self, drop: impl Fn(&str) -> bool) -> OwnedHeaders {
        let Some(headers) = &self.headers else {
            return self.raw.clone().unwrap_or_default();
        };
        headers
            .iter()
            .filter(|(name, _)| !drop(name))
            .fold(OwnedHeaders::new(), |kept, (name, value)| kept.insert(Header { key: name, value: value.as_deref() }))
    }
}

/// rdkafka panics on a name that is not UTF-8; such a record is a bad record, not the end of the stream.
fn read_headers(headers: &BorrowedHeaders) -> Option<Vec<(String, Option<Vec<u8>>)>> {
    let read = || headers.iter().map(|header| (header.key.to_string(), header.value.map(<[u8]>::to_vec))).collect();
    catch_unwind(AssertUnwindSafe(read)).ok()
}
