//! Tasks that stand on each other, some at once.
//!
//! In: tasks in an order in which parents come first. Each free worker takes the first task whose parents are done. The first
//! failure ends the run when the tasks under way have ended. Caller: `run`.

use super::RunError;
use super::graph::Node;
use crate::stage::{Inputs, StageError};
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// One stage to make.
pub struct Task {
    /// For messages.
    pub label: String,
    /// The stage.
    pub node: Node,
    /// Folders of its parents.
    pub inputs: Inputs,
    /// Where it will lie.
    pub folder: PathBuf,
    /// Tasks that come before it.
    pub after: Vec<usize>,
}

#[derive(Clone, Copy, PartialEq)]
enum Progress {
    Waits,
    Runs,
    Done,
}

struct Shared<D> {
    progress: Vec<Progress>,
    failed: Option<RunError>,
    done: D,
}

/// Runs all tasks, `jobs` at once; `done` hears of each that has ended well, one at a time.
pub fn schedule(
    tasks: &[Task],
    jobs: usize,
    make: impl Fn(&Task) -> Result<PathBuf, StageError> + Sync,
    done: impl FnMut(usize, PathBuf) -> Result<(), RunError> + Send,
) -> Result<(), RunError> {
    let shared = Mutex::new(Shared { progress: vec![Progress::Waits; tasks.len()], failed: None, done });
    let changed = Condvar::new();
    std::thread::scope(|scope| {
        for _ in 0..jobs.min(tasks.len()) {
            scope.spawn(|| {
                while let Some(place) = next(tasks, &shared, &changed) {
                    let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| make(&tasks[place])));
                    let mut state = lock(&shared);
                    let stage = tasks[place].label.clone();
                    let result = match made {
                        Ok(Ok(folder)) => (state.done)(place, folder),
                        Ok(Err(source)) => Err(RunError::stage(&stage, source)),
                        Err(_) => Err(RunError::Panicked { stage }),
                    };
                    state.progress[place] = Progress::Done;
                    if let Err(error) = result {
                        // The run ends with its first failure, but not before what is under way, which may take hours.
                        if state.progress.contains(&Progress::Runs) {
                            tasks[place].inputs.progress().say(&format!("nothing new begins: {error}"));
                        }
                        state.failed.get_or_insert(error);
                    }
                    changed.notify_all();
                }
            });
        }
    });
    match shared.into_inner().unwrap_or_else(PoisonError::into_inner).failed {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

fn lock<D>(shared: &Mutex<Shared<D>>) -> MutexGuard<'_, Shared<D>> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for the next task that can run; `None` when there is none any more.
fn next<D>(tasks: &[Task], shared: &Mutex<Shared<D>>, changed: &Condvar) -> Option<usize> {
    let mut state = lock(shared);
    loop {
        if state.failed.is_some() || state.progress.iter().all(|progress| *progress != Progress::Waits) {
            return None;
        }
        let is_done = |place: &usize| state.progress[*place] == Progress::Done;
        let ready = (0..tasks.len())
            .find(|place| state.progress[*place] == Progress::Waits && tasks[*place].after.iter().all(is_done));
        if let Some(place) = ready {
            state.progress[place] = Progress::Runs;
            return Some(place);
        }
        state = changed.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
}
