//! `taiji-loadtest figures`: what benches in other languages write through.

use std::io::Write;
use std::process::{Command, Stdio};
use testkit::process::run_with;

const PROGRAM: &str = env!("CARGO_BIN_EXE_taiji-loadtest");
const GOOD: &str = r#"{"name":"x","commit":"0123456789abcdef0123456789abcdef01234567","machine":"m","date":"2026-11-28","command":"make x",
    "figures":[{"name":"a","value":1,"unit":"ms","low":1,"high":2.5,"n":3}]}"#;

fn write(file: &str, text: &str) -> (Option<i32>, String) {
    let mut command = Command::new(PROGRAM);
    command.args(["figures", "write", file]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("spawn");
    child.stdin.take().expect("stdin").write_all(text.as_bytes()).expect("write");
    let output = child.wait_with_output().expect("end");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn good_figures_are_kept_and_bad_ones_are_not() {
    let folder = tempfile::tempdir().expect("folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    assert_eq!(write(&path("x.json"), GOOD), (Some(0), String::new()));
    for (file, text, word) in [
        ("x.json", GOOD.replace("01234567\"", "-dirty\""), "40 hex digits"),
        ("y.json", GOOD.to_string(), "belongs into x.json"),
        ("x.json", GOOD.replace("\"n\":3", "\"n\":0"), "n is 0"),
        ("x.json", "{".to_string(), "wanted is"),
    ] {
        let (code, said) = write(&path(file), &text);
        assert!(code == Some(64) && said.contains(word), "{word}: {code:?} {said}");
    }
    let all = run_with(PROGRAM, &["figures", "check", &folder.path().display().to_string()], &[]).expect_code(0);
    assert!(all.stdout.contains("1 files of figures are good"), "the good one still stands: {}", all.stdout);

    std::fs::write(path("y.json"), GOOD).expect("write");
    let ended = run_with(PROGRAM, &["figures", "check", &folder.path().display().to_string()], &[]).expect_code(64);
    assert!(ended.stderr.contains("y.json: name") && ended.stderr.contains("1 of the files"), "{}", ended.stderr);
}
