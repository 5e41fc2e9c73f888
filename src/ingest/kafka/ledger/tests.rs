//! The rules of DESIGN 5.5 by name, and random lives of a partition against a model that recounts everything.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

const DELAY: Millis = 5_000;
/// Replicas are not asked.
const NEVER: Millis = Millis::MAX;

fn deliver(ledger: &mut Ledger, offsets: &[i64]) -> Vec<Ticket> {
    offsets.iter().map(|&offset| ledger.deliver(offset, 0).expect("taken")).collect()
}

#[test]
fn finished_records_are_let_go_only_after_the_delay() {
    let mut ledger = Ledger::new(1, DELAY);
    let tickets = deliver(&mut ledger, &[7, 8]);
    assert!(ledger.complete(tickets[0], 100));
    assert!(ledger.complete(tickets[1], 200));
    assert_eq!(ledger.release(100 + DELAY - 1, NEVER), None);
    assert_eq!(ledger.release(100 + DELAY, NEVER), Some(8));
    assert_eq!(ledger.release(100 + DELAY, NEVER), None, "nothing new");
    assert_eq!(ledger.release(200 + DELAY, NEVER), Some(9));
}

#[test]
fn audit_11_what_replicas_are_not_known_to_have_is_not_let_go_however_old_it_is() {
    let mut ledger = Ledger::new(1, DELAY);
    let tickets = deliver(&mut ledger, &[7, 8, 9]);
    for (ticket, finished) in tickets.into_iter().zip([100, 200, 300]) {
        ledger.complete(ticket, finished);
    }
    assert_eq!(ledger.release(100 * DELAY, 99), None, "asked before the first was finished");
    assert_eq!(ledger.release(100 * DELAY, 200), Some(9));
    assert_eq!(ledger.release(1000 * DELAY, 200), None, "offsets stand still");
    assert_eq!((ledger.unfinished(), ledger.held_back()), (0, 1));
    assert_eq!(ledger.rewind(2), Some(9), "a replica took over: what it may lack is read again");
    ledger.sought();
    let again = deliver(&mut ledger, &[9]);
    ledger.complete(again[0], 1000 * DELAY);
    assert_eq!(ledger.release(1001 * DELAY - 1, NEVER), None, "the delay holds as before");
    assert_eq!(ledger.release(1001 * DELAY, NEVER), Some(10));
}

#[test]
fn an_unfinished_record_holds_everything_behind_it() {
    let mut ledger = Ledger::new(1, DELAY);
    let tickets = deliver(&mut ledger, &[0, 1, 2]);
    ledger.complete(tickets[1], 0);
    ledger.complete(tickets[2], 0);
    assert_eq!(ledger.release(10 * DELAY, NEVER), None);
    assert_eq!((ledger.unfinished(), ledger.held_back()), (1, 2));
    ledger.complete(tickets[0], 10 * DELAY);
    assert_eq!(ledger.release(11 * DELAY, NEVER), Some(3));
}

#[test]
fn gaps_of_transactions_and_compaction_do_not_hold_the_run() {
    let mut ledger = Ledger::new(1, DELAY);
    // 3 and 4 are an aborted record and its marker, 6 to 90 were compacted away.
    let tickets = deliver(&mut ledger, &[1, 2, 5, 91]);
    for ticket in tickets {
        ledger.complete(ticket, 0);
    }
    assert_eq!(ledger.release(DELAY, NEVER), Some(92));
}

#[test]
fn stale_completions_after_a_seek_are_ignored() {
    let mut ledger = Ledger::new(1, DELAY);
    let old = deliver(&mut ledger, &[10, 11, 12]);
    assert_eq!(ledger.rewind(2), Some(10));
    ledger.sought();
    let fresh = deliver(&mut ledger, &[10, 11, 12]);
    for ticket in &old {
        assert!(!ledger.complete(*ticket, 0), "a completion of the generation before");
        assert!(!ledger.start(*ticket));
    }
    assert_eq!(ledger.release(10 * DELAY, NEVER), None);
    assert!(fresh.iter().all(|ticket| ledger.complete(*ticket, 10 * DELAY)));
    assert_eq!(ledger.release(11 * DELAY, NEVER), Some(13));
}

#[test]
fn stale_completions_after_a_new_assignment_are_ignored() {
    let mut before = Ledger::new(1, DELAY);
    let old = deliver(&mut before, &[0]);
    let mut ledger = Ledger::new(2, DELAY);
    deliver(&mut ledger, &[0]);
    assert!(!ledger.complete(old[0], 0));
    assert_eq!(ledger.release(10 * DELAY, NEVER), None);
}

#[test]
fn a_revoke_before_the_first_stored_offset_lets_nothing_go() {
    let mut ledger = Ledger::new(1, DELAY);
    let tickets = deliver(&mut ledger, &[0, 1, 2]);
    assert!(ledger.start(tickets[0]));
    ledger.revoke();
    assert!(!ledger.start(tickets[1]), "unstarted records are dropped");
    assert_eq!(ledger.deliver(3, 0), None);
    assert_eq!(ledger.started(), 1);
    ledger.complete(tickets[0], 100);
    assert_eq!(ledger.started(), 0);
    // No offset was stored: the next owner begins where this one began, by `auto.offset.reset = earliest`.
    assert_eq!(ledger.release(100 + DELAY - 1, NEVER), None);
}

#[test]
fn a_revoke_lets_go_only_what_is_older_than_the_delay() {
    let mut ledger = Ledger::new(1, DELAY);
    let tickets = deliver(&mut ledger, &[0, 1, 2]);
    ledger.complete(tickets[0], 0);
    ledger.complete(tickets[1], DELAY);
    ledger.revoke();
    assert_eq!(ledger.release(DELAY, NEVER), Some(1));
}

#[test]
fn a_store_that_lost_its_tail_gets_everything_since_the_last_let_go_again() {
    let mut ledger = Ledger::new(1, DELAY);
    let tickets = deliver(&mut ledger, &[0, 1, 2, 3]);
    ledger.complete(tickets[0], 0);
    assert_eq!(ledger.release(DELAY, NEVER), Some(1));
    ledger.complete(tickets[1], DELAY);
    ledger.complete(tickets[2], DELAY);
    assert_eq!(ledger.rewind(2), Some(1));
    assert_eq!(ledger.deliver(4, 0), None, "what was fetched before the seek is not counted");
    assert_eq!(ledger.release(100 * DELAY, NEVER), None);
    ledger.sought();
    let again = deliver(&mut ledger, &[1, 2, 3]);
    for ticket in again {
        ledger.complete(ticket, 100 * DELAY);
    }
    assert_eq!(ledger.release(101 * DELAY, NEVER), Some(4));
}

#[test]
fn a_rewind_before_anything_was_let_go_seeks_to_where_the_assignment_began() {
    let mut ledger = Ledger::new(1, DELAY);
    assert_eq!(ledger.rewind(2), None, "nothing was delivered: the position is right");
    deliver(&mut ledger, &[40, 41]);
    assert_eq!(ledger.rewind(3), Some(40));
    assert_eq!(ledger.rewind(4), Some(40), "a seek that failed is tried again");
    assert_eq!(ledger.seeking(), Some(40));
    ledger.sought();
    assert_eq!(ledger.seeking(), None);
}

#[test]
fn a_log_that_was_cut_never_moves_the_committed_offset_back() {
    let mut ledger = Ledger::new(1, DELAY);
    let tickets = deliver(&mut ledger, &[100, 0, 1]);
    for ticket in tickets {
        ledger.complete(ticket, 0);
    }
    assert_eq!(ledger.release(DELAY, NEVER), Some(101));
}

#[test]
fn a_drain_may_let_go_what_is_fresh_but_not_what_is_behind_a_gap() {
    let mut ledger = Ledger::new(1, DELAY);
    let tickets = deliver(&mut ledger, &[0, 1, 2]);
    ledger.complete(tickets[0], 0);
    ledger.complete(tickets[2], 0);
    assert_eq!(ledger.release_finished(), Some(1));
    assert_eq!(ledger.oldest_unfinished_ms(), Some(0));
}

#[test]
fn abandoned_work_is_not_waited_for_and_stays_unfinished() {
    let mut ledger = Ledger::new(1, DELAY);
    let tickets = deliver(&mut ledger, &[0]);
    assert!(ledger.start(tickets[0]) && ledger.start(tickets[0]));
    assert_eq!(ledger.started(), 1);
    ledger.abandon(tickets[0]);
    ledger.abandon(tickets[0]);
    assert_eq!((ledger.started(), ledger.unfinished()), (0, 1));
}

#[test]
fn finished_work_is_not_begun_again() {
    let mut ledger = Ledger::new(1, DELAY);
    let tickets = deliver(&mut ledger, &[0]);
    assert!(ledger.complete(tickets[0], 0));
    assert!(!ledger.start(tickets[0]));
    assert_eq!(ledger.started(), 0);
}

/// One thing that happens to a partition.
#[derive(Debug, Clone)]
enum Step {
    Deliver,
    Start(usize),
    /// Any ticket ever handed out, so completions come in any order, twice, and late.
    Complete(usize),
    Abandon(usize),
    Wait(Millis),
    /// Replicas have everything now, or lack something.
    Replicas(bool),
    /// A replica takes over which has what replicas were last found to have, and no more.
    TakeOver,
    Release,
    Rewind,
    Sought,
    /// Revoked and assigned again, to this process or another.
    Reassign,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Deliver),
        3 => any::<usize>().prop_map(Step::Start),
        6 => any::<usize>().prop_map(Step::Complete),
        1 => any::<usize>().prop_map(Step::Abandon),
        3 => (0..2 * DELAY).prop_map(Step::Wait),
        3 => any::<bool>().prop_map(Step::Replicas),
        1 => Just(Step::TakeOver),
        4 => Just(Step::Release),
        1 => Just(Step::Rewind),
        2 => Just(Step::Sought),
        1 => Just(Step::Reassign),
    ]
}

/// A partition's log with gaps, where the consumer stands, and what the model counted in this generation.
struct Life {
    log: Vec<i64>,
    /// Index into the log of the next record.
    position: usize,
    /// Index where a seek will put it.
    seek_to: Option<usize>,
    committed: Option<i64>,
    ledger: Ledger,
    generation: u64,
    now: Millis,
    /// When replicas last had everything.
    confirmed: Millis,
    /// Indices into the log of what the store holds, and when each was stored for good.
    stored: BTreeMap<usize, Millis>,
    tickets: Vec<Ticket>,
    /// (index into the log, finished at) of this generation, in order of delivery.
    counted: Vec<(usize, Option<Millis>)>,
    /// Where each ticket of this generation stands in `counted`.
    of_ticket: Vec<Option<usize>>,
}

impl Life {
    fn new(gaps: &[i64]) -> Life {
        let mut offset = 0;
        let log = gaps
            .iter()
            .map(|gap| {
                offset += gap;
                offset
            })
            .collect();
        Life {
            log,
            position: 0,
            seek_to: None,
            committed: None,
            ledger: Ledger::new(1, DELAY),
            generation: 1,
            now: 0,
            confirmed: 0,
            stored: BTreeMap::new(),
            tickets: Vec::new(),
            counted: Vec::new(),
            of_ticket: Vec::new(),
        }
    }

    /// The record that Kafka delivers first after `offset` (or from the beginning).
    fn index_of(&self, offset: Option<i64>) -> usize {
        offset.map(|wanted| self.log.partition_point(|offset| *offset < wanted)).unwrap_or(0)
    }

    fn forget(&mut self) {
        self.generation += 1;
        self.counted.clear();
        self.of_ticket.iter_mut().for_each(|place| *place = None);
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Deliver => self.deliver(),
            Step::Start(pick) => {
                if let Some(place) = pick_from(*pick, self.tickets.len()) {
                    let current = self.of_ticket[place].is_some();
                    assert!(!self.ledger.start(self.tickets[place]) || current, "started an old ticket");
                }
            }
            Step::Complete(pick) => self.complete(*pick),
            Step::Abandon(pick) => {
                if let Some(place) = pick_from(*pick, self.tickets.len()) {
                    self.ledger.abandon(self.tickets[place]);
                }
            }
            Step::Wait(time) => self.now += time,
            // What finishes in the moment of the question is not covered by its answer.
            Step::Replicas(true) => self.confirmed = self.now.saturating_sub(1),
            Step::Replicas(false) => {}
            Step::TakeOver => self.take_over(),
            Step::Release => self.release(),
            Step::Rewind => self.rewind(),
            Step::Sought => self.seek(),
            Step::Reassign => self.reassign(),
        }
        let unfinished = self.counted.iter().filter(|(_, finished)| finished.is_none()).count();
        assert_eq!(self.ledger.unfinished(), unfinished);
        assert!(self.ledger.started() <= unfinished);
    }

    fn deliver(&mut self) {
        let Some(&offset) = self.log.get(self.position) else { return };
        let taken = self.ledger.deliver(offset, 0);
        assert_eq!(taken.is_none(), self.seek_to.is_some(), "delivered while a seek is outstanding");
        if let Some(ticket) = taken {
            self.tickets.push(ticket);
            self.of_ticket.push(Some(self.counted.len()));
            self.counted.push((self.position, None));
        }
        self.position += 1;
    }

    fn complete(&mut self, pick: usize) {
        let Some(place) = pick_from(pick, self.tickets.len()) else { return };
        let known = self.of_ticket[place];
        let accepted = self.ledger.complete(self.tickets[place], self.now);
        let Some(index) = known else {
            assert!(!accepted, "a completion of an older generation counted");
            return;
        };
        self.counted[index].1.get_or_insert(self.now);
        self.stored.entry(self.counted[index].0).or_insert(self.now);
    }

    /// The store loses what no replica was known to have, and everything is read again from what was released.
    fn take_over(&mut self) {
        let confirmed = self.confirmed;
        self.stored.retain(|_, at| *at <= confirmed);
        self.rewind();
    }

    /// Recounts: the longest run from the generation's beginning whose records all finished long enough ago.
    fn release(&mut self) {
        let now = self.now;
        let confirmed = self.confirmed;
        let is_due = |finished: Millis| finished + DELAY <= now && finished <= confirmed;
        let old = |finished: &Option<Millis>| finished.is_some_and(is_due);
        let run = self.counted.iter().take_while(|(_, finished)| old(finished)).last();
        let expected = run.map(|(index, _)| self.log[*index] + 1).filter(|offset| Some(*offset) > self.committed);
        let found = self.ledger.release(self.now, self.confirmed);
        assert_eq!(found, expected);
        if found.is_some() {
            assert!(found > self.committed, "went backwards");
            self.committed = found;
        }
    }

    fn rewind(&mut self) {
        self.forget();
        let target = self.ledger.rewind(self.generation);
        match target {
            Some(offset) => self.seek_to = Some(self.index_of(Some(offset))),
            None => assert_eq!(self.position, self.index_of(self.committed), "no seek, but records were delivered"),
        }
    }

    fn seek(&mut self) {
        if let Some(index) = self.seek_to.take() {
            assert_eq!(index, self.index_of(self.committed), "sought past what was released, or further back");
            self.position = index;
            self.ledger.sought();
        }
    }

    fn reassign(&mut self) {
        self.ledger.revoke();
        self.release();
        self.forget();
        self.ledger = Ledger::new(self.generation, DELAY);
        self.seek_to = None;
        self.position = self.index_of(self.committed);
    }

    /// Whatever happened, going on quietly releases the whole log.
    fn finish(mut self) {
        self.seek();
        while self.position < self.log.len() {
            self.deliver();
        }
        for place in 0..self.tickets.len() {
            self.complete(place);
        }
        self.now += DELAY;
        self.confirmed = self.now;
        self.release();
        assert_eq!(self.committed, self.log.last().map(|offset| offset + 1));
        assert_eq!(self.stored.len(), self.log.len(), "a record was lost");
    }
}

fn pick_from(pick: usize, length: usize) -> Option<usize> {
    (length > 0).then(|| pick % length)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn audit_11_any_life_agrees_with_the_model_and_loses_nothing_to_a_replica_that_takes_over(
        gaps in prop::collection::vec(1_i64..5, 1..40),
        steps in prop::collection::vec(step(), 0..200),
    ) {
        let mut life = Life::new(&gaps);
        for step in &steps {
            life.take(step);
        }
        life.finish();
    }
}
