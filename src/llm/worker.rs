//! The engine thread: turns of the schedule until the queue is closed; it survives whatever a turn does.
//!
//! In: the [`Queue`] and a [`Schedule`]. Out: answers to the callers. A panic answers everything under way, is counted,
//! and makes the engine unhealthy; the thread goes on.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::LlmError;
use super::device::Backend;
use super::measure::Measures;
use super::queue::Queue;
use super::schedule::Schedule;

/// Runs until the queue is closed and what was under way has ended.
pub fn work<B: Backend>(queue: &Queue, schedule: &mut Schedule<B>, measures: &Measures) {
    let mut work = None;
    loop {
        if schedule.is_idle() {
            drop(work.take());
            if !queue.wait() {
                return;
            }
        }
        // Held until the schedule is idle again, so that turns that do nothing are seen, too.
        work.get_or_insert_with(|| measures.progress().begin());
        // After a panic everything under way is answered and forgotten, so no half-made state is seen again.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| schedule.turn(queue))) {
            let message = format!("panic: {}", text_of(panic.as_ref()));
            measures.panicked(&message);
            schedule.fail_all(&LlmError::Run(message));
        }
    }
}

fn text_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::sync::{Arc, mpsc};
    use std::time::{Duration, Instant};

    use tokio::sync::oneshot;

    use super::*;
    use crate::llm::queue::QueueLimits;
    use crate::llm::sample::Sampler;
    use crate::llm::schedule::ScheduleOptions;
    use crate::llm::schedule::toy::ToyBackend;
    use crate::llm::sequence::{Job, Reply, Task, Written};
    use crate::llm::{Priority, Sampling};
    use crate::telemetry::Metrics;

    const PANICS: u32 = 13;

    const HANGS: u32 = 12;

    struct Running {
        queue: Arc<Queue>,
        measures: Arc<Measures>,
        thread: std::thread::JoinHandle<()>,
        /// Dropped, it lets a hung call return.
        gate: mpsc::Sender<()>,
    }

    fn start() -> Running {
        let (gate, hung) = mpsc::channel();
        let measures = Arc::new(Measures::new(Arc::new(Metrics::new().unwrap())));
        let mut backend = ToyBackend::new(4, 64, 1);
        backend.poison = Some(PANICS);
        backend.hang = Some((HANGS, hung));
        let options = ScheduleOptions { prefill_chunk: 16, max_tokens: 256, hidden: 8 };
        let mut schedule = Schedule::new(backend, options, measures.clone());
        let queue = Arc::new(Queue::new(QueueLimits { jobs: 9, tokens: 1000 }));
        let (thread_queue, thread_measures) = (queue.clone(), measures.clone());
        let thread = std::thread::spawn(move || work(&thread_queue, &mut schedule, &thread_measures));
        Running { queue, measures, thread, gate }
    }

    fn push(queue: &Queue, token: u32, budget: usize) -> oneshot::Receiver<Result<Written, LlmError>> {
        let (reply, answer) = oneshot::channel();
        let sampler = Sampler::new(Sampling::GREEDY, &[]).unwrap();
        let task = Task::generate(budget, sampler, Vec::new(), None, false, Reply::Whole(reply));
        queue.push(Job::new(vec![token], task, Priority::Background, None)).unwrap();
        answer
    }

    #[test]
    fn a_panic_answers_what_was_under_way_and_the_thread_lives_on() {
        let running = start();
        assert!(running.measures.is_healthy());
        let error = push(&running.queue, PANICS, 1).blocking_recv().unwrap().unwrap_err();
        assert!(matches!(&error, LlmError::Run(message) if message.contains("panicked")), "{error}");
        assert_eq!(push(&running.queue, 9, 1).blocking_recv().unwrap().unwrap().tokens.len(), 1);
        // By now the panic has been counted: the thread went on after it.
        assert!(!running.measures.is_healthy());
        assert_eq!(running.measures.metrics().llm_panics.get(), 1);
        running.queue.close();
        running.thread.join().unwrap();
    }

    #[test]
    fn audit_04_a_backend_that_never_returns_is_seen_as_work_without_a_step() {
        let running = start();
        let stalled = || running.measures.progress().stalled();
        push(&running.queue, 9, 1).blocking_recv().unwrap().unwrap();
        let soon = Instant::now() + Duration::from_secs(60);
        while stalled().is_some() {
            assert!(Instant::now() < soon, "an idle engine has no work");
            std::thread::yield_now();
        }
        let (hung, waiting) = (push(&running.queue, HANGS, 1), push(&running.queue, 9, 1));
        let mut last = Duration::ZERO;
        while last < Duration::from_millis(200) {
            let now = stalled().unwrap_or_default();
            assert!(now >= last, "nothing makes a step");
            assert!(Instant::now() < soon);
            last = now;
        }
        // Its caller goes away, as a refresh does at its deadline: the call hangs all the same.
        drop(hung);
        assert!(stalled().unwrap() >= last);
        println!("audit 04: a call that never returns is seen after {} ms", last.as_millis());
        drop(running.gate);
        assert_eq!(waiting.blocking_recv().unwrap().unwrap().tokens.len(), 1);
        running.queue.close();
        running.thread.join().unwrap();
        assert_eq!(running.measures.progress().stalled(), None);
    }

    #[test]
    fn closing_ends_the_thread_when_everything_is_answered() {
        let running = start();
        let answers: Vec<_> = (0..6).map(|token| push(&running.queue, token, 1)).collect();
        running.queue.close();
        running.thread.join().unwrap();
        for answer in answers {
            // Answered, or dropped while it waited: the caller reads that as closed.
            if let Ok(answered) = answer.blocking_recv() {
                assert_eq!(answered.unwrap().tokens.len(), 1);
            }
        }
    }
}
