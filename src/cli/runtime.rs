//! `taiji runtime fetch`: libonnxruntime out of its Python wheel, into the cache folder where the program looks for it.

use super::{CommandError, IndexArgs};
use crate::onnx::runtime::{ORT_VERSION, cached_library};
use crate::packages::{self, FetchError, Source, Wheel};
use clap::Subcommand;
use std::path::Path;

/// Machine, platform tag and sha256 of the wheel that is pinned for it; whatever Python it is for, only the library inside
/// is used.
const WHEELS: [(&str, &str, &str); 1] =
    [("x86_64", "manylinux_2_28_x86_64", "5752bd508126ae7c49894d3b9d2e83f0c3d487319246d04c444b393308d7ad7f")];

/// Commands about ONNX Runtime.
#[derive(Debug, Subcommand)]
pub(crate) enum RuntimeCommand {
    /// Fetch the library into the cache folder, pinned by version and checksum.
    #[command(after_help = "Example:\n  taiji runtime fetch")]
    Fetch {
        #[command(flatten)]
        index: IndexArgs,
    },
}

pub(super) fn run(command: RuntimeCommand) -> Result<(), CommandError> {
    let RuntimeCommand::Fetch { index } = command;
    let Some(library) = cached_library() else {
        return Err(CommandError::Unavailable(
            "neither XDG_CACHE_HOME nor HOME is set: there is no cache folder".into(),
        ));
    };
    if library.is_file() {
        return Ok(());
    }
    let machine = std::env::consts::ARCH;
    let Some((_, platform, sha256)) = WHEELS.iter().find(|(name, _, _)| *name == machine) else {
        let library = library.display();
        let message =
            format!("no ONNX Runtime {ORT_VERSION} is pinned for {machine}: put the library at {library} yourself");
        return Err(CommandError::Unavailable(message));
    };
    fetch(platform, sha256, &index.source()?, &library)
        .map_err(|error| CommandError::Unavailable(error.to_string()))?;
    eprintln!("fetch: {}", library.display());
    Ok(())
}

fn fetch(platform: &'static str, sha256: &str, source: &Source, library: &Path) -> Result<(), FetchError> {
    let wheel = Wheel::new("onnxruntime", ORT_VERSION, sha256)?.on_platform(platform);
    let path = packages::fetch(&wheel, source)?;
    packages::member(&wheel, &path, &format!("onnxruntime/capi/libonnxruntime.so.{ORT_VERSION}"), library)
}
