//! Where and of what something was measured: commit, machine, day.
//!
//! In: git, /proc, the clock. Out: the fields of [`crate::figures::Figures`] that say it.

use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// All digits of the commit, with `-dirty` behind them where what is measured may have changed since; `None` outside of a repository.
/// Pages of the project may differ: a bench writes its table before it ends.
pub(crate) fn commit() -> Option<String> {
    let said = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    let commit = said(&["rev-parse", "HEAD"])?;
    let changes = said(&["status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)docs"])?;
    Some(if changes.is_empty() { commit } else { commit + "-dirty" })
}

/// Cores, processor, memory and system in one line.
pub(crate) fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_string())
    };
    // Of the machine, wherever this thread may run.
    let cores = read("/proc/cpuinfo").lines().filter(|line| line.starts_with("processor")).count();
    let model = field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "?".to_string());
    let memory = field(&read("/proc/meminfo"), "MemTotal");
    let kib = memory.and_then(|text| text.split(' ').next()?.parse::<f64>().ok()).unwrap_or(0.0);
    let system = read("/proc/sys/kernel/osrelease");
    format!("{cores} cores, {model}, {:.0} GiB, Linux {}", kib / f64::from(1 << 20), system.trim())
}

/// The day, in UTC.
pub(crate) fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    chrono::DateTime::from_timestamp(seconds as i64, 0).unwrap_or_default().format("%Y-%m-%d").to_string()
}

#[cfg(test)]
mod tests {
    #[test]
    fn machine_and_day_are_known() {
        let machine = super::machine();
        assert!(machine.contains(" cores, ") && !machine.contains(" 0 GiB") && machine.contains("Linux "), "{machine}");
        let today = super::today();
        assert!(today.len() == 10 && today.as_str() > "2026-01-01", "{today}");
    }
}
