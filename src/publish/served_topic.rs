//! What rankers were given → the served topic, keyed by user.
//!
//! In: [`Served`] messages from [`ServedFeed`]. Out: records (protobuf) with the space in a header. At least once: a batch that
//! failed is sent again as far as it was not acknowledged. Callers: `cli::wiring`, where `kafka.served_topic` is set; it needs
//! neither consumer nor group.

use super::ServedFeed;
use crate::backoff::Backoff;
use crate::config::KafkaSettings;
use crate::kafka::KafkaError;
use crate::kafka::client::{self, Producer};
use crate::proto::Served;
use crate::telemetry::Metrics;
use crate::telemetry::kafka::{KafkaRetried, ServedDropped, ServedPublished};
use prost::Message;
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode};
use rdkafka::producer::FutureRecord;
use std::sync::Arc;
use tokio::sync::watch;

/// Messages produced together.
const BATCH: usize = 500;

/// Publishes one feed; one a process.
pub struct ServedPublisher {
    producer: Producer,
    topic: String,
    feed: Arc<ServedFeed>,
    metrics: Arc<Metrics>,
}

impl ServedPublisher {
    /// A publisher to `kafka.served_topic`; connects to nothing yet.
    pub fn new(
        settings: &KafkaSettings,
        feed: Arc<ServedFeed>,
        metrics: Arc<Metrics>,
    ) -> Result<ServedPublisher, KafkaError> {
        let producer = client::producer(settings)?;
        Ok(ServedPublisher { producer, topic: settings.served_topic.clone(), feed, metrics })
    }

    /// Where the reads put what they serve.
    pub fn feed(&self) -> Arc<ServedFeed> {
        self.feed.clone()
    }

    /// Runs until `stop` turns true and what waits is published, or cannot be.
    pub async fn run(&self, mut stop: watch::Receiver<bool>) {
        let mut backoff = Backoff::default();
        let mut unsent = Vec::new();
        loop {
            if unsent.is_empty() {
                unsent = self.feed.take(BATCH);
            }
            if unsent.is_empty() {
                tokio::select! {
                    biased;
                    _ = self.feed.added() => continue,
                    _ = stop.wait_for(|stop| *stop) => break,
                }
            }
            let (left, failure) = self.publish(unsent).await;
            unsent = left;
            let Some(error) = failure else {
                backoff = Backoff::default();
                continue;
            };
            KafkaRetried { what: "served", error: &error }.emit(&self.metrics);
            if backoff.wait_unless(&mut stop).await {
                break;
            }
        }
        if !unsent.is_empty() {
            ServedDropped { records: unsent.len() as u64, reason: "the process ends" }.emit(&self.metrics);
        }
        self.feed.close();
    }

    /// Sends a batch; returns what was not acknowledged, and why.
    async fn publish(&self, batch: Vec<Served>) -> (Vec<Served>, Option<String>) {
        let (mut unsent, mut failure, mut published) = (Vec::new(), None, 0);
        let sent: Vec<_> = batch.iter().map(|served| self.send(served)).collect();
        for (served, delivery) in batch.into_iter().zip(sent) {
            let delivered = match delivery {
                Ok(delivery) => match delivery.await {
                    Ok(delivered) => delivered.map(|_| ()).map_err(|(error, _)| error),
                    Err(_) => Err(ClientError::Canceled),
                },
                Err(error) => Err(error),
            };
            match delivered {
                Ok(()) => published += 1,
                // The topic takes no record of this size, today or tomorrow.
                Err(ClientError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge)) => {
                    ServedDropped { records: 1, reason: "larger than the topic takes" }.emit(&self.metrics);
                }
                Err(error) => {
                    failure = Some(client::not_written(&self.topic, &error));
                    unsent.push(served);
                }
            }
        }
        ServedPublished { records: published }.emit(&self.metrics);
        (unsent, failure)
    }

    fn send(&self, served: &Served) -> Result<rdkafka::producer::future_producer::DeliveryFuture, ClientError> {
        let value = served.encode_to_vec();
        let user = served.features.as_ref().map_or("", |features| features.user_id.as_str());
        let headers = client::protobuf_headers(&served.space);
        let record = FutureRecord::<str, [u8]>::to(&self.topic).key(user).payload(&value).headers(headers);
        self.producer.send_result(record).map_err(|(error, _)| error)
    }
}
