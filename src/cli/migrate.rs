//! `taiji migrate`: brings a Redis namespace to this program's layout, closes the way back to earlier programs, or says what
//! that would take.

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
    /// plan: say what would be done; apply: do it, earlier programs go on beside it; check: fail when there is something to
    /// do; clean: remove what earlier builds left, after which they cannot come back.
    #[arg(value_enum, default_value = "plan")]
    action: Action,
    /// With clean: no process of taiji 0.1.0 runs on this Redis any more, under any namespace.
    #[arg(long = "no-0.1.0-left")]
    none_of_0_1_0_left: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Action {
    Plan,
    Apply,
    Check,
    Clean,
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
    runtime.block_on(migrate(&settings, &args))
}

async fn migrate(settings: &Settings, args: &MigrateArgs) -> Result<(), CommandError> {
    let options = opening::redis_options(settings);
    let migration = Migration::look(opening::redis_address(settings)?, &options).await.map_err(unavailable)?;
    if args.action == Action::Clean {
        return clean(&migration, args.none_of_0_1_0_left).await;
    }
    if migration.steps.is_empty() {
        println!("up to date");
    }
    for step in &migration.steps {
        println!("{step}");
    }
    match args.action {
        Action::Check if !migration.steps.is_empty() => {
            Err(CommandError::Unavailable("the store is not up to date; run `taiji migrate … apply`".into()))
        }
        Action::Plan if !migration.steps.is_empty() => {
            println!("run `taiji migrate … apply` to do this");
            Ok(())
        }
        Action::Plan => plan_cleaning(&migration, args.none_of_0_1_0_left).await,
        Action::Apply if !migration.steps.is_empty() => {
            migration.apply().await.map_err(unavailable)?;
            println!("done");
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Says what `clean` would do.
async fn plan_cleaning(migration: &Migration, none_left: bool) -> Result<(), CommandError> {
    let cleaning = migration.look_for_leftovers(none_left).await.map_err(unavailable)?;
    if cleaning.steps.is_empty() {
        return Ok(());
    }
    println!("`taiji migrate … clean` would, once nothing older may come back:");
    for step in &cleaning.steps {
        println!("  {step}");
    }
    for objection in &cleaning.objections {
        println!("  but not now: {objection}");
    }
    Ok(())
}

async fn clean(migration: &Migration, none_left: bool) -> Result<(), CommandError> {
    let cleaning = migration.look_for_leftovers(none_left).await.map_err(unavailable)?;
    if !cleaning.objections.is_empty() {
        return Err(CommandError::Unavailable(format!("nothing was removed: {}", cleaning.objections.join("; "))));
    }
    for step in &cleaning.steps {
        println!("{step}");
    }
    migration.clean(&cleaning).await.map_err(unavailable)?;
    println!("{}", if cleaning.steps.is_empty() { "nothing to remove" } else { "done" });
    Ok(())
}

fn unavailable(error: StoreError) -> CommandError {
    CommandError::Unavailable(error.to_string())
}
