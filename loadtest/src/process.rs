//! What a process of this machine holds and uses, and on which core our own threads run.
//!
//! In: /proc. Out: bytes and seconds; samples over time, taken by a thread of its own.

use rustix::thread::CpuSet;
use std::io;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Ticks of `/proc/PID/stat` a second, on Linux whatever the kernel's own are.
const TICKS: f64 = 100.0;

/// Why nothing is known of a process.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It ended, or is another user's.
    #[error("process {pid}: {cause}; does it still run?")]
    Gone {
        /// Which.
        pid: u32,
        /// What the system says.
        cause: io::Error,
    },
    /// /proc says something else than it should.
    #[error("process {pid}: {field} is not in /proc")]
    Field {
        /// Which.
        pid: u32,
        /// What was looked for.
        field: &'static str,
    },
    /// The machine has no such core, or does not let us choose.
    #[error("core {core}: {cause}; leave out --split-cores on a machine with one core")]
    Core {
        /// Which.
        core: usize,
        /// What the system says.
        cause: io::Error,
    },
}

fn read(pid: u32, file: &str) -> Result<String, ProcessError> {
    std::fs::read_to_string(format!("/proc/{pid}/{file}")).map_err(|cause| ProcessError::Gone { pid, cause })
}

/// Resident memory.
pub(crate) fn resident_bytes(pid: u32) -> Result<u64, ProcessError> {
    let status = read(pid, "status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.map(|kib| kib << 10).ok_or(ProcessError::Field { pid, field: "VmRSS" })
}

/// User and system time that all its threads have used.
pub(crate) fn processor_s(pid: u32) -> Result<f64, ProcessError> {
    let stat = read(pid, "stat")?;
    // After the name in brackets: state, ten fields, then user and system time.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |place: usize| fields.get(place).and_then(|text| text.parse::<f64>().ok());
    let used = ticks(11).zip(ticks(12)).map(|(user, system)| (user + system) / TICKS);
    used.ok_or(ProcessError::Field { pid, field: "utime" })
}

/// From now on this thread, and whatever it starts, runs on that core.
pub(crate) fn stay_on(core: usize) -> Result<(), ProcessError> {
    let refused = |cause: io::Error| ProcessError::Core { core, cause };
    if core >= CpuSet::MAX_CPU {
        return Err(refused(io::ErrorKind::InvalidInput.into()));
    }
    let mut set = CpuSet::new();
    set.set(core);
    rustix::thread::sched_setaffinity(None, &set).map_err(|error| refused(error.into()))
}

/// Resident memory over time.
pub(crate) struct Sampler {
    stop: Sender<()>,
    running: JoinHandle<Vec<(f64, u64)>>,
}

impl Sampler {
    /// Looks at once, and then every so often until it is stopped or the process ends.
    pub(crate) fn start(pid: u32, every: Duration) -> Sampler {
        let (stop, stopped) = mpsc::channel();
        let running = std::thread::spawn(move || {
            let (began, mut samples) = (Instant::now(), Vec::new());
            while let Ok(bytes) = resident_bytes(pid) {
                samples.push((began.elapsed().as_secs_f64(), bytes));
                if !matches!(stopped.recv_timeout(every), Err(RecvTimeoutError::Timeout)) {
                    break;
                }
            }
            samples
        });
        Sampler { stop, running }
    }

    /// Seconds since the start, bytes.
    pub(crate) fn stop(self) -> Vec<(f64, u64)> {
        // It has ended by itself where its process has.
        let _ = self.stop.send(());
        self.running.join().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_process_is_known() {
        let pid = std::process::id();
        let before = resident_bytes(pid).expect("memory");
        let block = vec![1u8; 64 << 20];
        let samples = Sampler::start(pid, Duration::from_millis(1)).stop();
        assert!(samples[0].1 >= before.saturating_sub(8 << 20) + (block.len() as u64), "{samples:?} after {before}");
        let began = Instant::now();
        let mut sum = 0u64;
        while began.elapsed() < Duration::from_millis(200) {
            sum = sum.wrapping_mul(31).wrapping_add(block.iter().map(|byte| u64::from(*byte)).sum());
        }
        assert!(processor_s(pid).expect("time") > 0.0, "{sum}");
    }

    #[test]
    fn a_process_that_is_not_there_is_an_error() {
        let said = resident_bytes(u32::MAX).expect_err("nobody").to_string();
        assert!(said.contains("does it still run?"), "{said}");
        assert!(processor_s(u32::MAX).is_err());
        assert_eq!(Sampler::start(u32::MAX, Duration::from_secs(60)).stop(), []);
    }

    #[test]
    fn a_thread_stays_on_its_core() {
        let seen = std::thread::spawn(|| {
            let cores = std::thread::available_parallelism().expect("cores").get();
            stay_on(cores - 1).expect("the last core");
            (std::thread::available_parallelism().expect("cores").get(), stay_on(100_000).is_err())
        });
        assert_eq!(seen.join().expect("thread"), (1, true));
    }
}
