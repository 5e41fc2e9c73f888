//! Which form is told, and that lines stay whole.
#![allow(clippy::unwrap_used)]

use super::*;
use serde_json::Value;
use std::time::Instant;

/// What was written, for the test to read.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        // As a pipe may: never more than a few bytes at once.
        let taken = bytes.len().min(7);
        self.0.lock().unwrap().extend_from_slice(&bytes[..taken]);
        std::thread::yield_now();
        Ok(taken)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Written {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

#[test]
fn two_stages_at_once_write_whole_lines_with_their_names() {
    let written = Written::default();
    let console = Console::lines(Box::new(written.clone()));
    std::thread::scope(|scope| {
        for name in ["base-1/sft", "wide-1/sft"] {
            let progress = console.stage(name);
            scope.spawn(move || {
                let mut bar = progress.bar("texts", 200);
                for step in 0..200 {
                    bar.add(1);
                    progress.say(&format!("sentence {step} of {name}"));
                }
            });
        }
    });
    let text = written.text();
    let mut counted = 0;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix('{') {
            let told: Value = serde_json::from_str(&format!("{{{rest}")).unwrap();
            assert!(told["stage"].as_str().unwrap().ends_with("/sft") && told["steps"] == 200, "{line}");
            assert!(told["per_s"].as_f64().unwrap() > 0.0 && told["eta_s"].is_number(), "{line}");
            counted += 1;
            continue;
        }
        let (stage, sentence) = line.split_once(": ").unwrap();
        assert!(sentence.starts_with("sentence ") && sentence.ends_with(stage), "{line}");
    }
    assert_eq!((counted, text.lines().count()), (20, 420));
}

#[test]
fn a_resumed_bar_counts_its_rate_from_where_it_went_on() {
    let console = Console::lines(Box::new(Written::default()));
    let mut bar = console.stage("sft").bar("steps", 1_000_000_000);
    let before = Instant::now();
    bar.begin_at(999_999_000);
    let after = Instant::now();
    assert_eq!(bar.eta_s(), None);
    let (least, left) = loop {
        let least = after.elapsed();
        bar.set(999_999_010);
        // A clock that stood still would say nothing.
        if !least.is_zero() {
            break (least.as_secs_f64(), bar.eta_s().unwrap());
        }
    };
    // 10 of the last 1,000 are done: 99 times as long as that took, not a millionth.
    assert!((99.0 * least..=99.0 * before.elapsed().as_secs_f64()).contains(&left), "{left}");
}
