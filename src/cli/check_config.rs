//! `taiji check-config`: reads every layer and says what is wrong, without opening anything.

use super::CommandError;
use crate::config;
use clap::Args;
use std::path::PathBuf;

/// Flags of `check-config`.
#[derive(Debug, Args)]
pub(crate) struct CheckConfigArgs {
    /// Settings file (TOML).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the commented defaults instead.
    #[arg(long)]
    print_defaults: bool,
}

pub(super) fn run(args: CheckConfigArgs) -> Result<(), CommandError> {
    if args.print_defaults {
        print!("{}", config::DEFAULT_TOML);
        return Ok(());
    }
    config::load(args.config.as_deref(), std::env::vars(), &[])
        .map_err(|errors| CommandError::Usage(errors.to_string()))?;
    println!("configuration is valid");
    Ok(())
}
