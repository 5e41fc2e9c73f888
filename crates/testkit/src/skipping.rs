//! Tests that are left out say so, in one place.

use std::io::Write;
use std::panic::Location;

/// Says on standard error that the running test is left out, and why; `make test` counts and names what was left out, by the
/// file of `TAIJI_SKIPS`. The caller returns.
#[track_caller]
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    // With one thread tests run on the main one, which has no test's name.
    let test = match thread.name() {
        Some(name) if name != "main" => name.to_string(),
        _ => {
            let caller = Location::caller();
            format!("{}:{}", caller.file(), caller.line())
        }
    };
    let line = format!("skipped: {test}: {}\n", reason.trim().replace('\n', " "));
    // The process's own stderr: what `eprintln!` writes is hidden when a test passes.
    std::io::stderr().write_all(line.as_bytes()).expect("stderr");
    let Some(list) = std::env::var_os("TAIJI_SKIPS").filter(|list| !list.is_empty()) else { return };
    let mut file = std::fs::File::options().create(true).append(true).open(&list);
    let file = file.as_mut().unwrap_or_else(|error| panic!("TAIJI_SKIPS={}: {error}", list.display()));
    // One write, so that lines of other processes stay whole.
    file.write_all(line.as_bytes()).expect("the list of skips");
}
