//! The programs that a build makes, found beside the running test.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::SystemTime;

/// The service.
pub static TAIJI: LazyLock<String> = LazyLock::new(|| program("taiji"));
/// The trainer.
pub static TRAINER: LazyLock<String> = LazyLock::new(|| program("taiji-trainer"));

/// Path of a program of this build. Ends the test where the program is missing or older than a source it was made of: cargo
/// builds the programs of a test's own package only, and a test must not judge yesterday's.
pub fn program(name: &str) -> String {
    let test = std::env::current_exe().expect("the running test");
    // A test runs in `deps`, programs lie one above.
    let folder = test.parent().and_then(Path::parent).expect("target/release/deps");
    let path = folder.join(name);
    assert!(path.is_file(), "{} is not there: run make build", path.display());
    if let Some(source) = newer_source(&path) {
        panic!("{} is older than {}: run make build", path.display(), source.display());
    }
    path.display().to_string()
}

/// A source that changed after the program was made. Cargo lists the sources in a file beside it.
fn newer_source(program: &Path) -> Option<PathBuf> {
    let made = changed(program)?;
    let listed = program.with_extension("d");
    let text = std::fs::read_to_string(&listed).unwrap_or_else(|error| panic!("{}: {error}", listed.display()));
    let sources = sources(&text);
    assert!(!sources.is_empty(), "{} lists no source", listed.display());
    sources.into_iter().find(|source| changed(source).is_none_or(|time| time > made))
}

/// The files after the colon of make's rule; a space in a name is written `\\ `.
fn sources(rule: &str) -> Vec<PathBuf> {
    let Some((_, sources)) = rule.split_once(": ") else { return Vec::new() };
    let names = sources.trim().replace("\\ ", "\0");
    names.split(' ').filter(|name| !name.is_empty()).map(|name| PathBuf::from(name.replace('\0', " "))).collect()
}

fn changed(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_as_new_as_every_source_it_was_made_of() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = |name: &str| folder.path().join(name);
        for name in ["a source.rs", "other.rs", "program"] {
            std::fs::write(path(name), name).expect("write");
        }
        let rule = format!("{0}/program: {0}/a\\ source.rs {0}/other.rs\n", folder.path().display());
        std::fs::write(path("program.d"), rule).expect("write");
        assert_eq!(newer_source(&path("program")), None);
        let later = SystemTime::now() + std::time::Duration::from_secs(60);
        let file = std::fs::File::options().write(true).open(path("a source.rs")).expect("open");
        file.set_modified(later).expect("time");
        assert_eq!(newer_source(&path("program")), Some(path("a source.rs")));
    }
}
