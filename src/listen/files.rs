//! The process's open files: as many as it may have, and a few kept back for the operators' port.

use std::fs::File;
use std::io;

/// Where the hard limit is higher, it is no use to us.
const MOST: u64 = 1 << 20;

/// Kept back for the operators' port. One connection takes one.
const SPARE: usize = 16;

/// "Too many open files", of the process and of the whole system.
const NO_FILE_LEFT: [i32; 2] = [24, 23];

/// Raises the soft limit of open files to the hard one. Returns the limit that holds now.
pub fn raise_open_files() -> io::Result<u64> {
    rlimit::increase_nofile_limit(MOST)
}

/// How many connections a port may take of `files` that `ports` share, when `wanted` are asked for: a quarter (64 to 2,048) is
/// left for store, brokers and the operators' port.
pub fn connections_within(wanted: usize, files: u64, ports: u64) -> usize {
    let others = (files / 4).clamp(64, 2048);
    let share = files.saturating_sub(others) / ports.max(1);
    wanted.min(usize::try_from(share).unwrap_or(usize::MAX)).max(1)
}

/// Whether an error of `accept` says that no file is left.
pub fn is_out_of_files(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|code| NO_FILE_LEFT.contains(&code))
}

/// Files that are open for nothing, so that there is one to give up when no other is left.
#[derive(Debug, Default)]
pub struct SpareFiles {
    kept: Vec<File>,
}

impl SpareFiles {
    /// Opens them.
    pub fn open() -> SpareFiles {
        let mut spare = SpareFiles::default();
        spare.refill();
        spare
    }

    /// Gives one up; false if none was kept.
    pub fn give_up_one(&mut self) -> bool {
        self.kept.pop().is_some()
    }

    /// Opens again what was given up, as far as files are left.
    pub fn refill(&mut self) {
        while self.kept.len() < SPARE
            && let Ok(file) = File::open("/dev/null")
        {
            self.kept.push(file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_to_others() {
        assert_eq!(connections_within(8192, 1 << 20, 2), 8192);
        assert_eq!(connections_within(8192, 1024, 1), 768);
        assert_eq!(connections_within(8192, 1024, 2), 384);
        assert_eq!(connections_within(8192, 64, 1), 1, "never none");
    }

    #[test]
    fn spare_files_are_given_up_one_by_one_and_opened_again() {
        let mut spare = SpareFiles::open();
        let given = std::iter::from_fn(|| spare.give_up_one().then_some(())).count();
        assert_eq!(given, SPARE);
        spare.refill();
        assert!(spare.give_up_one());
    }
}
