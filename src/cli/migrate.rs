//! `taiji migrate`: brings a Redis namespace to this program's schema, or says what that would take.

use super::{CommandError, load_settings, opening};
use crate::config::Settings;
use crate::store::StoreError;
use crate::store::redis::{Address, Migration};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Flags of `migrate`.
#[derive(Debug, Args)]
pub(crate) struct MigrateArgs {
    /// Settings file (TOML).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// redis://… or embedded:DIR.
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// plan: say what would be done; apply: do it; check: fail when there is something to do.
    #[arg(value_enum, default_value = "plan")]
    action: Action,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Action {
    Plan,
    Apply,
    Check,
}

pub(super) fn run(args: MigrateArgs) -> Result<(), CommandError> {
    let settings = load_settings(args.config.as_deref(), &[("store.url", &args.store)])?;
    if !Address::is_redis(&settings.store.url) {
        println!("nothing to migrate: an embedded store checks its own schema when it is opened");
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CommandError::Internal(format!("runtime: {error}")))?;
    runtime.block_on(migrate(&settings, args.action))
}

async fn migrate(settings: &Settings, action: Action) -> Result<(), CommandError> {
    let unavailable = |error: StoreError| CommandError::Unavailable(error.to_string());
    let options = opening::redis_options(settings);
    let migration = Migration::look(opening::redis_address(settings)?, &options).await.map_err(unavailable)?;
    if migration.steps.is_empty() {
        println!("up to date");
        return Ok(());
    }
    for step in &migration.steps {
        println!("{step}");
    }
    match action {
        Action::Plan => println!("run `taiji migrate … apply` to do this"),
        Action::Apply => {
            migration.apply().await.map_err(unavailable)?;
            println!("done");
        }
        Action::Check => {
            return Err(CommandError::Unavailable("the store is not up to date; run `taiji migrate … apply`".into()));
        }
    }
    Ok(())
}
