//! What a seed's recorded outcome says: a pure function, so that it can be tested on damage that was planted.
//!
//! In: what was sent and when, when the store may have lost what it had acknowledged, what was found in the end. Out: a
//! [`Verdict`]. Callers: `run`, after `gather` has recorded. Times are those since the seed's start.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A record of Kafka may be worked off so much later than it was sent: outages hold it up.
const LAG: Duration = Duration::from_secs(30);

/// When something was sent first, and when it was acknowledged, if ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    pub first: Duration,
    pub acked: Option<Duration>,
}

/// How an event came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By the topic: nothing of it may be lost, whatever the store loses.
    Kafka,
    /// By a client that repeats what was not answered.
    Http,
}

/// One event that was sent, maybe several times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub ts_ms: i64,
    pub id: String,
    pub is_impression: bool,
    pub way: Way,
    pub sent: Sent,
}

/// An erasure, and what it must have taken away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Erased {
    pub sent: Sent,
    /// Ids of the events before it, those that came late included.
    pub events: Vec<String>,
    /// Items of these events that nobody else ever met.
    pub items: Vec<String>,
}

/// All about a user.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// What must be there: all, or all since the erasure.
    pub events: Vec<Event>,
    pub erased: Option<Erased>,
}

/// What the store acknowledged in this time may be gone.
#[derive(Debug, Clone, Copy)]
pub struct Tail {
    pub from: Duration,
    pub to: Duration,
}

/// `store.ack` of the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ack {
    /// The tail may be lost.
    Applied,
    /// `replicated` or `synced`: nothing acknowledged may be lost.
    Kept,
}

/// A user whose features do not show the last event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Behind {
    pub user: String,
    pub shows: u64,
    pub seq: u64,
}

/// What was done, and what was found after it.
pub struct Recorded {
    pub ack: Ack,
    pub tails: Vec<Tail>,
    pub wanted: BTreeMap<String, Wanted>,
    /// Values that must end as dead letters.
    pub bad: Vec<String>,
    /// Items posted.
    pub items: BTreeMap<String, Sent>,
    /// Answers of `GET /v1/users/{id}/history`.
    pub histories: BTreeMap<String, Value>,
    /// Values of the dead letters.
    pub letters: Vec<String>,
    /// User → items that their `cross` shows.
    pub shown: BTreeMap<String, Vec<String>>,
    /// Member → items of its overlay.
    pub overlays: Vec<(String, usize)>,
    /// Those behind 30 s after all was stored…
    pub behind: Vec<Behind>,
    /// …and of these, one sweep interval later.
    pub behind_after_sweep: Vec<Behind>,
    /// What was not done in its time: offsets that stand still, queues that are not empty.
    pub unsettled: Vec<String>,
}

/// What must not be, and what was to be expected.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub violations: Vec<String>,
    /// Acknowledged events, erasures and items that went with the store's tail.
    pub lost_with_tail: usize,
    /// Due marks that did: their users were found by the sweep.
    pub marks_lost: usize,
}

/// Judges.
pub fn judge(recorded: &Recorded) -> Verdict {
    let mut verdict = Verdict::default();
    for (user, wanted) in &recorded.wanted {
        judge_history(recorded, user, wanted, &mut verdict);
        if let Some(erased) = &wanted.erased {
            judge_shown(recorded, user, erased, &mut verdict);
        }
    }
    judge_letters(recorded, &mut verdict);
    judge_items(recorded, &mut verdict);
    judge_features(recorded, &mut verdict);
    verdict.violations.extend(recorded.unsettled.iter().cloned());
    verdict
}

impl Recorded {
    /// Whether what was sent then may be gone with the store's tail.
    fn went_with_tail(&self, sent: &Sent) -> bool {
        let acked = sent.acked.unwrap_or(Duration::MAX);
        self.ack == Ack::Applied && self.tails.iter().any(|tail| sent.first <= tail.to && acked >= tail.from)
    }
}

fn judge_history(recorded: &Recorded, user: &str, wanted: &Wanted, verdict: &mut Verdict) {
    let Some(history) = recorded.histories.get(user) else {
        let lost = wanted.events.iter().map(|event| lose(recorded, event, verdict)).filter(|is_lost| *is_lost).count();
        if lost > 0 {
            verdict.violations.push(format!("{user}: no history, {lost} events lost"));
        }
        return;
    };
    let mut kept_in_all = 0;
    for (list, impressions) in [("engagements", false), ("impressions", true)] {
        let wanted_here = || wanted.events.iter().filter(move |event| event.is_impression == impressions);
        let rows = history[list].as_array().map(Vec::as_slice).unwrap_or_default();
        let kept: Vec<(i64, &str)> = rows
            .iter()
            .map(|row| (row["ts_ms"].as_i64().unwrap_or_default(), row["event_id"].as_str().unwrap_or_default()))
            .collect();
        kept_in_all += kept.len();
        let known: BTreeSet<(i64, &str)> = wanted_here().map(|event| (event.ts_ms, event.id.as_str())).collect();
        let distinct: BTreeSet<(i64, &str)> = kept.iter().copied().collect();
        let mut lost = 0;
        for event in wanted_here().filter(|event| !distinct.contains(&(event.ts_ms, event.id.as_str()))) {
            lost += usize::from(lose(recorded, event, verdict));
        }
        let mut foreign = 0;
        for (_, id) in distinct.difference(&known) {
            let erased = wanted.erased.as_ref().filter(|erased| erased.events.iter().any(|event| event == id));
            match erased {
                None => foreign += 1,
                Some(erased) if erased.sent.acked.is_none() => {}
                Some(erased) if recorded.went_with_tail(&erased.sent) => verdict.lost_with_tail += 1,
                Some(_) => verdict.violations.push(format!("{user}: {list} show {id}, which was erased")),
            }
        }
        if lost + foreign > 0 {
            verdict.violations.push(format!("{user}: {lost} {list} lost, {foreign} nobody sent"));
        }
        if kept.len() > distinct.len() {
            verdict.violations.push(format!("{user}: {} {list} twice", kept.len() - distinct.len()));
        }
        if kept.windows(2).any(|pair| pair[0] < pair[1]) {
            verdict.violations.push(format!("{user}: {list} out of order"));
        }
    }
    // Who was erased counts on from there.
    let seq = history["seq"].as_u64();
    let is_counted = match wanted.erased {
        None => seq == Some(kept_in_all as u64),
        Some(_) => seq.is_some_and(|seq| seq >= kept_in_all as u64),
    };
    if !is_counted {
        verdict.violations.push(format!("{user}: seq is {}, {kept_in_all} events are kept", history["seq"]));
    }
}

/// Whether the absence of an event is a loss that must not be.
fn lose(recorded: &Recorded, event: &Event, verdict: &mut Verdict) -> bool {
    if event.way == Way::Kafka {
        return true;
    }
    if event.sent.acked.is_none() {
        return false;
    }
    let is_expected = recorded.went_with_tail(&event.sent);
    verdict.lost_with_tail += usize::from(is_expected);
    !is_expected
}

fn judge_shown(recorded: &Recorded, user: &str, erased: &Erased, verdict: &mut Verdict) {
    if erased.sent.acked.is_none() || recorded.went_with_tail(&erased.sent) {
        return;
    }
    for (other, items) in &recorded.shown {
        if let Some(item) = items.iter().find(|item| erased.items.contains(item)) {
            verdict.violations.push(format!("{other}: cross shows {item} of {user}, who was erased"));
        }
    }
}

fn judge_letters(recorded: &Recorded, verdict: &mut Verdict) {
    let wanted: BTreeSet<&String> = recorded.bad.iter().collect();
    // A record that is read again after a crash or a rewind makes a second letter: that is the contract.
    let found: BTreeSet<&String> = recorded.letters.iter().collect();
    let lost = wanted.difference(&found).map(|bad| format!("no dead letter: {bad}"));
    verdict.violations.extend(lost);
    let foreign = found.difference(&wanted).map(|letter| format!("a dead letter of a good record: {letter}"));
    verdict.violations.extend(foreign);
}

fn judge_items(recorded: &Recorded, verdict: &mut Verdict) {
    let acked: Vec<&Sent> = recorded.items.values().filter(|sent| sent.acked.is_some()).collect();
    let excused = acked.iter().filter(|sent| recorded.went_with_tail(sent)).count();
    for (member, found) in &recorded.overlays {
        if *found > recorded.items.len() {
            verdict.violations.push(format!("{member}: {found} items, {} were sent", recorded.items.len()));
        } else if found + excused < acked.len() {
            let message = format!("{member}: {found} items of {} acknowledged, {excused} may be lost", acked.len());
            verdict.violations.push(message);
        }
    }
    let fewest = recorded.overlays.iter().map(|(_, found)| *found).min().unwrap_or(acked.len());
    verdict.lost_with_tail += acked.len().saturating_sub(fewest).min(excused);
}

fn judge_features(recorded: &Recorded, verdict: &mut Verdict) {
    let late: BTreeSet<&String> = recorded.behind_after_sweep.iter().map(|behind| &behind.user).collect();
    for Behind { user, shows, seq } in &recorded.behind {
        let last =
            recorded.wanted.get(user).and_then(|wanted| wanted.events.iter().max_by_key(|event| event.sent.first));
        let may_be_lost = last.is_some_and(|last| {
            let done = last.sent.acked.unwrap_or(last.sent.first) + LAG;
            recorded.tails.iter().any(|tail| last.sent.first <= tail.to && done >= tail.from)
        });
        if !may_be_lost {
            verdict.violations.push(format!("{user}: features show seq {shows} of {seq}"));
        } else if late.contains(user) {
            verdict
                .violations
                .push(format!("{user}: features show seq {shows} of {seq}, one sweep interval later, too"));
        } else {
            verdict.marks_lost += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn event(number: u64, way: Way, acked: Option<u64>) -> Event {
        let sent = Sent { first: at(number), acked: acked.map(at) };
        Event { ts_ms: 1000 - number as i64, id: format!("e{number}"), is_impression: number == 4, way, sent }
    }

    fn row(event: &Event) -> Value {
        json!({ "ts_ms": event.ts_ms, "event_id": event.id })
    }

    /// Two users, one of them erased; nothing is wrong.
    fn whole() -> Recorded {
        let events = vec![
            event(1, Way::Kafka, None),
            event(2, Way::Http, Some(3)),
            event(3, Way::Kafka, None),
            event(4, Way::Http, Some(5)),
            event(5, Way::Http, Some(21)),
        ];
        let of =
            |impressions| events.iter().filter(|event| event.is_impression == impressions).map(row).collect::<Vec<_>>();
        let history = json!({ "engagements": of(false), "impressions": of(true), "seq": 5 });
        let new = event(9, Way::Http, Some(10));
        let reborn = json!({ "engagements": [row(&new)], "impressions": [], "seq": 4 });
        let erased = Erased {
            sent: Sent { first: at(6), acked: Some(at(7)) },
            events: vec!["old".into()],
            items: vec!["gone".into()],
        };
        Recorded {
            ack: Ack::Applied,
            tails: vec![Tail { from: at(20), to: at(22) }],
            wanted: [
                ("u".to_string(), Wanted { events, erased: None }),
                ("v".to_string(), Wanted { events: vec![new], erased: Some(erased) }),
            ]
            .into(),
            bad: vec!["bad".into()],
            items: [("i1".to_string(), Sent { first: at(1), acked: Some(at(2)) })].into(),
            histories: [("u".to_string(), history), ("v".to_string(), reborn)].into(),
            letters: vec!["bad".into(), "bad".into()],
            shown: [("u".to_string(), vec!["i9".to_string()])].into(),
            overlays: vec![("m0".into(), 1)],
            behind: Vec::new(),
            behind_after_sweep: Vec::new(),
            unsettled: Vec::new(),
        }
    }

    fn judged(damage: impl FnOnce(&mut Recorded)) -> Verdict {
        let mut recorded = whole();
        damage(&mut recorded);
        judge(&recorded)
    }

    fn says(verdict: &Verdict, what: &str) {
        assert!(matches!(&verdict.violations[..], [one] if one.contains(what)), "{what}: {verdict:?}");
    }

    fn rows(recorded: &mut Recorded) -> &mut Vec<Value> {
        recorded.histories.get_mut("u").expect("u")["engagements"].as_array_mut().expect("list")
    }

    #[test]
    fn audit_20_the_checker_finds_nothing_where_nothing_is_wrong() {
        assert_eq!(judged(|_| {}), Verdict::default());
    }

    #[test]
    fn audit_20_the_checker_sees_a_planted_loss() {
        let lose = |place: usize, recorded: &mut Recorded| {
            rows(recorded).remove(place);
            recorded.histories.get_mut("u").expect("u")["seq"] = json!(4);
        };
        says(&judged(|recorded| lose(0, recorded)), "1 engagements lost");
        says(&judged(|recorded| lose(1, recorded)), "1 engagements lost");
        // Kafka's may not be lost with the tail; what HTTP acknowledged then may, under `applied` only.
        says(
            &judged(|recorded| {
                recorded.tails.push(Tail { from: at(1), to: at(2) });
                lose(0, recorded);
            }),
            "1 engagements lost",
        );
        let tail = judged(|recorded| lose(3, recorded));
        assert_eq!((tail.violations.len(), tail.lost_with_tail), (0, 1), "{tail:?}");
        says(
            &judged(|recorded| {
                recorded.ack = Ack::Kept;
                lose(3, recorded);
            }),
            "1 engagements lost",
        );
        let unacked = judged(|recorded| {
            recorded.wanted.get_mut("u").expect("u").events[1].sent.acked = None;
            lose(1, recorded);
        });
        assert_eq!(unacked, Verdict::default(), "what was never acknowledged may be there or not");
        says(&judged(|recorded| drop(recorded.histories.remove("v"))), "no history, 1 events lost");
        says(&judged(|recorded| recorded.letters.clear()), "no dead letter: bad");
        says(&judged(|recorded| recorded.letters.push("good".into())), "a dead letter of a good record");
        says(&judged(|recorded| recorded.overlays[0].1 = 0), "0 items of 1 acknowledged");
    }

    #[test]
    fn audit_20_the_checker_sees_a_planted_double() {
        let twice = judged(|recorded| {
            let row = rows(recorded)[1].clone();
            rows(recorded).insert(1, row);
            recorded.histories.get_mut("u").expect("u")["seq"] = json!(6);
        });
        says(&twice, "1 engagements twice");
        says(&judged(|recorded| recorded.histories.get_mut("u").expect("u")["seq"] = json!(6)), "seq is 6, 5 events");
        says(&judged(|recorded| recorded.overlays[0].1 = 2), "2 items, 1 were sent");
        let foreign = judged(|recorded| {
            rows(recorded).push(json!({ "ts_ms": 1, "event_id": "x" }));
            recorded.histories.get_mut("u").expect("u")["seq"] = json!(6);
        });
        says(&foreign, "1 nobody sent");
    }

    #[test]
    fn audit_20_the_checker_sees_a_planted_wrong_order() {
        says(&judged(|recorded| rows(recorded).swap(0, 1)), "out of order");
    }

    #[test]
    fn audit_20_the_checker_sees_a_planted_erasure_that_is_shown() {
        let risen = |recorded: &mut Recorded| {
            let rows = recorded.histories.get_mut("v").expect("v")["engagements"].as_array_mut().expect("list");
            rows.push(json!({ "ts_ms": 1, "event_id": "old" }));
        };
        says(&judged(risen), "old, which was erased");
        says(
            &judged(|recorded| drop(recorded.shown.insert("u".into(), vec!["gone".into()]))),
            "gone of v, who was erased",
        );
        let tail = judged(|recorded| {
            recorded.tails.push(Tail { from: at(5), to: at(8) });
            risen(recorded);
        });
        assert_eq!((tail.violations.len(), tail.lost_with_tail), (0, 1), "{tail:?}");
        let unacked = judged(|recorded| {
            recorded.wanted.get_mut("v").expect("v").erased.as_mut().expect("erased").sent.acked = None;
            risen(recorded);
        });
        assert_eq!(unacked, Verdict::default(), "nobody promised it");
    }

    #[test]
    fn audit_20_a_lost_due_mark_is_excused_only_beside_a_lost_tail_and_until_the_sweep() {
        let behind = |user: &str| Behind { user: user.into(), shows: 1, seq: 5 };
        let lost = judged(|recorded| recorded.behind.push(behind("u")));
        assert_eq!((lost.violations.len(), lost.marks_lost), (0, 1), "{lost:?}");
        says(
            &judged(|recorded| {
                recorded.behind.push(behind("u"));
                recorded.behind_after_sweep.push(behind("u"));
            }),
            "one sweep interval later, too",
        );
        says(
            &judged(|recorded| {
                recorded.tails.clear();
                recorded.behind.push(behind("u"));
            }),
            "features show seq 1 of 5",
        );
        says(&judged(|recorded| recorded.unsettled.push("offsets stand still".into())), "offsets stand still");
    }
}
