//! Admission: the bounded queue between callers and the engine thread.
//!
//! In: [`Job`]s from any thread. Out: jobs for the one engine thread, the most urgent class first, the oldest first within
//! a class. One rule for all callers: a job costs the tokens of its prompt plus those it may generate; a queue that holds
//! its limit of jobs or of tokens refuses. A job whose caller has gone, or whose deadline has passed, is swept out and
//! never reaches the graph. Dropping a job tells its caller that the engine closed.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::sequence::Job;
use super::{LlmError, Priority};

/// A burst is over when nothing came for so long; far less than any prompt takes to read.
const PAUSE: Duration = Duration::from_micros(100);
/// However the burst goes on, the first prompt waits no longer than so many pauses.
const MOST_PAUSES: usize = 20;

/// What may wait.
#[derive(Debug, Clone, Copy)]
pub struct QueueLimits {
    /// Jobs.
    pub jobs: usize,
    /// Tokens, prompts and answers together. A single job above it is taken when nothing else waits.
    pub tokens: usize,
}

/// The queue.
pub struct Queue {
    state: Mutex<State>,
    arrived: Condvar,
    room: Condvar,
    limits: QueueLimits,
}

#[derive(Default)]
struct State {
    classes: [VecDeque<Job>; Priority::ALL.len()],
    jobs: usize,
    tokens: usize,
    closed: bool,
}

impl Queue {
    /// An open queue.
    pub fn new(limits: QueueLimits) -> Self {
        Self { state: Mutex::default(), arrived: Condvar::new(), room: Condvar::new(), limits }
    }

    /// Adds a job, or says at once why not.
    pub fn push(&self, job: Job) -> Result<(), LlmError> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(LlmError::Closed);
        }
        if !self.has_room(&state, job.cost()) {
            return Err(LlmError::Overloaded { requests: state.jobs, tokens: state.tokens });
        }
        state.add(job);
        self.arrived.notify_one();
        Ok(())
    }

    /// Adds a job, waiting for room: for callers that bring their own bound (the trainer).
    pub fn push_waiting(&self, job: Job) -> Result<(), LlmError> {
        let mut state = self.state.lock();
        while !state.closed && !self.has_room(&state, job.cost()) {
            self.room.wait(&mut state);
        }
        if state.closed {
            return Err(LlmError::Closed);
        }
        state.add(job);
        self.arrived.notify_one();
        Ok(())
    }

    /// Takes the next job if it `fits`. The next job keeps its turn when it does not: small ones behind it must not starve
    /// it.
    pub fn pop(&self, fits: impl Fn(&Job) -> bool) -> Option<Job> {
        let mut state = self.state.lock();
        let class = state.classes.iter().position(|class| !class.is_empty())?;
        if !state.classes[class].front().is_some_and(fits) {
            return None;
        }
        let job = state.classes[class].pop_front()?;
        state.forget(&job);
        self.room.notify_all();
        Some(job)
    }

    /// Takes out every waiting job whose deadline has passed or whose caller has gone.
    pub fn sweep(&self, now: Instant) -> Vec<Job> {
        let mut state = self.state.lock();
        let mut dead = Vec::new();
        for class in &mut state.classes {
            for _ in 0..class.len() {
                match class.pop_front() {
                    Some(job) if job.is_gone() || job.is_late(now) => dead.push(job),
                    Some(job) => class.push_back(job),
                    None => break,
                }
            }
        }
        for job in &dead {
            state.forget(job);
        }
        if !dead.is_empty() {
            self.room.notify_all();
        }
        dead
    }

    /// Waits until a job is there, and for those that come right behind it: a burst that begins on an idle engine is
    /// read together, not its first prompt alone. `false` = the queue is closed.
    pub fn wait(&self) -> bool {
        let mut state = self.state.lock();
        while !state.closed && state.jobs == 0 {
            self.arrived.wait(&mut state);
        }
        for _ in 0..MOST_PAUSES {
            let before = state.jobs;
            self.arrived.wait_for(&mut state, PAUSE);
            if state.jobs == before || state.closed {
                break;
            }
        }
        !state.closed
    }

    /// Refuses new jobs and drops the waiting ones.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        for class in &mut state.classes {
            class.clear();
        }
        (state.jobs, state.tokens) = (0, 0);
        self.arrived.notify_all();
        self.room.notify_all();
    }

    /// Jobs and tokens that wait.
    pub fn depth(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.jobs, state.tokens)
    }

    fn has_room(&self, state: &State, cost: usize) -> bool {
        state.jobs < self.limits.jobs.max(1) && (state.jobs == 0 || state.tokens + cost <= self.limits.tokens)
    }
}

impl State {
    fn add(&mut self, job: Job) {
        self.jobs += 1;
        self.tokens += job.cost();
        self.classes[job.priority as usize].push_back(job);
    }

    fn forget(&mut self, job: &Job) {
        self.jobs -= 1;
        self.tokens -= job.cost();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use tokio::sync::oneshot;

    use super::*;
    use crate::llm::Sampling;
    use crate::llm::sample::Sampler;
    use crate::llm::sequence::{Reply, Task, Written};

    type Answer = oneshot::Receiver<Result<Written, LlmError>>;

    fn job(prompt: u32, budget: usize, priority: Priority, deadline: Option<Instant>) -> (Job, Answer) {
        let (reply, answer) = oneshot::channel();
        let sampler = Sampler::new(Sampling::GREEDY, &[]).unwrap();
        let task = Task::generate(budget, sampler, Vec::new(), None, false, Reply::Whole(reply));
        (Job::new(vec![prompt], task, priority, deadline), answer)
    }

    fn queue(jobs: usize, tokens: usize) -> Queue {
        Queue::new(QueueLimits { jobs, tokens })
    }

    #[test]
    fn urgent_jobs_go_first_and_old_ones_before_new_ones() {
        let queue = queue(9, 1000);
        let mut answers = Vec::new();
        for (prompt, priority) in [
            (1, Priority::Background),
            (2, Priority::Interactive),
            (3, Priority::Synchronous),
            (4, Priority::Background),
            (5, Priority::Synchronous),
        ] {
            let (made, answer) = job(prompt, 1, priority, None);
            queue.push(made).unwrap();
            answers.push(answer);
        }
        assert!(queue.pop(|_| false).is_none(), "the next one keeps its turn");
        let order: Vec<u32> = std::iter::from_fn(|| queue.pop(|_| true)).map(|job| job.tokens[0]).collect();
        assert_eq!(order, [3, 5, 2, 1, 4]);
        assert_eq!(queue.depth(), (0, 0));
    }

    #[test]
    fn jobs_and_tokens_are_bounded() {
        let queue = queue(3, 20);
        let push = |budget| queue.push(job(1, budget, Priority::Background, None).0);
        push(9).unwrap();
        push(9).unwrap();
        assert_eq!(push(1), Err(LlmError::Overloaded { requests: 2, tokens: 20 }));
        queue.pop(|_| true);
        queue.pop(|_| true);
        push(500).expect("alone, even a large one is taken");
        assert_eq!(push(1), Err(LlmError::Overloaded { requests: 1, tokens: 501 }));
        queue.close();
        assert_eq!(push(1), Err(LlmError::Closed));
        assert!(!queue.wait());
    }

    #[test]
    fn gone_callers_and_passed_deadlines_never_reach_the_graph() {
        let queue = queue(9, 1000);
        let now = Instant::now();
        let late = now + Duration::from_millis(5);
        let (gone, _) = job(1, 1, Priority::Background, None);
        let (first_late, mut first_answer) = job(2, 1, Priority::Background, Some(now));
        let (kept, _kept_answer) = job(3, 1, Priority::Background, Some(late + Duration::from_secs(5)));
        let (second_late, mut second_answer) = job(4, 1, Priority::Background, Some(late));
        for made in [gone, first_late, kept, second_late] {
            queue.push(made).unwrap();
        }
        let dead = queue.sweep(late);
        assert_eq!((dead.len(), queue.depth()), (3, (1, 2)));
        dead.into_iter().for_each(Job::give_up);
        for answer in [&mut first_answer, &mut second_answer] {
            assert_eq!(answer.try_recv().unwrap().unwrap_err(), LlmError::Deadline { new_tokens: 0 });
        }
        assert_eq!(queue.pop(|_| true).unwrap().tokens, [3]);
    }
}
