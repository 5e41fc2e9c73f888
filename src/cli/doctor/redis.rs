//! The store: a Redis by what a start asks of it, an embedded one by opening it.

use super::super::opening;
use super::report::{Finding, Report};
use crate::config::{AckKind, Settings};
use crate::store::StoreError;
use crate::store::redis::{Address, Checkup, Clock, Layout, RIGHTS, Server};
use std::path::Path;

/// The checks of a Redis after the one that it can be reached, in their order.
const AFTER_REACHED: [&str; 6] =
    ["redis rights", "redis promises", "redis memory", "redis persistence", "redis layout", "clocks"];
/// Clocks that differ by more are worth a word, and by more than the last are a failure, in ms.
const SKEW_MS: (i64, i64) = (1_000, 60_000);
/// An answer to TIME that took longer says nothing, in ms.
const HEARD_MS: i64 = 500;
/// Of `maxmemory` in use.
const MUCH: f64 = 0.9;

/// All checks of the store.
pub(super) async fn check(settings: &Settings, report: &mut Report) {
    let url = &settings.store.url;
    if !Address::is_redis(url) {
        return embedded(settings, Path::new(url.trim_start_matches("embedded:")), report).await;
    }
    let (checkup, servers) = match reach(settings).await {
        Ok(reached) => reached,
        Err(finding) => {
            report.add(finding);
            for check in AFTER_REACHED {
                report.add(Finding::not_checked(check, "Redis does not answer"));
            }
            return;
        }
    };
    report.add(Finding::ok("redis", each(&servers, |server| format!("version {}", server.version))));
    rights(settings, &checkup, report).await;
    match checkup.assured().await {
        Ok(()) if settings.store.allow_eviction => {
            report.add(Finding::ok("redis promises", "store.ack can be kept; store.allow_eviction takes any policy"));
        }
        Ok(()) => report.add(Finding::ok("redis promises", "noeviction, and store.ack can be kept")),
        Err(error) => report.add(of_error("redis promises", &error)),
    }
    report.add(memory(&servers));
    report.add(persistence(settings, &servers));
    match checkup.layout().await {
        Ok(Layout::Current) => report.add(Finding::ok("redis layout", "as this program writes")),
        Ok(Layout::Empty) => report.add(Finding::ok("redis layout", "empty: the first start sets it up")),
        Ok(Layout::Older(layout)) => report.add(Finding::warning(
            "redis layout",
            format!("layout {layout} is written, this program knows a newer one"),
            "once no older program may come back: taiji migrate … apply",
        )),
        Err(error) => report.add(of_error("redis layout", &error)),
    }
    report.add(clocks(&checkup).await);
}

/// Connects and hears what the servers say of themselves, with fewer tries than a start: an operator waits.
async fn reach(settings: &Settings) -> Result<(Checkup, Vec<Server>), Finding> {
    let address = opening::redis_address(settings)
        .map_err(|error| Finding::refused("redis", &error, "mend store.url or store.ca_file"))?;
    let mut options = opening::redis_options(settings);
    options.timeouts.retries = options.timeouts.retries.min(1);
    let asked = async {
        let checkup = Checkup::connect(address, &options).await?;
        let servers = checkup.servers().await?;
        Ok((checkup, servers))
    };
    asked.await.map_err(|error| of_error("redis", &error))
}

/// An error whose words have the remedy; what was not answered is not known to be wrong.
fn of_error(check: &'static str, error: &StoreError) -> Finding {
    let remedy = match error {
        StoreError::Unreachable { .. } => {
            "start it, or name it in store.url; is a firewall or a network policy between?"
        }
        StoreError::Busy { .. } => "wait, and look into its log",
        StoreError::Denied { .. } => "give the user of store.url what it lacks (README, Redis)",
        _ => "",
    };
    Finding::failed(check, error.to_string(), remedy)
}

fn each(servers: &[Server], what: impl Fn(&Server) -> String) -> String {
    servers.iter().map(|server| format!("{}: {}", server.name, what(server))).collect::<Vec<_>>().join("; ")
}

async fn rights(settings: &Settings, checkup: &Checkup, report: &mut Report) {
    let namespace = &settings.store.namespace;
    report.add(match checkup.lacking_rights().await {
        Ok(None) => Finding::ok("redis rights", format!("all that the service does, on {namespace}:*")),
        Ok(Some((lacking, first))) => Finding::failed(
            "redis rights",
            format!("may not {}: {first}", lacking.join(", ")),
            format!("ACL SETUSER USER ~{namespace}:* {RIGHTS}"),
        ),
        Err(error) => of_error("redis rights", &error),
    });
}

fn memory(servers: &[Server]) -> Finding {
    const MIB: u64 = 1 << 20;
    let shown = each(servers, |server| match server.maxmemory {
        0 => format!("{} MiB used, no maxmemory", server.used / MIB),
        limit => format!("{} of {} MiB used, {}", server.used / MIB, limit / MIB, server.policy),
    });
    let is_near = |server: &Server| server.maxmemory > 0 && server.used as f64 > MUCH * server.maxmemory as f64;
    if servers.iter().any(is_near) {
        return Finding::warning(
            "redis memory",
            shown,
            "raise maxmemory, or keep less: writes are refused when it is full",
        );
    }
    if servers.iter().any(|server| server.maxmemory == 0) {
        return Finding::warning(
            "redis memory",
            shown,
            "CONFIG SET maxmemory: without it the machine's memory is the limit",
        );
    }
    Finding::ok("redis memory", shown)
}

fn persistence(settings: &Settings, servers: &[Server]) -> Finding {
    let shown = each(servers, |server| {
        let log = if server.has_log { "append-only file" } else { "no append-only file" };
        format!("{log}, {} replicas", server.replicas)
    });
    if let Some(server) = servers.iter().find(|server| !server.unwritten.is_empty()) {
        let what = format!("{}: its {} could not be written", server.name, server.unwritten.join(" and "));
        return Finding::failed("redis persistence", what, "free disk space; its log says more");
    }
    if servers.iter().any(|server| !server.has_log) {
        return Finding::warning(
            "redis persistence",
            shown,
            "CONFIG SET appendonly yes: a restart loses what came since the last snapshot",
        );
    }
    let wanted = u64::from(settings.store.ack_replicas);
    let too_few = |server: &Server| server.replicas > 0 && server.replicas < wanted;
    if settings.store.ack != AckKind::Applied && servers.iter().any(too_few) {
        return Finding::failed("redis persistence", shown, "connect replicas, or lower store.ack_replicas");
    }
    Finding::ok("redis persistence", shown)
}

/// Clocks of servers beside this machine's, and those of live processes beside the servers'.
async fn clocks(checkup: &Checkup) -> Finding {
    let mut clocks = match checkup.server_clocks(HEARD_MS).await {
        Ok(Some(clocks)) => clocks,
        Ok(None) => {
            return Finding::not_checked("clocks", format!("Redis took more than {HEARD_MS} ms to tell its time"));
        }
        Err(error) => return of_error("clocks", &error),
    };
    match checkup.process_clocks().await {
        Ok(found) => clocks.extend(found),
        Err(error) => return of_error("clocks", &error),
    }
    judged(&clocks)
}

fn judged(clocks: &[Clock]) -> Finding {
    let Some(worst) = clocks.iter().max_by_key(|clock| clock.ahead_ms.abs()) else {
        return Finding::not_checked("clocks", "nobody tells the time");
    };
    let off: Vec<String> = clocks
        .iter()
        .filter(|clock| clock.ahead_ms.abs() > SKEW_MS.0)
        .map(|clock| {
            let way = if clock.ahead_ms > 0 { "ahead" } else { "behind" };
            format!("{} is {} ms {way}", clock.of, clock.ahead_ms.abs())
        })
        .collect();
    let remedy =
        "run an NTP client on every machine: leases and due times go by Redis' clock, times of events by the senders'";
    match worst.ahead_ms.abs() {
        skew if skew > SKEW_MS.1 => Finding::failed("clocks", off.join("; "), remedy),
        skew if skew > SKEW_MS.0 => Finding::warning("clocks", off.join("; "), remedy),
        skew => Finding::ok("clocks", format!("{} agree within {skew} ms", clocks.len() + 1)),
    }
}

/// Opens it as a start does, if it is there.
async fn embedded(settings: &Settings, folder: &Path, report: &mut Report) {
    if !folder.exists() {
        return report
            .add(Finding::ok("store", format!("{} is not there: the first start makes it", folder.display())));
    }
    report.add(match opening::open_store(settings).await {
        Ok(_) => Finding::ok("store", format!("{} opens", folder.display())),
        Err(error) => {
            Finding::failed("store", error.to_string(), "is a service running on it? its /readyz says how it is")
        }
    });
    report.add(Finding::off("clocks", "an embedded store has this machine's"));
}

#[cfg(test)]
mod tests {
    use super::super::report::State;
    use super::*;

    fn server(maxmemory: u64, used: u64) -> Server {
        Server {
            name: "a:1".into(),
            version: "7".into(),
            maxmemory: maxmemory << 20,
            used: used << 20,
            policy: "noeviction".into(),
            has_log: true,
            unwritten: Vec::new(),
            replicas: 1,
        }
    }

    #[test]
    fn clocks_are_judged_by_the_worst_and_named() {
        let clock = |of: &str, ahead_ms| Clock { of: of.into(), ahead_ms };
        assert_eq!(judged(&[clock("redis a", 20), clock("process 1", -900)]).state, State::Ok);
        let some = judged(&[clock("redis a", 20), clock("process 1", -5_000)]);
        assert!(some.state == State::Warning && some.found == "process 1 is 5000 ms behind", "{some:?}");
        assert_eq!(judged(&[clock("redis a", 61_000)]).state, State::Failed);
        assert_eq!(judged(&[]).state, State::NotChecked);
    }

    #[test]
    fn memory_and_persistence_are_judged_by_the_worst_server() {
        assert_eq!(memory(&[server(100, 50), server(100, 80)]).state, State::Ok);
        assert_eq!(memory(&[server(100, 50), server(100, 95)]).state, State::Warning);
        assert_eq!(memory(&[server(0, 50)]).state, State::Warning);
        let settings =
            |flags: &[(&str, String)]| crate::config::load(None, std::iter::empty(), flags).expect("settings");
        let plain = settings(&[]);
        assert_eq!(persistence(&plain, &[server(0, 0)]).state, State::Ok);
        assert_eq!(persistence(&plain, &[Server { has_log: false, ..server(0, 0) }]).state, State::Warning);
        assert_eq!(persistence(&plain, &[Server { unwritten: vec!["snapshot"], ..server(0, 0) }]).state, State::Failed);
        let url = ("store.url", "redis://a".to_string());
        let strict = settings(&[url, ("store.ack", "replicated".into()), ("store.ack_replicas", "2".into())]);
        assert_eq!(persistence(&strict, &[server(0, 0)]).state, State::Failed);
    }
}
