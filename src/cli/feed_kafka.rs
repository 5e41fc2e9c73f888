//! `taiji feed --kafka`: the same files as records of the events and items topics, keyed by user and by item.

use super::CommandError;
use super::dlq::kafka_settings;
use super::feed::{FeedArgs, count_lines, open, progress_bar};
use crate::kafka::client::{Producer, producer};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rdkafka::producer::FutureRecord;
use rdkafka::producer::future_producer::DeliveryFuture;
use serde_json::Value;
use std::io::BufRead;
use std::path::Path;
use std::time::{Duration, Instant};

/// Records on their way at once.
const MAX_UNACKNOWLEDGED: usize = 10_000;

/// Produces items, then events, and says how it went. Lines are sent as they are: what is wrong with them is the service's
/// to say.
pub(super) async fn run(args: &FeedArgs) -> Result<(), CommandError> {
    let settings =
        kafka_settings(&args.config, &[("kafka.brokers", &args.kafka), ("kafka.events_topic", &args.topic)])?;
    let producer = producer(&settings)?;
    if let Some(items) = &args.items {
        let feed = Feed { producer: &producer, topic: &settings.items_topic, key: "id", rate: 0 };
        let sent = feed.replay(items).await?;
        println!("items: {sent} produced to {}", settings.items_topic);
    }
    let started = Instant::now();
    let feed = Feed { producer: &producer, topic: &settings.events_topic, key: "user_id", rate: args.rate };
    let sent = feed.replay(&args.file).await?;
    let seconds = started.elapsed().as_secs_f64();
    let rate = sent as f64 / seconds.max(1e-9);
    println!("events: {sent} produced to {} in {seconds:.1} s ({rate:.0}/s)", settings.events_topic);
    Ok(())
}

struct Feed<'a> {
    producer: &'a Producer,
    topic: &'a str,
    /// The field whose text is the record's key, so that one user's records keep their order.
    key: &'static str,
    /// Records a second; 0 = as fast as they are taken.
    rate: u64,
}

impl Feed<'_> {
    /// Produces every line of a file; returns how many the broker acknowledged, which is all of them.
    async fn replay(&self, path: &Path) -> Result<u64, CommandError> {
        let bar = progress_bar(count_lines(path)?);
        let started = Instant::now();
        let mut sent = 0_u64;
        let mut unacknowledged: FuturesUnordered<DeliveryFuture> = FuturesUnordered::new();
        for line in open(path)?.lines() {
            let line = line.map_err(|error| CommandError::Usage(format!("{}: {error}", path.display())))?;
            if line.trim().is_empty() {
                continue;
            }
            if self.rate > 0 {
                let due = started + Duration::from_secs_f64(sent as f64 / self.rate as f64);
                tokio::time::sleep_until(due.into()).await;
            }
            if unacknowledged.len() >= MAX_UNACKNOWLEDGED {
                self.acknowledge(&mut unacknowledged).await?;
            }
            unacknowledged.push(self.send(&line)?);
            sent += 1;
            bar.set_position(sent);
        }
        while !unacknowledged.is_empty() {
            self.acknowledge(&mut unacknowledged).await?;
        }
        bar.finish_and_clear();
        Ok(sent)
    }

    fn send(&self, line: &str) -> Result<DeliveryFuture, CommandError> {
        let key = serde_json::from_str::<Value>(line).ok().and_then(|value| match value.get(self.key)? {
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        });
        let mut record = FutureRecord::<str, str>::to(self.topic).payload(line);
        record.key = key.as_deref();
        self.producer.send_result(record).map_err(|(error, _)| self.failed(&error))
    }

    async fn acknowledge(&self, unacknowledged: &mut FuturesUnordered<DeliveryFuture>) -> Result<(), CommandError> {
        match unacknowledged.next().await {
            Some(Ok(Ok(_))) | None => Ok(()),
            Some(Ok(Err((error, _)))) => Err(self.failed(&error)),
            Some(Err(_)) => Err(CommandError::Internal("the kafka client ended".to_string())),
        }
    }

    fn failed(&self, error: &dyn std::fmt::Display) -> CommandError {
        CommandError::Unavailable(format!("kafka topic {:?}: {error}", self.topic))
    }
}
