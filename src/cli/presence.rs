//! Tells the store, again and again, that this process lives (`ns:member:<id>`), and takes it back at the end.
//!
//! Caller: `serve`. `taiji migrate clean` looks at these entries.

use super::wiring::{Parts, wait};
use crate::config::Settings;
use crate::store::{MEMBER_RENEWAL_MS, Member, StoreError};
use crate::telemetry::Readiness;
use crate::telemetry::events::StoreCallFailed;
use tokio::sync::watch;

/// Held while the store is of a layout that this program does not know: somebody migrated it under us.
const LATCH: &str = "layout";

/// Runs until `stopped` turns true. A store that is away is tried again at the next turn.
pub(super) fn keep_telling(
    parts: &Parts,
    settings: &Settings,
    readiness: &Readiness,
    mut stopped: watch::Receiver<bool>,
) -> impl Future<Output = Result<(), StoreError>> + use<> {
    let (store, live) = (parts.store.clone(), parts.live.clone());
    let (metrics, readiness) = (parts.metrics.clone(), readiness.clone());
    let roles: Vec<String> = settings.server.roles.iter().map(|role| format!("{role:?}").to_lowercase()).collect();
    let (id, roles) = (format!("{:016x}", rand::random::<u64>()), roles.join(","));
    async move {
        loop {
            let member = Member { id: id.clone(), roles: roles.clone(), epochs: vec![live.view().epoch()] };
            match store.announce(&member).await {
                Ok(()) => readiness.release(LATCH),
                Err(error) => {
                    StoreCallFailed { operation: "announce", error: &error }.emit(&metrics);
                    if matches!(error, StoreError::Open { .. }) {
                        readiness.hold(LATCH, error.to_string());
                    }
                }
            }
            if !wait(MEMBER_RENEWAL_MS, &mut stopped).await {
                break;
            }
        }
        if let Err(error) = store.leave(&id).await {
            StoreCallFailed { operation: "leave", error: &error }.emit(&metrics);
        }
        Ok(())
    }
}
