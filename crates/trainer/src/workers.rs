//! A run of a recipe begins once more without candle's worker threads, and keeps the memory it has had.
//!
//! candle keeps workers beside rayon's, one a core, for sums and products of single values; whoever calls waits for all of them,
//! spinning. Two arms of one thread each, or one run on a busy machine, lose a third of their speed to that. How many there are is
//! read from the environment alone, once, so what `--jobs` and `threads` say would not hold without it.
//!
//! Every step allocates the tensors of the one before. Given back to the system in between, as the allocator does after some milliseconds,
//! each of their pages is cleared again: a fifth of a step of SmolLM2.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// How many threads candle's own workers are, the caller among them.
const KEY: &str = "CANDLE_NUM_THREADS";
/// When memory that was freed goes back to the system: never. What the environment says counts.
const PURGE: &str = "MIMALLOC_PURGE_DELAY";

/// Comes back where the environment says how many there are, or where the program cannot begin again.
pub(crate) fn begin_without_candle_workers() {
    if std::env::var_os(KEY).is_some() {
        return;
    }
    let purge = std::env::var_os(PURGE).unwrap_or_else(|| "-1".into());
    let error = match std::env::current_exe() {
        Ok(program) => Command::new(program).args(std::env::args_os().skip(1)).env(KEY, "1").env(PURGE, purge).exec(),
        Err(error) => error,
    };
    eprintln!(
        "taiji-trainer: cannot begin again with {KEY}=1 ({error}); set it, or training is slower on a busy machine"
    );
}
