//! The thread that bounds what a power loss costs: it syncs the journal every `flush_interval`.
//!
//! A thread of its own and not a tokio task: a sync blocks for milliseconds, and a store may be opened outside a runtime.

use fjall::{Database, PersistMode};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Runs until dropped; the drop waits for the thread and syncs once more.
pub struct Flusher {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Flusher {
    /// Starts the thread.
    pub fn start(database: Database, interval: Duration) -> std::io::Result<Flusher> {
        let (stop, stopped) = channel::<()>();
        let thread = std::thread::Builder::new().name("store-flush".into()).spawn(move || {
            let mut stopping = false;
            while !stopping {
                stopping = stopped.recv_timeout(interval) != Err(RecvTimeoutError::Timeout);
                if let Err(error) = database.persist(PersistMode::SyncData) {
                    // The engine refuses every write from here on, so callers learn of it, too.
                    tracing::error!(%error, "store cannot be synced to disk; check the disk and restart");
                    return;
                }
            }
        })?;
        Ok(Flusher { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the store's flush thread panicked");
        }
    }
}
