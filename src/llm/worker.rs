//! The engine thread: takes work from the queue until it is closed, and survives whatever a batch does.
//!
//! In: a [`Queue`] and a [`Runner`] (the ONNX session, or a stand-in in tests). Out: answers to the callers, counters.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::LlmError;
use super::batch::{Prompt, Written};
use super::queue::{Queue, Reply, Work};

/// What computes batches; owned by the engine thread alone.
pub trait Runner: Send {
    /// Continues all prompts, in order.
    fn generate(&mut self, prompts: &[Prompt]) -> Result<Vec<Written>, String>;

    /// Log-probabilities of `tokens[from..]`.
    fn score(&mut self, tokens: &[u32], from: usize) -> Result<Vec<f64>, String>;

    /// Called after a failure, before the next work: forget every state that may be half-written.
    fn reset(&mut self);
}

/// Counters since the engine was loaded; all rise only.
#[derive(Debug, Default)]
pub struct LlmStats {
    /// Tokens of prompts read.
    pub prompt_tokens: AtomicU64,
    /// Tokens generated.
    pub new_tokens: AtomicU64,
    /// Batches run, failed ones included.
    pub batches: AtomicU64,
    /// Rows of those batches.
    pub rows: AtomicU64,
    /// Batches that failed.
    pub failed_batches: AtomicU64,
    /// Time spent running batches, microseconds.
    pub busy_us: AtomicU64,
}

/// Runs until the queue is closed.
pub fn work(queue: &Queue, runner: &mut dyn Runner, stats: &LlmStats, max_rows: usize) {
    while let Some(work) = queue.take(max_rows) {
        match work {
            Work::Batch(jobs) => run_batch(jobs, runner, stats),
            Work::Score { tokens, from, reply } => {
                // A caller that has gone meanwhile does not need the answer.
                let scores = guarded(runner, |runner| runner.score(&tokens, from));
                let _ = reply.send(scores.map_err(LlmError::Run));
            }
        }
    }
}

fn run_batch(jobs: Vec<(Prompt, Reply<Written>)>, runner: &mut dyn Runner, stats: &LlmStats) {
    let (prompts, replies): (Vec<Prompt>, Vec<Reply<Written>>) = jobs.into_iter().unzip();
    let started = Instant::now();
    let result = guarded(runner, |runner| {
        let written = runner.generate(&prompts)?;
        match written.len() == prompts.len() {
            true => Ok(written),
            false => Err(format!("{} answers for {} prompts", written.len(), prompts.len())),
        }
    });
    let add = |counter: &AtomicU64, count: usize| counter.fetch_add(count as u64, Ordering::Relaxed);
    add(&stats.batches, 1);
    add(&stats.rows, prompts.len());
    add(&stats.busy_us, started.elapsed().as_micros() as usize);
    match result {
        Ok(written) => {
            add(&stats.prompt_tokens, prompts.iter().map(|prompt| prompt.tokens.len()).sum());
            add(&stats.new_tokens, written.iter().map(|row| row.tokens.len()).sum());
            for (reply, row) in replies.into_iter().zip(written) {
                let _ = reply.send(Ok(row));
            }
        }
        Err(error) => {
            add(&stats.failed_batches, 1);
            tracing::error!(rows = prompts.len(), %error, "llm batch failed");
            for reply in replies {
                let _ = reply.send(Err(LlmError::Run(error.clone())));
            }
        }
    }
}

/// Runs a piece of work; a panic becomes an error, and after either the runner is reset.
fn guarded<T>(runner: &mut dyn Runner, piece: impl FnOnce(&mut dyn Runner) -> Result<T, String>) -> Result<T, String> {
    let result = catch_unwind(AssertUnwindSafe(|| piece(runner)));
    let message = match result {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(message)) => message,
        Err(panic) => match panic.downcast_ref::<&str>() {
            Some(text) => format!("panic: {text}"),
            None => "panic".to_owned(),
        },
    };
    runner.reset();
    Err(message)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::sync::Arc;
    use std::sync::mpsc;

    use tokio::sync::oneshot;

    use super::super::Finish;
    use super::super::queue::Job;
    use super::*;

    /// Echoes prompts; token 1 panics, token 2 fails; token 3 waits for the test's signal.
    struct Echo {
        entered: mpsc::Sender<usize>,
        signal: mpsc::Receiver<()>,
    }

    impl Runner for Echo {
        fn generate(&mut self, prompts: &[Prompt]) -> Result<Vec<Written>, String> {
            self.entered.send(prompts.len()).unwrap();
            for prompt in prompts {
                match prompt.tokens[0] {
                    1 => panic!("on purpose"),
                    2 => return Err("on purpose".to_owned()),
                    3 => self.signal.recv().unwrap(),
                    _ => {}
                }
            }
            let echo = |prompt: &Prompt| Written { tokens: prompt.tokens.clone(), finish: Finish::Stop, logprob: 0.0 };
            Ok(prompts.iter().map(echo).collect())
        }

        fn score(&mut self, tokens: &[u32], from: usize) -> Result<Vec<f64>, String> {
            Ok(vec![0.0; tokens.len() - from])
        }

        fn reset(&mut self) {}
    }

    type Answer = oneshot::Receiver<Result<Written, LlmError>>;

    fn push(queue: &Queue, token: u32) -> Result<Answer, LlmError> {
        let (reply, answer) = oneshot::channel();
        queue.push(Job::Generate(Prompt { tokens: vec![token], max_new_tokens: 1 }, reply))?;
        Ok(answer)
    }

    struct Running {
        queue: Arc<Queue>,
        stats: Arc<LlmStats>,
        thread: std::thread::JoinHandle<()>,
        entered: mpsc::Receiver<usize>,
        signal: mpsc::Sender<()>,
    }

    fn start(limit: usize) -> Running {
        let (queue, stats) = (Arc::new(Queue::new(limit)), Arc::new(LlmStats::default()));
        let ((entered_in, entered), (signal, signal_out)) = (mpsc::channel(), mpsc::channel());
        let (thread_queue, thread_stats) = (queue.clone(), stats.clone());
        let thread = std::thread::spawn(move || {
            work(&thread_queue, &mut Echo { entered: entered_in, signal: signal_out }, &thread_stats, 4);
        });
        Running { queue, stats, thread, entered, signal }
    }

    #[test]
    fn a_panic_or_error_answers_its_batch_and_the_thread_lives_on() {
        let running = start(8);
        for (token, wanted) in [(1, "panic: on purpose"), (2, "on purpose")] {
            let error = push(&running.queue, token).unwrap().blocking_recv().unwrap().unwrap_err();
            assert!(matches!(&error, LlmError::Run(message) if message == wanted), "{error}");
        }
        let written = push(&running.queue, 9).unwrap().blocking_recv().unwrap().unwrap();
        assert_eq!(written.tokens, [9]);
        running.queue.close();
        running.thread.join().unwrap();
        assert_eq!(running.stats.batches.load(Ordering::Relaxed), 3);
        assert_eq!(running.stats.failed_batches.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_full_queue_refuses_and_gone_callers_are_skipped() {
        let running = start(3);
        let held = push(&running.queue, 3).unwrap();
        assert_eq!(running.entered.recv().unwrap(), 1);
        let (kept, gone, also_kept) =
            (push(&running.queue, 9).unwrap(), push(&running.queue, 9).unwrap(), push(&running.queue, 9).unwrap());
        assert!(matches!(push(&running.queue, 9), Err(LlmError::Overloaded { depth: 3 })));
        drop(gone);
        running.signal.send(()).unwrap();
        for answer in [held, kept, also_kept] {
            answer.blocking_recv().unwrap().unwrap();
        }
        assert_eq!(running.entered.recv().unwrap(), 2, "both that waited in one batch, without the one that left");
        running.queue.close();
        assert!(matches!(push(&running.queue, 9), Err(LlmError::Closed)));
        running.thread.join().unwrap();
    }

    #[test]
    fn closing_answers_those_who_wait() {
        let running = start(3);
        let held = push(&running.queue, 3).unwrap();
        running.entered.recv().unwrap();
        let waiting = push(&running.queue, 9).unwrap();
        running.queue.close();
        running.signal.send(()).unwrap();
        assert!(waiting.blocking_recv().is_err(), "dropped: the caller reads it as closed");
        held.blocking_recv().unwrap().unwrap();
        running.thread.join().unwrap();
    }
}
