//! One port: the loop that accepts its connections.

use super::activity::{Activity, CloseReason, Timeouts};
use super::connection::{Routes, Service, until_stopped};
use super::files::{SpareFiles, is_out_of_files};
use super::handshake::{Ended, Terms};
use super::refusal::RefusalBody;
use super::slots::{Slot, Slots};
use crate::telemetry::Metrics;
use crate::telemetry::events::{AcceptFailed, ConnectionClosed, HandshakeFailed};
use crate::tls::ServerTls;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// After a connection that could not be accepted for want of something that only time gives back.
const PAUSE: Duration = Duration::from_millis(50);
/// Failures to accept are logged no more often.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// What a port takes.
#[derive(Debug, Clone, Copy)]
pub struct PortLimits {
    /// Connections at once.
    pub connections: usize,
    /// Requests of HTTP/2 at once on one connection.
    pub streams: u32,
    /// Time for a request's head.
    pub header: Duration,
    /// Time without a request, and for a client that takes nothing of its answer.
    pub idle: Duration,
}

/// A port, and what it is served with.
pub struct Port {
    /// Label in metrics and log: public, openai, admin.
    pub name: &'static str,
    /// Bound.
    pub listener: TcpListener,
    /// Where requests go.
    pub routes: Arc<dyn Routes>,
    /// What it takes.
    pub limits: PortLimits,
    /// What it shows; `None` = it speaks plain HTTP.
    pub tls: Option<Arc<ServerTls>>,
    /// The error body of what hyper refuses by itself.
    pub refusal: RefusalBody,
    /// Files to give up when the process has none left.
    pub spare: Option<SpareFiles>,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// Serves until `stop` turns true; then takes no more, lets open requests finish, and returns when all connections have ended.
pub async fn serve(port: Port, stop: watch::Receiver<bool>) {
    let Port { name, listener, routes, limits, tls, refusal, mut spare, metrics } = port;
    let timeouts = Timeouts { header: limits.header, idle: limits.idle };
    let service = Arc::new(Service::new(routes, timeouts, limits.streams, refusal));
    let slots = Arc::new(Slots::new(limits.connections));
    let mut connections = JoinSet::new();
    let mut leaving = std::pin::pin!(until_stopped(stop.clone()));
    let mut failures = Failures::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next(), if !connections.is_empty() => {
                metrics.connections.with_label_values(&[name]).set(slots.count() as i64);
                if let Some(spare) = &mut spare {
                    spare.refill();
                }
                continue;
            }
            () = &mut leaving => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // One that went away before it was accepted is nobody's failure.
                if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
                    continue;
                }
                if is_out_of_files(&error) && spare.as_mut().is_some_and(SpareFiles::give_up_one) {
                    continue;
                }
                failures.note(name, &error, &metrics);
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let (slot, activity) = tokio::select! {
            taken = slots.take() => taken,
            () = &mut leaving => break,
        };
        metrics.connections.with_label_values(&[name]).set(slots.count() as i64);
        let (service, tls, stop, metrics) = (service.clone(), tls.clone(), stop.clone(), metrics.clone());
        connections.spawn(async move {
            let stream = prompt(stream);
            let closed = match tls {
                None => service.serve(stream, &slot, activity, stop).await,
                // In a box: a plain connection pays nothing for it.
                Some(tls) => {
                    let secured = Secured { service: &service, tls: &tls, port: name, metrics: &metrics };
                    Box::pin(secured.serve(stream, &slot, activity, stop)).await
                }
            };
            if let Some(reason) = closed {
                ConnectionClosed { port: name, reason: reason.as_str() }.emit(&metrics);
            }
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
    metrics.connections.with_label_values(&[name]).set(0);
}

/// How a port that speaks TLS serves a connection.
struct Secured<'a> {
    service: &'a Service,
    tls: &'a ServerTls,
    port: &'static str,
    metrics: &'a Metrics,
}

impl Secured<'_> {
    /// Handshake, then requests. Says why, if we ended it.
    async fn serve(
        &self,
        stream: TcpStream,
        slot: &Slot,
        activity: Arc<Activity>,
        stop: watch::Receiver<bool>,
    ) -> Option<CloseReason> {
        let terms = Terms { tls: self.tls, timeouts: &self.service.timeouts, refusal: self.service.refusal };
        match terms.shake(stream, slot, &activity, stop.clone()).await {
            Ok(stream) => self.service.serve(stream, slot, activity, stop).await,
            Err(Ended::Closed(reason)) => Some(reason),
            Err(Ended::Failed(reason, error)) => {
                HandshakeFailed { port: self.port, reason, error: &error }.emit(self.metrics);
                None
            }
            Err(Ended::Gone) => None,
        }
    }
}

/// Answers go out at once, not when more of them have gathered.
fn prompt(stream: TcpStream) -> TcpStream {
    // Fails on a connection that is gone, which shows when it is read.
    let _ = stream.set_nodelay(true);
    stream
}

/// Failures to accept, logged once in a while.
#[derive(Default)]
struct Failures {
    last_logged: Option<Instant>,
}

impl Failures {
    fn note(&mut self, port: &'static str, error: &io::Error, metrics: &Metrics) {
        let is_logged = self.last_logged.is_none_or(|at| at.elapsed() >= LOG_EVERY);
        if is_logged {
            self.last_logged = Some(Instant::now());
        }
        AcceptFailed { port, error, is_logged }.emit(metrics);
    }
}
