//! What leaves the service on its own: users' features after a change, and what rankers were given.
//!
//! In: users whose features changed ([`ChangeFeed`]), answers of reads ([`ServedFeed`]). Out: records of two Kafka topics.
//! Callers: `refresh`, `erase` and `api` note; `cli::wiring` runs the publishers.

mod changes;
mod features_topic;
mod served;
mod served_topic;

pub use changes::ChangeFeed;
pub use features_topic::FeaturePublisher;
pub use served::ServedFeed;
pub use served_topic::ServedPublisher;
