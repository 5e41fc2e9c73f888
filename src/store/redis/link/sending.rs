//! A batch's part for one node on its way: in pieces, over the connection that everybody shares or one of the caller's own.

use super::super::address::Node;
use super::super::call::Call;
use super::super::durable::Confirmed;
use super::super::pace;
use super::{Link, Route, Sent, Way};
use redis::{ErrorKind, Pipeline, RedisError, Value};
use tokio::time::timeout_at;

/// What a piece does, and what that may cost the server, in µs.
type Work = (&'static str, u32);

impl Link {
    /// Sends a batch's part for one node in pieces, each when the one before was answered. What comes behind a piece that was
    /// lost is not sent.
    pub(super) async fn send(
        &self,
        operation: &'static str,
        (node, asking): Route,
        indices: Vec<usize>,
        calls: &[Call],
        way: Way,
    ) -> Vec<Sent> {
        let (mut pieces, mut rest) = (Vec::new(), indices.as_slice());
        while !rest.is_empty() {
            let factor = self.pace.factor(&node, operation);
            let (length, cost) = pace::first_piece(rest.iter().map(|index| calls[*index].cost), factor);
            let (piece, after) = rest.split_at(length);
            let way = (operation, way, after.is_empty());
            let (outcome, is_late) = self.send_piece((&node, asking), (piece, cost), calls, way).await;
            let is_lost = outcome.is_err();
            let indices = if is_lost { rest } else { piece }.to_vec();
            pieces.push(Sent { operation, node: node.clone(), indices, outcome, is_late });
            if is_lost {
                break;
            }
            rest = after;
        }
        if way == Way::Confirmed { confirmed_together(pieces) } else { pieces }
    }

    /// The answers, or why there are none, and whether the reason is that the time of a read was over.
    async fn send_piece(
        &self,
        (node, asking): (&Node, bool),
        (indices, cost): (&[usize], u32),
        calls: &[Call],
        (operation, way, is_last): (&'static str, Way, bool),
    ) -> (Result<Confirmed, RedisError>, bool) {
        let mut pipeline = Pipeline::new();
        for index in indices {
            if asking {
                pipeline.add_command(redis::cmd("ASKING"));
            }
            pipeline.add_command(calls[*index].cmd.clone());
        }
        let work = (operation, cost);
        let (outcome, is_late) = match way {
            Way::Timeouts => (self.watched(node, self.exchange_shared(node, &pipeline, work)).await, false),
            Way::Confirmed if is_last => (self.watched(node, self.send_confirmed(node, pipeline)).await, false),
            Way::Confirmed => (self.watched(node, self.exchange_alone(node, &pipeline, work)).await, false),
            Way::Until(deadline) => match timeout_at(deadline, self.exchange_shared(node, &pipeline, work)).await {
                Ok(ended) => (ended, false),
                Err(_) => (Err(self.late()), true),
            },
        };
        // Of each pair only the command's own answer counts.
        let step = if asking { 2 } else { 1 };
        let every = |values: Vec<Value>| values.into_iter().skip(step - 1).step_by(step).collect();
        (outcome.map(|sent| Confirmed { answers: every(sent.answers), ..sent }), is_late)
    }

    /// Over the connection that everybody shares, when there is room for so much more work on it.
    async fn exchange_shared(&self, node: &Node, pipeline: &Pipeline, work: Work) -> Result<Confirmed, RedisError> {
        let (operation, cost) = work;
        let mut connection = self.connections.shared(node).await?;
        let under_way = self.pace.enter(node, cost).await;
        let answers = connection.send_packed_commands(pipeline, 0, pipeline.len()).await?;
        under_way.answered(operation);
        Ok(Confirmed { answers, shortfall: None })
    }

    /// The same over a connection of the caller's own: what comes last is confirmed for all.
    async fn exchange_alone(&self, node: &Node, pipeline: &Pipeline, work: Work) -> Result<Confirmed, RedisError> {
        let (operation, cost) = work;
        let under_way = self.pace.enter(node, cost).await;
        let answers = self.exchange(node, pipeline, self.assurance.ack_timeout).await?;
        under_way.answered(operation);
        Ok(Confirmed { answers, shortfall: None })
    }

    /// A read's time is over.
    pub(super) fn late(&self) -> RedisError {
        let limit_ms = self.assurance.read_deadline.as_millis();
        RedisError::from((ErrorKind::Io, "no answer", format!("within {limit_ms} ms (store.read_deadline_ms)")))
    }
}

/// Of a batch in pieces only the last is confirmed, for all that the server carried out before; if that is lost, all goes again.
fn confirmed_together(mut pieces: Vec<Sent>) -> Vec<Sent> {
    let Some(mut last) = pieces.pop() else { return pieces };
    match &last.outcome {
        Ok(confirmed) => {
            for earlier in pieces.iter_mut().filter_map(|piece| piece.outcome.as_mut().ok()) {
                earlier.shortfall = confirmed.shortfall.clone();
            }
        }
        Err(_) => {
            let earlier = pieces.drain(..).flat_map(|piece| piece.indices);
            last.indices = earlier.chain(std::mem::take(&mut last.indices)).collect();
        }
    }
    pieces.push(last);
    pieces
}
