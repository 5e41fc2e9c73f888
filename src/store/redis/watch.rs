//! Is a node there? Asked with a PING on a connection of its own when a call to it takes long or loses its connection, and
//! then again and again until it answers.
//!
//! In: nodes that are doubted. Out: the breaker's circuits, opened and closed. Callers: `link`.
//!
//! A node that answers is well, however long its calls take: what is slow may be one heavy command, or many. A node that
//! answers, but not on the connection everybody shares, has lost that one: it is made anew.

use super::address::Node;
use super::errors::{self, Remedy};
use super::link::{Link, name};
use super::sentinels::Glance;
use crate::backoff::Backoff;
use redis::{ErrorKind, RedisError};
use std::sync::Weak;
use std::time::{Duration, Instant};

/// Pauses between two questions to a node that does not answer.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// Pause between two looks at the sentinels.
const SENTINEL_PAUSE: Duration = Duration::from_millis(500);

impl Link {
    /// A call to a node that may take its time. If it takes longer than a read may, the node is asked whether it is there, and
    /// when it is not, the call is given up.
    pub(super) async fn watched<T>(
        &self,
        node: &Node,
        call: impl Future<Output = Result<T, RedisError>>,
    ) -> Result<T, RedisError> {
        tokio::pin!(call);
        if let Ok(ended) = tokio::time::timeout(self.assurance().read_deadline, &mut call).await {
            return ended;
        }
        self.doubt(node);
        let name = name(node);
        tokio::select! {
            ended = &mut call => ended,
            () = self.breaker().until_open(&name) => {
                Err(RedisError::from((ErrorKind::Io, "given up", "the node does not answer a PING either".to_string())))
            }
        }
    }

    /// Has a node asked whether it is there.
    pub(super) fn doubt(&self, node: &Node) {
        if self.breaker().may_ask(&name(node), Instant::now()) {
            tokio::spawn(ask_until_answered(self.myself(), node.clone()));
        }
    }

    /// Why the node is not there; `Ok` when it answered anything.
    async fn ping(&self, node: &Node) -> Result<(), String> {
        let limit = self.assurance().read_deadline;
        let ask = async {
            let mut connection = self.connections().own(node, limit).await?;
            redis::cmd("PING").exec_async(&mut connection).await
        };
        let silent = || format!("no answer to PING in {} ms", limit.as_millis());
        match tokio::time::timeout(limit, ask).await {
            Err(_) => Err(silent()),
            // The connection keeps the same limit and may be a moment earlier.
            Ok(Err(error)) if error.is_timeout() => Err(silent()),
            Ok(Err(error)) if errors::remedy(&error) == Remedy::Reconnect => Err(error.to_string()),
            Ok(_) => Ok(()),
        }
    }

    /// Makes the shared connection anew if it leaves a PING without an answer for as long as any call may take.
    async fn check_shared(&self, node: &Node) {
        let Some(mut connection) = self.connections().standing(node) else { return };
        if let Err(error) = redis::cmd("PING").exec_async(&mut connection).await
            && errors::remedy(&error) == Remedy::Reconnect
        {
            self.connections().forget(node);
        }
    }
}

/// Looks again and again whom the sentinels name, until the store is closed. A master that was replaced while it lives goes on
/// taking writes for some 10 s, until the sentinels make it a replica and throw them away: nobody's call finds that out.
pub(super) async fn look_at_sentinels(link: Weak<Link>) {
    let mut glance = Glance::default();
    loop {
        tokio::time::sleep(SENTINEL_PAUSE).await;
        let Some(link) = link.upgrade() else { return };
        let Some(sentinels) = link.sentinels() else { return };
        if let Some(named) = sentinels.glance(&mut glance).await
            && link.masters() != [named]
        {
            // It may be no master yet; then the next look finds it.
            let _ = link.remap("ask sentinels").await;
        }
    }
}

async fn ask_until_answered(link: Weak<Link>, node: Node) {
    let (mut backoff, node_name) = (Backoff::new(FIRST_PAUSE, LONGEST_PAUSE), name(&node));
    loop {
        // The store is closed.
        let Some(link) = link.upgrade() else { return };
        let Err(why) = link.ping(&node).await else {
            link.breaker().answered(&node_name, Instant::now());
            // What did not answer in time is not waited for: the next read opens another.
            link.reads().forget(&node);
            return link.check_shared(&node).await;
        };
        if link.breaker().silent(&node_name, &why, Instant::now()) {
            // Whoever comes when it is back must not find a connection that broke meanwhile.
            link.forget_connections(&node);
        }
        if link.may_move() {
            // Another may own its slots by now; nobody's call finds that out while they are refused. A map that cannot be read
            // leaves the old one.
            let _ = link.remap("ping").await;
            if !link.masters().contains(&node) {
                return link.breaker().forget(&node_name);
            }
        }
        drop(link);
        tokio::time::sleep(backoff.pause()).await;
    }
}
