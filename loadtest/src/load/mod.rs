//! Load on one address, open or closed, and what came of it.
//!
//! In: calls ([`calls`]), how many, how fast. Out: [`tally::Tally`], one for each kind of call. `open` sends when the clock says so,
//! whatever the service does; `closed` sends the next call when the one before was answered, which finds a capacity. Each runs on few
//! threads, for the generator often shares its cores with the service.

pub mod calls;
pub mod closed;
pub mod http;
pub mod open;
pub mod tally;
mod timer;

use std::io;

/// Why no load was made. What happens to a call is no error but a count.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Threads, timers or connections of this machine.
    #[error("load: {0}; are there files and threads left (ulimit -n, -u)?")]
    Machine(#[from] io::Error),
    /// Who is asked for, and how often.
    #[error(transparent)]
    Law(#[from] crate::popularity::NoSuchLaw),
    /// A setting that makes no load.
    #[error("{setting}: {what}")]
    Setting {
        /// The flag.
        setting: &'static str,
        /// What would be right.
        what: &'static str,
    },
    /// A thread that made load panicked.
    #[error("load: a thread of the generator broke down; this is a fault of the program")]
    Thread,
}

/// A runtime that lives on the thread it is made on.
pub(crate) fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// Runs `work` on so many threads and gathers what they return, in their order.
fn on_threads<T: Send>(
    threads: usize,
    work: impl Fn(usize) -> Result<T, LoadError> + Sync,
) -> Result<Vec<T>, LoadError> {
    let work = &work;
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|number| scope.spawn(move || work(number))).collect();
        running.into_iter().map(|one| one.join().unwrap_or(Err(LoadError::Thread))).collect()
    })
}

/// Part `number` of `whole` cut into `parts` that differ by one at most.
fn share(whole: usize, number: usize, parts: usize) -> usize {
    whole / parts + usize::from(number < whole % parts)
}

#[cfg(test)]
mod tests {
    #[test]
    fn shares_add_up() {
        for (whole, parts) in [(8, 3), (2, 4), (1024, 1)] {
            let all: Vec<usize> = (0..parts).map(|number| super::share(whole, number, parts)).collect();
            assert_eq!(all.iter().sum::<usize>(), whole, "{all:?}");
        }
    }
}
