//! From a connection to one that speaks TLS, within the time that a request's head has.
//!
//! In: an accepted connection with its slot. Out: the same within TLS, or why it ended. A client that says nothing, or speaks a byte
//! a second, is closed as one whose head does not come; who speaks plain HTTP is told that the port speaks TLS.

use super::activity::{Activity, CloseReason, Timeouts};
use super::connection::until_stopped;
use super::refusal::{self, Refusal, RefusalBody};
use super::slots::Slot;
use crate::tls::ServerTls;
use axum::http::StatusCode;
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::server::TlsStream;

/// First byte of a record that carries a handshake (RFC 8446, 5.1).
const HANDSHAKE: u8 = 0x16;
/// What is read of a plain request, before and after the answer, so that closing does not take the answer away.
const MOST_PLAIN_BYTES: usize = 1 << 20;

const PLAIN: Refusal = Refusal {
    status: StatusCode::BAD_REQUEST,
    code: "tls_required",
    message: "this port speaks TLS, and this is plain http: ask with https://",
};

/// Why there is no connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// We closed it.
    Closed(CloseReason),
    /// It was no handshake, or a failed one; label in metrics and what happened.
    Failed(&'static str, String),
    /// The client went away, or the process does.
    Gone,
}

/// What a handshake goes by.
pub struct Terms<'a> {
    /// What is shown.
    pub tls: &'a ServerTls,
    /// How long a client may keep us waiting.
    pub timeouts: &'a Timeouts,
    /// Writes the bodies of refusals.
    pub refusal: RefusalBody,
}

impl Terms<'_> {
    /// Shakes hands. The time counts from the connection's beginning.
    pub async fn shake(
        &self,
        stream: TcpStream,
        slot: &Slot,
        activity: &Activity,
        stop: watch::Receiver<bool>,
    ) -> Result<TlsStream<TcpStream>, Ended> {
        let Some((until, reason)) = activity.deadline(self.timeouts) else { return Err(Ended::Gone) };
        tokio::select! {
            biased;
            shaken = self.begin(stream) => shaken,
            () = slot.leave.notified() => Err(Ended::Closed(CloseReason::Full)),
            () = until_stopped(stop) => Err(Ended::Gone),
            () = tokio::time::sleep_until(until.into()) => Err(Ended::Closed(reason)),
        }
    }

    async fn begin(&self, mut stream: TcpStream) -> Result<TlsStream<TcpStream>, Ended> {
        let mut first = [0];
        match stream.peek(&mut first).await {
            Ok(0) | Err(_) => return Err(Ended::Gone),
            Ok(_) if first[0].is_ascii_alphabetic() => {
                // Who hangs up meanwhile has no use for the answer.
                let _ = self.answer_plain(&mut stream).await;
                return Err(Ended::Failed("plain_http", "plain http".to_string()));
            }
            Ok(_) if first[0] != HANDSHAKE => {
                return Err(Ended::Failed("no_tls", "neither TLS nor http".to_string()));
            }
            Ok(_) => {}
        }
        let shaken = self.tls.acceptor().accept(stream).await;
        shaken.map_err(|error| match error.kind() {
            // rustls' own words come as invalid data; everything else is a connection that broke off.
            io::ErrorKind::InvalidData => Ended::Failed("failed", error.to_string()),
            _ => Ended::Failed("broken_off", error.to_string()),
        })
    }

    /// Reads the request's head, answers 400, and reads on until the client closes.
    async fn answer_plain(&self, stream: &mut TcpStream) -> io::Result<()> {
        let (mut bytes, mut left) = ([0; 4096], MOST_PLAIN_BYTES);
        let mut end = Vec::new();
        while left > 0 {
            let count = stream.read(&mut bytes).await?;
            left = left.saturating_sub(count.max(1));
            end.extend_from_slice(&bytes[..count]);
            if count == 0 || end.windows(4).any(|part| part == b"\r\n\r\n") {
                break;
            }
            end.drain(..end.len().saturating_sub(3));
        }
        stream.write_all(&refusal::answer(&PLAIN, self.refusal)).await?;
        stream.shutdown().await?;
        while left > 0 {
            match stream.read(&mut bytes).await? {
                0 => break,
                count => left = left.saturating_sub(count),
            }
        }
        Ok(())
    }
}
