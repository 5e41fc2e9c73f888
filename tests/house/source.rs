//! Rust sources as these tests read them: without comments, and without what only tests compile.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// One source file.
pub struct Source {
    /// From the folder that was read, `refresh/user.rs`.
    pub path: PathBuf,
    /// Code lines; comments and test code are empty lines, so that numbers stay.
    pub lines: Vec<String>,
}

/// Every `.rs` file below a folder, test code left out.
pub fn sources(folder: &Path) -> Vec<Source> {
    let mut files = Vec::new();
    find(folder, &mut files);
    files.sort();
    let mut tests = BTreeSet::new();
    let mut all = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("source");
        let lines = code_lines(&text, |module| {
            let inside = module_folder(&file).join(module);
            tests.insert(inside.with_extension("rs"));
            tests.insert(inside);
        });
        all.push((file, lines));
    }
    all.retain(|(file, _)| !file.ancestors().any(|part| tests.contains(part)));
    let relative = |file: PathBuf| file.strip_prefix(folder).expect("below").to_path_buf();
    all.into_iter().map(|(file, lines)| Source { path: relative(file), lines }).collect()
}

/// Every file of these endings below a folder; hidden ones, build output and work folders left out.
pub fn find_files(folder: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("folder").map(|entry| entry.expect("entry").path()) {
        let name = entry.file_name().expect("name").to_string_lossy().into_owned();
        if name.starts_with('.') || name == "target" {
            continue;
        }
        if entry.is_dir() {
            found.extend(find_files(&entry, endings));
        } else if endings.iter().any(|ending| name.ends_with(ending)) {
            found.push(entry);
        }
    }
    found
}

fn find(folder: &Path, files: &mut Vec<PathBuf>) {
    files.extend(find_files(folder, &[".rs"]));
}

/// Where the modules that a file declares lie.
fn module_folder(file: &Path) -> PathBuf {
    match file.file_name().and_then(|name| name.to_str()) {
        Some("mod.rs" | "lib.rs" | "main.rs") => file.parent().expect("folder").to_path_buf(),
        _ => file.with_extension(""),
    }
}

/// Lines without comments and without items under `#[cfg(test)]`; `on_test_module` hears of modules that are declared there.
/// It counts on rustfmt: an item ends with a line of its own indentation.
fn code_lines(text: &str, mut on_test_module: impl FnMut(&str)) -> Vec<String> {
    let mut skipped: Option<usize> = None;
    let mut lines = Vec::new();
    for line in text.lines() {
        let (code, indent) = (line.trim(), line.len() - line.trim_start().len());
        if skipped.is_none() && code == "#[cfg(test)]" {
            skipped = Some(indent);
            lines.push(String::new());
            continue;
        }
        if let Some(start) = skipped {
            lines.push(String::new());
            let is_attribute = code.starts_with("#[");
            if indent == start
                && !is_attribute
                && (code.ends_with(';') || code.starts_with('}') || code.ends_with("{}"))
            {
                skipped = None;
                if let Some(module) = code.split("mod ").nth(1).and_then(|rest| rest.strip_suffix(';')) {
                    on_test_module(module);
                }
            }
            continue;
        }
        lines.push(if code.starts_with("//") { String::new() } else { line.to_string() });
    }
    lines
}

#[test]
fn what_only_tests_compile_is_left_out() {
    let text = "use a;\n// note\n#[cfg(test)]\nmod tests;\n#[cfg(test)]\n#[allow(x)]\npub mod inner {\n    fn f() {\n    }\n}\nfn g() {}\n";
    let mut modules = Vec::new();
    let lines = code_lines(text, |module| modules.push(module.to_string()));
    let kept: Vec<&str> = lines.iter().map(String::as_str).filter(|line| !line.is_empty()).collect();
    assert_eq!(kept, ["use a;", "fn g() {}"]);
    assert_eq!(modules, ["tests"]);
}
