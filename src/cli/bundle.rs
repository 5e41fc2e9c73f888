//! `taiji bundle check`: everything `serve` checks about a bundle, without serving. `fetch`, `rewrite`: see the commands.

use super::{CommandError, IndexArgs, bundle_fetch};
use crate::bundle::{BundleError, LoadOptions, Manifest, load, rewrite};
use clap::Subcommand;
use std::path::{Path, PathBuf};

/// Commands about a bundle.
#[derive(Debug, Subcommand)]
pub(crate) enum BundleCommand {
    /// Verify checksums, load the models, run the parity gate.
    #[command(after_help = "Example:\n  taiji bundle check --bundle models/demo/1")]
    Check {
        /// Folder that holds manifest.json.
        #[arg(long, value_name = "DIR")]
        bundle: PathBuf,
        /// Only compare files with their checksums.
        #[arg(long)]
        checksums_only: bool,
    },
    /// Complete a bundle: fetch the packages its manifest names and export the models in them.
    #[command(after_help = "Example:\n  taiji bundle fetch --bundle models/demo/1")]
    Fetch {
        /// Folder that holds manifest.json.
        #[arg(long, value_name = "DIR")]
        bundle: PathBuf,
        #[command(flatten)]
        index: IndexArgs,
    },
    /// Convert a bundle of format 1 to format 2: each generation gets a manifest of its own. No other file changes.
    #[command(after_help = "Example:\n  taiji bundle rewrite --bundle models/mine/1")]
    Rewrite {
        /// Folder that holds manifest.json.
        #[arg(long, value_name = "DIR")]
        bundle: PathBuf,
    },
}

pub(super) fn run(command: BundleCommand) -> Result<(), CommandError> {
    match command {
        BundleCommand::Check { bundle, checksums_only } => check(&bundle, checksums_only),
        BundleCommand::Fetch { bundle, index } => bundle_fetch::run(&bundle, &index.source()?),
        BundleCommand::Rewrite { bundle } => {
            let told = match rewrite(&bundle).map_err(unavailable)? {
                true => "is of format 2 now",
                false => "is of format 2 already",
            };
            println!("bundle {} {told}", bundle.display());
            Ok(())
        }
    }
}

pub(super) fn unavailable(error: BundleError) -> CommandError {
    CommandError::Unavailable(error.to_string())
}

fn check(bundle: &Path, checksums_only: bool) -> Result<(), CommandError> {
    let manifest = Manifest::read(bundle).map_err(unavailable)?;
    manifest.verify(bundle).map_err(unavailable)?;
    if !checksums_only {
        load(bundle, &LoadOptions::default()).map_err(unavailable)?;
    }
    println!(
        "bundle {} epoch {} space {}: {} files are intact{}",
        manifest.name,
        manifest.epoch,
        manifest.space,
        manifest.listed(bundle).map_err(unavailable)?.keys().filter(|file| bundle.join(file).exists()).count(),
        if checksums_only { "" } else { ", models load, parity gate passed" }
    );
    Ok(())
}
