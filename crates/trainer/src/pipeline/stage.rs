//! A stage's folder is named by the hash of what goes in; a finished stage is not run again.

use super::PipelineError;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Written into a stage's folder when it is complete.
const DONE: &str = "done";

/// Runs `work` in `<root>/<name>-<hash>` unless that folder is complete; returns the folder.
///
/// An interrupted stage finds its folder as it left it and may go on from there.
pub fn stage(
    root: &Path,
    name: &str,
    hash: &str,
    work: impl FnOnce(&Path) -> Result<(), PipelineError>,
) -> Result<PathBuf, PipelineError> {
    let folder = root.join(format!("{name}-{hash}"));
    if folder.join(DONE).is_file() {
        eprintln!("{name}: done before ({})", folder.display());
        return Ok(folder);
    }
    let io = |error| PipelineError::File { path: folder.display().to_string(), message: format!("{error}") };
    std::fs::create_dir_all(&folder).map_err(|error: std::io::Error| io(error))?;
    eprintln!("{name}: running");
    let started = Instant::now();
    work(&folder)?;
    let seconds = started.elapsed().as_secs_f64();
    std::fs::write(folder.join(DONE), format!("{seconds:.1} s\n")).map_err(io)?;
    eprintln!("{name}: {seconds:.1} s");
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finished_stage_is_not_run_again_but_a_failed_one_is() {
        let root = tempfile::tempdir().expect("tempdir");
        let mut runs = 0;
        for (fail, expected) in [(true, 1), (false, 2), (false, 2)] {
            let result = stage(root.path(), "s", "h", |_| {
                runs += 1;
                if fail { Err(PipelineError::Recipe { path: "p".into(), message: "m".into() }) } else { Ok(()) }
            });
            assert_eq!((result.is_err(), runs), (fail, expected));
        }
    }
}
