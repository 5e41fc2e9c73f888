//! What a run tells while it runs: lines for programs, bars for people, and a whole terminal after Ctrl-C.

use crate::recipe::{arguments, ensure_encoder_checkpoint, run_in, set, tiny, write};
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use testkit::TRAINER;

#[test]
fn two_stages_at_once_tell_whole_lines_with_their_names() {
    ensure_encoder_checkpoint();
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = tiny();
    set(&mut recipe, "sft", "max_steps = 40\nepochs = 20\nlog_every = 1\nvalidate_every = 20");
    let recipe = write(folder.path(), &recipe);
    let told = run_in(&recipe, folder.path(), &["--jobs", "2", "--until", "index"]).expect_code(0).stderr;
    let mut counted = BTreeSet::new();
    for line in told.lines() {
        let Some(json) = line.strip_prefix('{') else {
            let (stage, words) = line.split_once(": ").unwrap_or_else(|| panic!("{line:?}"));
            assert!(!stage.contains([' ', '"']) && !words.is_empty() && !words.contains('{'), "{line}");
            continue;
        };
        let line: Value = serde_json::from_str(&format!("{{{json}")).unwrap_or_else(|error| panic!("{error}: {json}"));
        assert!(line["step"].as_u64() <= line["steps"].as_u64() && line["steps"].is_number(), "{line}");
        counted.insert(line["stage"].as_str().unwrap().to_string());
        if line["stage"] == "sft" {
            for name in ["loss", "learning_rate", "grad_norm", "num_tokens", "epoch", "tokens_per_s", "eta_s"] {
                assert!(line[name].is_number(), "{name} in {line}");
            }
            let validated = line["eval_loss"].is_number() && line["eval_mean_token_accuracy"].is_number();
            assert_eq!(validated, line["step"].as_u64().unwrap().is_multiple_of(20), "{line}");
        }
    }
    assert_eq!(counted, BTreeSet::from(["codebook", "index", "sft"].map(str::to_string)), "{told}");
}

#[test]
fn a_run_has_no_worker_threads_of_candle() {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = tiny();
    set(&mut recipe, "sft", "max_steps = 400\nepochs = 200\nlog_every = 1");
    let recipe = write(folder.path(), &recipe);
    let mut command = Command::new(&*TRAINER);
    command.args(arguments(&recipe, folder.path(), &["--until", "sft"])).env_remove("CANDLE_NUM_THREADS");
    let mut run = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(run.stderr.take().unwrap()).lines().map(Result::unwrap);
    let first = lines.find(|line| line.contains("tokens_per_s")).expect("a step");
    let threads = std::fs::read_dir(format!("/proc/{}/task", run.id())).unwrap();
    let names: Vec<String> =
        threads.map(|thread| std::fs::read_to_string(thread.unwrap().path().join("comm")).unwrap()).collect();
    run.kill().unwrap();
    run.wait().unwrap();
    assert!(names.len() > 1 && names.iter().all(|name| !name.starts_with("candle")), "{names:?} after {first}");
}

/// Runs a recipe on a terminal of its own, sends `keys` once `seen` is to be seen, and returns the exit code and all that was shown.
fn on_a_terminal(recipe: &Path, folder: &Path, more: &[&str], seen: &str, keys: &[u8]) -> Option<(i32, String)> {
    let words = arguments(recipe, folder, more);
    let line =
        [vec![TRAINER.clone()], words].concat().iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--flush", "--command", &line, "/dev/null"]);
    let spawned =
        script.env("TERM", "xterm").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let Ok(mut child) = spawned else {
        testkit::skip("a terminal: it takes the program script (util-linux)");
        return None;
    };
    let (mut shown, mut sent) = (Vec::new(), keys.is_empty());
    let mut out = child.stdout.take().unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut buffer = [0; 4096];
    // Read until the terminal is closed.
    while let Ok(count) = out.read(&mut buffer) {
        if count == 0 {
            break;
        }
        shown.extend_from_slice(&buffer[..count]);
        if !sent && String::from_utf8_lossy(&shown).contains(seen) {
            input.write_all(keys).unwrap();
            input.flush().unwrap();
            sent = true;
        }
    }
    assert!(sent, "{seen} was never shown: {}", String::from_utf8_lossy(&shown));
    let status = child.wait().unwrap();
    Some((status.code().unwrap(), String::from_utf8(shown).unwrap()))
}

#[test]
fn a_terminal_shows_bars_and_is_whole_after_ctrl_c() {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = tiny();
    set(
        &mut recipe,
        "sft",
        "epochs = 20000\nmax_steps = 100000\nlog_every = 1\nvalidate_every = 0\ncheckpoint_every = 20",
    );
    let recipe = write(folder.path(), &recipe);
    let run = |more: &[&str], seen: &str, keys: &[u8]| on_a_terminal(&recipe, folder.path(), more, seen, keys);
    let Some((code, shown)) = run(&["--until", "sft"], "tokens/s", b"\x03") else { return };
    assert_eq!(code, 130, "{shown}");
    for part in ["sft", "/100000 steps, loss ", "tokens/s", " left", "world: running"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(!shown.contains('{'), "no JSON for people: {shown}");
    // The bar's line is cleared, the message stands on one of its own, and the cursor is there.
    let (_, last) = shown.rsplit_once("\x1b[2K").expect("the bar is taken away");
    assert!(
        last.trim_start_matches(['\r', '\x1b', '[', 'A', 'J', '0']).starts_with("taiji-trainer: interrupted"),
        "{last:?}"
    );
    assert!(last.ends_with("\r\n") && last.matches('\n').count() == 1, "{last:?}");
    assert_eq!(shown.matches("\x1b[?25l").count(), shown.matches("\x1b[?25h").count(), "the cursor is shown again");
}
