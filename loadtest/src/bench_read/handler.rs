//! The smallest handler as a process of its own, out of this program. In: a Redis. Out: its address, its process; killed when dropped.

use super::BenchError;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

pub(super) struct Handler {
    child: Child,
    pub(super) address: String,
}

impl Handler {
    pub(super) fn start(redis_url: &str) -> Result<Handler, BenchError> {
        let failed = |error: std::io::Error| BenchError::Handler(error.to_string());
        let program = std::env::current_exe().map_err(failed)?;
        let arguments = ["smallest", "--redis", redis_url];
        let child = Command::new(program).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut handler = Handler { child: child.map_err(failed)?, address: String::new() };
        let mut line = String::new();
        if let Some(stdout) = handler.child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).map_err(failed)?;
        }
        let address = line.trim().strip_prefix("listening on ");
        handler.address = address.ok_or_else(|| BenchError::Handler("it ended before it listened".into()))?.to_string();
        Ok(handler)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
