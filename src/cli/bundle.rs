//! `taiji bundle check`: everything `serve` checks about a bundle, without serving.

use super::CommandError;
use crate::bundle::{BundleError, LoadOptions, Manifest, load};
use clap::Subcommand;
use std::path::PathBuf;

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
}

pub(super) fn run(command: BundleCommand) -> Result<(), CommandError> {
    let BundleCommand::Check { bundle, checksums_only } = command;
    let unavailable = |error: BundleError| CommandError::Unavailable(error.to_string());
    let manifest = Manifest::read(&bundle).map_err(unavailable)?;
    manifest.verify(&bundle).map_err(unavailable)?;
    if !checksums_only {
        load(&bundle, &LoadOptions::default()).map_err(unavailable)?;
    }
    println!(
        "bundle {} epoch {} space {}: {} files are intact{}",
        manifest.name,
        manifest.epoch,
        manifest.space,
        manifest.files.len(),
        if checksums_only { "" } else { ", models load, parity gate passed" }
    );
    Ok(())
}
