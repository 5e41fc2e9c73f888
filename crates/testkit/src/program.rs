//! The programs that a build makes, found beside the running test.

use crate::places::in_repository;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::SystemTime;

/// The service.
pub static TAIJI: LazyLock<String> = LazyLock::new(|| program("taiji", &["taiji", "taiji_export"]));
/// The trainer.
pub static TRAINER: LazyLock<String> =
    LazyLock::new(|| program("taiji-trainer", &["taiji", "taiji_export", "taiji_trainer"]));

/// Path of a program of this build, made of these libraries of ours. Ends the test where the program is missing or older than
/// a source it was made of: cargo builds the programs of a test's own package only, and a test must not judge yesterday's.
fn program(name: &str, libraries: &[&str]) -> String {
    let test = std::env::current_exe().expect("the running test");
    // A test runs in `deps`, programs lie one above.
    let deps = test.parent().expect("target/release/deps");
    let path = deps.parent().expect("target/release").join(name);
    assert!(path.is_file(), "{} is not there: run make build", path.display());
    if let Some(source) = newer_source(&path, deps, libraries, &in_repository("")) {
        panic!("{} is older than {}: run make build", path.display(), source.display());
    }
    path.display().to_string()
}

/// A source that changed after the program was made. The compiler lists the sources of each library and program beside it.
fn newer_source(program: &Path, deps: &Path, libraries: &[&str], root: &Path) -> Option<PathBuf> {
    let made = changed(program).expect("the program");
    let lists = lists(program, deps, libraries);
    assert!(lists.len() > libraries.len(), "{} does not say what it was made of: run make build", program.display());
    let sources = lists.iter().flat_map(|list| sources(list)).map(|source| root.join(source));
    // A list of an older build may name files that are gone.
    sources.into_iter().find(|source| changed(source).is_some_and(|time| time > made))
}

/// The compiler's lists of a program and of its libraries. What was built for tests has a list, too, and no `.rlib`.
fn lists(program: &Path, deps: &Path, libraries: &[&str]) -> Vec<PathBuf> {
    let inode = std::fs::metadata(program).expect("the program").ino();
    let entries = std::fs::read_dir(deps).expect("deps").map(|entry| entry.expect("entry").path());
    let list = |path: PathBuf| {
        let name = path.file_name()?.to_str()?;
        if let Some(stem) = name.strip_prefix("lib").and_then(|rest| rest.strip_suffix(".rlib")) {
            let library = stem.rsplit_once('-')?.0;
            return libraries.contains(&library).then(|| deps.join(format!("{stem}.d")));
        }
        // The program is a link to the compiler's output.
        let is_ours = path.extension().is_none() && std::fs::metadata(&path).ok()?.ino() == inode;
        is_ours.then(|| path.with_extension("d"))
    };
    entries.filter_map(list).filter(|list| list.is_file()).collect()
}

/// The files of a list of make's rules, from the root of the repository; a space in a name is written `\ `.
fn sources(list: &Path) -> Vec<PathBuf> {
    let text = std::fs::read_to_string(list).unwrap_or_else(|error| panic!("{}: {error}", list.display()));
    let rules = text.lines().filter_map(|line| line.split_once(": "));
    let names = rules.flat_map(|(_, sources)| {
        let sources = sources.replace("\\ ", "\0");
        sources.split(' ').map(|name| name.replace('\0', " ")).collect::<Vec<_>>()
    });
    names.filter(|name| !name.is_empty()).map(PathBuf::from).collect()
}

fn changed(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn audit_14_a_program_must_be_as_new_as_every_source_it_was_made_of() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir(path("deps")).expect("folder");
        for name in ["lib.rs", "a part.rs", "main.rs", "tests.rs"] {
            std::fs::write(path(name), name).expect("write");
        }
        for (list, text) in [
            ("deps/ours-1.d", "deps/libours-1.rlib: lib.rs a\\ part.rs\n\nlib.rs:\n"),
            ("deps/ours-2.d", "deps/ours-2: lib.rs tests.rs\n"),
            ("deps/program-3.d", "deps/program-3: main.rs\n"),
        ] {
            std::fs::write(path(list), text).expect("write");
        }
        std::fs::write(path("deps/libours-1.rlib"), "").expect("write");
        std::fs::write(path("deps/program-3"), "").expect("write");
        std::fs::hard_link(path("deps/program-3"), path("program")).expect("link");
        let newer = || newer_source(&path("program"), &path("deps"), &["ours"], folder.path());
        let touch = |name: &str, seconds: u64| {
            let file = std::fs::File::options().write(true).open(path(name)).expect("open");
            file.set_modified(SystemTime::now() + std::time::Duration::from_secs(seconds)).expect("time");
        };
        touch("program", 10);
        touch("tests.rs", 60);
        assert_eq!(newer(), None, "what only tests compile is no part of it");
        touch("a part.rs", 60);
        assert_eq!(newer(), Some(path("a part.rs")));
        touch("program", 90);
        touch("main.rs", 120);
        assert_eq!(newer(), Some(path("main.rs")));
    }
}
