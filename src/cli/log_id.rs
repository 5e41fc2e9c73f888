//! `taiji log-id`: a user's id as the log shows it, so that lines about one user can be found.

use super::{CommandError, load_settings};
use crate::log_id::{LogId, set_key};
use clap::Args;
use std::path::PathBuf;

/// Flags of `log-id`.
#[derive(Debug, Args)]
pub(crate) struct LogIdArgs {
    /// Settings file (TOML) of the service, for its telemetry.id_key.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The user.
    user: String,
}

pub(super) fn run(args: LogIdArgs) -> Result<(), CommandError> {
    let key = load_settings(args.config.as_deref(), &[])?.telemetry.id_key;
    if key.is_empty() {
        let message =
            "telemetry.id_key is not set: each process hashes ids with a key made at its start; set one key for all";
        return Err(CommandError::Usage(message.to_string()));
    }
    set_key(&key);
    println!("{}", LogId(&args.user));
    Ok(())
}
