//! What `taiji doctor` found: rows of a table, and the exit code that follows from them.

use super::super::CommandError;
use serde::Serialize;
use std::fmt::Write;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) enum State {
    #[serde(rename = "ok")]
    Ok,
    /// It works, but not for long, or not as one may expect.
    #[serde(rename = "warning")]
    Warning,
    /// It does not work.
    #[serde(rename = "failed")]
    Failed,
    /// It could not be made: nothing is known.
    #[serde(rename = "not checked")]
    NotChecked,
    /// The settings, or the command line, leave it out.
    #[serde(rename = "off")]
    Off,
}

impl State {
    fn as_str(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Warning => "warning",
            State::Failed => "failed",
            State::NotChecked => "not checked",
            State::Off => "off",
        }
    }
}

/// One row.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Finding {
    pub check: &'static str,
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do; empty where nothing is.
    pub remedy: String,
    /// It is the configuration's fault: 64 rather than 69.
    #[serde(skip)]
    is_usage: bool,
}

impl Finding {
    fn of(check: &'static str, state: State, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { check, state, found: found.into(), remedy: remedy.into(), is_usage: false }
    }

    pub fn ok(check: &'static str, found: impl Into<String>) -> Finding {
        Finding::of(check, State::Ok, found, "")
    }

    pub fn warning(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding::of(check, State::Warning, found, remedy)
    }

    pub fn failed(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding::of(check, State::Failed, found, remedy)
    }

    pub fn not_checked(check: &'static str, why: impl Into<String>) -> Finding {
        Finding::of(check, State::NotChecked, why, "")
    }

    pub fn off(check: &'static str, why: impl Into<String>) -> Finding {
        Finding::of(check, State::Off, why, "")
    }

    /// As a start would end.
    pub fn refused(check: &'static str, error: &CommandError, remedy: &str) -> Finding {
        let is_usage = matches!(error, CommandError::Usage(_));
        Finding { is_usage, ..Finding::failed(check, error.to_string(), remedy) }
    }
}

/// All rows.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub findings: Vec<Finding>,
}

impl Report {
    pub fn add(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    fn count(&self, state: State) -> usize {
        self.findings.iter().filter(|finding| finding.state == state).count()
    }

    /// Check, state and what was found side by side; the remedy below.
    pub fn table(&self) -> String {
        let width = self.findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0).max("check".len());
        let mut table = format!("{:width$}  {:11}  found\n", "check", "state");
        for Finding { check, state, found, remedy, .. } in &self.findings {
            let found = found.replace('\n', "; ");
            // A String takes whatever is written.
            let _ = writeln!(table, "{check:width$}  {:11}  {found}", state.as_str());
            if !remedy.is_empty() {
                let _ = writeln!(table, "{:width$}  {:11}  → {remedy}", "", "");
            }
        }
        table
    }

    /// The same for programs.
    pub fn json(&self) -> serde_json::Value {
        let is_ok = self.count(State::Failed) + self.count(State::NotChecked) == 0;
        serde_json::json!({ "ok": is_ok, "checks": self.findings })
    }

    /// 0 where nothing failed and everything that is on was checked; else 64 where only the configuration is at fault, and 69.
    pub fn verdict(&self) -> Result<(), CommandError> {
        let (failed, unknown) = (self.count(State::Failed), self.count(State::NotChecked));
        if failed + unknown == 0 {
            return Ok(());
        }
        let told = format!("{failed} of {} checks failed, {unknown} could not be made", self.findings.len());
        let of_usage = self.findings.iter().filter(|finding| finding.is_usage).count();
        Err(if of_usage == failed && unknown == 0 {
            CommandError::Usage(told)
        } else {
            CommandError::Unavailable(told)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(findings: Vec<Finding>) -> Result<(), CommandError> {
        Report { findings }.verdict()
    }

    #[test]
    fn what_failed_or_is_not_known_is_no_success() {
        let usage = || Finding::refused("keys", &CommandError::Usage("broken".into()), "mend it");
        assert!(verdict(vec![Finding::ok("a", "b"), Finding::warning("a", "b", "c"), Finding::off("a", "b")]).is_ok());
        assert!(matches!(verdict(vec![usage()]), Err(CommandError::Usage(_))));
        for other in [Finding::failed("a", "b", "c"), Finding::not_checked("a", "b")] {
            assert!(matches!(verdict(vec![usage(), other]), Err(CommandError::Unavailable(_))));
        }
    }

    #[test]
    fn a_remedy_stands_below_its_row() {
        let findings = vec![Finding::failed("redis memory", "it is full", "raise it"), Finding::ok("keys", "two")];
        let table = Report { findings }.table();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[1], "redis memory  failed       it is full");
        assert_eq!(lines[2], "                           → raise it");
        assert_eq!(lines[3], "keys          ok           two");
    }
}
