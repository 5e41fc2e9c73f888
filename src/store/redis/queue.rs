//! Due queue, leases and the sweep. A queue lies in N shards by user; each shard is one slot. While programs that know the queues of
//! single spaces alone may come back, those are read, too ([`super::forms`]); the functions keep a user in one of them.
//!
//! A claim takes two steps: all shards tell their first due users, then the most urgent of all of them are taken. So the
//! order promised by the trait holds over all shards, as of the first step; for those whom another replica took in between
//! others are sought. A lost answer costs the users in it one lease time.

use super::address::Node;
use super::call::Call;
use super::forms::QueueKeys;
use super::function;
use super::history::{Field, least_refreshed};
use super::keys::{CLASSES, shard_of};
use super::link;
use super::pace::{FUNCTION, MEMBER, MEMBERS};
use super::values::{corrupt, number, read};
use super::{RedisStore, SCAN_STEP};
use crate::store::{
    Claim, DueEntry, DueQueue, Erasures, Queue, QueueDepth, RecordKind, SWEEP_CLASS, StoreResult, SweepStep,
};
use async_trait::async_trait;
use redis::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// Queues of a single Redis that one call looks into, or forms of them.
const QUEUES: usize = 32;
/// What a call that may end leases costs, in µs: it ends 150 at most.
const ENDING_LEASES: u32 = 1_500;
/// Users marked as awaited in one call, and what one costs, in µs.
const AWAITED_STEP: usize = 100;
const AWAITED_COST: u32 = 25;
/// What a call that sends back users whose callers' time is over costs, in µs: 100 at most.
const ENDING_WAITS: u32 = 1_500;

/// Times a claim looks again because other replicas were quicker with some of those it had seen.
const CLAIM_ROUNDS: u32 = 3;

/// Queues of one call, and whom it is about: which of the queues (from 1), and the place in the list it was made from.
#[derive(Default)]
struct Queues {
    shards: Vec<u32>,
    members: Vec<(usize, usize)>,
}

impl Queues {
    /// One of the last queue, or of a new one behind it.
    fn add(&mut self, shard: u32, index: usize) {
        if self.shards.last() != Some(&shard) {
            self.shards.push(shard);
        }
        self.members.push((self.shards.len(), index));
    }
}

#[async_trait]
impl DueQueue for RedisStore {
    async fn mark_due(&self, queue: Queue, entries: &[DueEntry]) -> StoreResult<()> {
        match self.mark(queue, entries, self.link.is_cluster()).await {
            // A queue of another type spoils the call of all of them; apart it spoils its own.
            Err(error) if error.is_unreadable() => self.mark(queue, entries, true).await,
            marked => marked,
        }
    }

    async fn mark_awaited(&self, users: &[String], due_ms: i64, until_ms: i64) -> StoreResult<()> {
        let keys = self.forms.now();
        let mut by_shard: BTreeMap<u32, Vec<&String>> = BTreeMap::new();
        for user in users {
            by_shard.entry(self.shard(user)).or_default().push(user);
        }
        let mut calls = Vec::new();
        for (shard, users) in by_shard {
            for piece in users.chunks(AWAITED_STEP.div_ceil(keys.forms)) {
                let call = self.queue_call(function!("mark_awaited"), &keys, Queue::Due, &[shard]);
                let call = piece.iter().fold(call.arg(until_ms).arg(due_ms), |call, user| call.arg(*user));
                calls.push(call.costing(AWAITED_COST * (piece.len() * keys.forms) as u32));
            }
        }
        self.link.run("mark due", calls).await?;
        Ok(())
    }

    async fn claim(&self, queue: Queue, limit: usize, lease: Duration) -> StoreResult<Vec<Claim>> {
        let keys = self.forms.now();
        let (mut claims, mut lost_rounds) = (Vec::new(), 0);
        while claims.len() < limit && lost_rounds < CLAIM_ROUNDS {
            let wanted = (limit - claims.len()).min(self.claim_step(&keys));
            let due = match self.due(&keys, queue, wanted).await {
                Ok(due) => due,
                // Who was taken before is worth more than who comes next.
                Err(_) if !claims.is_empty() => break,
                Err(error) => return Err(error),
            };
            let found = due.len();
            let taken = match self.lease(&keys, queue, due, lease).await {
                Ok(taken) => taken,
                Err(_) if !claims.is_empty() => break,
                Err(error) => return Err(error),
            };
            let is_whole = taken.len() == found;
            claims.extend(taken);
            if is_whole && found < wanted {
                break;
            }
            lost_rounds += u32::from(!is_whole);
        }
        Ok(claims)
    }

    async fn renew(&self, queue: Queue, claim: &Claim, lease: Duration) -> StoreResult<bool> {
        let call = self.lease_call(function!("renew"), queue, claim).arg(millis(lease));
        read("lease", self.link.one("renew", call).await?)
    }

    async fn release(&self, queue: Queue, claim: &Claim) -> StoreResult<bool> {
        read("lease", self.link.one("release", self.lease_call(function!("release"), queue, claim)).await?)
    }

    async fn queue_depth(&self, queue: Queue) -> StoreResult<QueueDepth> {
        let keys = self.forms.now();
        let (mut classes, mut leased): (BTreeMap<u8, (usize, i64)>, usize) = Default::default();
        let mut open: Vec<u32> = (0..self.shards).collect();
        let mut ending = self.end_awaited(&keys, queue);
        while !open.is_empty() {
            let depth = |shard: &u32| {
                self.queue_call(function!("depth"), &keys, queue, std::slice::from_ref(shard)).costing(ENDING_LEASES)
            };
            let mut calls = std::mem::take(&mut ending);
            let first = calls.len();
            calls.extend(open.iter().map(depth));
            let answers = self.link.run_each("queue depth", calls).await.into_iter().skip(first);
            let mut again = Vec::new();
            for (shard, answer) in open.into_iter().zip(answers) {
                let flat = answer.and_then(|answer| read::<Vec<i64>>("due queue", answer));
                let Some(flat) = self.unreadable.skip(RecordKind::Due, flat)? else { continue };
                let Some((leases, rest)) = flat.split_first() else { continue };
                // Leases are left to end first.
                if *leases < 0 {
                    again.push(shard);
                    continue;
                }
                leased += *leases as usize;
                for class in rest.chunks_exact(3) {
                    let all = classes.entry(class[0] as u8).or_insert((0, i64::MAX));
                    *all = (all.0 + class[1] as usize, all.1.min(class[2]));
                }
            }
            open = again;
        }
        Ok(QueueDepth { classes: classes.into_iter().map(|(class, (users, ms))| (class, users, ms)).collect(), leased })
    }

    /// The place is the users and those held back counted so far, and a place of a [`RedisStore::walk`].
    async fn sweep_step(&self, spaces: &[String], place: &str) -> StoreResult<SweepStep> {
        let (users, held, place) = counted(place).unwrap_or((0, 0, ""));
        let (keys, next) = self.walk("sweep", place).await?;
        let found = self.states_of(spaces, &keys).await?;
        // A walk that had to begin anew counts anew.
        let (users, held) = if next.is_anew { (0, 0) } else { (users, held) };
        let (users, held) = (users + keys.len() as u64, held + found.held.len() as u64);
        let marked = self.mark_absent(found.behind).await?;
        if !next.place.is_empty() {
            return Ok(SweepStep { marked, next: format!("{users} {held} {}", next.place) });
        }
        // Heals a count that a crash left behind.
        self.link.one("sweep", Call::new("SET", &self.keys.user_count()).arg(users)).await?;
        self.link.one("sweep", Call::new("SET", &self.keys.held_count()).arg(held)).await?;
        Ok(SweepStep { marked, next: String::new() })
    }

    async fn forget_due(&self, user: &str) -> StoreResult<()> {
        let shard = self.shard(user);
        // Also where another bundle's programs of before left a mark.
        let spaces = if self.forms.spaces_read().is_empty() { Vec::new() } else { self.spaces().await? };
        let forget = |queue, spaces: &[String]| {
            let keys = self.keys.queue_forms(queue, shard, spaces);
            let call = Call::function(function!("forget"), &keys).arg(self.clock_argument());
            call.arg(1 + spaces.len()).arg(1).arg(user).costing(FUNCTION * (1 + spaces.len() as u32))
        };
        // Once, where there are none.
        let parts: Vec<&[String]> = if spaces.is_empty() { vec![&[]] } else { spaces.chunks(QUEUES).collect() };
        let calls = parts.iter().flat_map(|part| Queue::ALL.map(|queue| forget(queue, part)));
        self.link.run("forget due", calls.collect()).await?;
        Ok(())
    }
}

impl RedisStore {
    /// Queues that one call looks into: of a cluster's those of one slot.
    fn queues_a_call(&self, keys: &QueueKeys) -> usize {
        if self.link.is_cluster() { 1 } else { (QUEUES / keys.forms).clamp(1, self.shards as usize) }
    }

    /// Users sought in one step of a claim, because each form of each queue tells so many.
    fn claim_step(&self, keys: &QueueKeys) -> usize {
        (MEMBERS * 4 / (self.queues_a_call(keys) * keys.forms)).clamp(1, members(keys))
    }

    /// One call for some queues, or `apart`, which a cluster needs, one a queue.
    async fn mark(&self, queue: Queue, entries: &[DueEntry], apart: bool) -> StoreResult<()> {
        let keys = self.forms.now();
        let mut calls = Vec::new();
        for queues in self.by_queue(&keys, entries.iter().map(|entry| entry.user.as_str()), apart) {
            let call = self.queue_call(function!("mark"), &keys, queue, &queues.shards);
            let call = call.costing(cost(&keys, queues.members.len()));
            calls.push(queues.members.into_iter().fold(call, |call, (queue, index)| {
                let entry = &entries[index];
                call.arg(queue).arg(&entry.user).arg(entry.class.min(CLASSES - 1)).arg(entry.due_ms)
            }));
        }
        self.unreadable.watch(RecordKind::Due, self.link.run("mark due", calls).await.map(|_| ()))
    }

    /// Calls that send users back whose callers' time is over.
    fn end_awaited(&self, keys: &QueueKeys, queue: Queue) -> Vec<Call> {
        // No caller waits for an answer of the fast path.
        if queue == Queue::Fast {
            return Vec::new();
        }
        let shards: Vec<u32> = (0..self.shards).collect();
        let end = |shards: &[u32]| self.queue_call(function!("end_awaited"), keys, queue, shards).costing(ENDING_WAITS);
        shards.chunks(self.queues_a_call(keys)).map(end).collect()
    }

    /// The first who are due: class, due, user; no more than `limit`.
    async fn due(&self, keys: &QueueKeys, queue: Queue, limit: usize) -> StoreResult<Vec<(u8, i64, String)>> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let shards: Vec<u32> = (0..self.shards).collect();
        let mut open: Vec<Vec<u32>> = shards.chunks(self.queues_a_call(keys)).map(<[u32]>::to_vec).collect();
        let mut ending = self.end_awaited(keys, queue);
        let mut due: Vec<(u8, i64, String)> = Vec::new();
        while !open.is_empty() {
            // Of a node's calls, those that send users back come first.
            let mut calls = std::mem::take(&mut ending);
            let first = calls.len();
            calls.extend(open.iter().map(|some| self.peek(keys, queue, some, limit)));
            let answers = self.link.run_each("claim", calls).await.into_iter().skip(first);
            let mut again = Vec::new();
            for (some, answer) in open.into_iter().zip(answers) {
                match self.unreadable.skip(RecordKind::Due, answer.and_then(|answer| self.places_of(answer)))? {
                    Some(Some(places)) => due.extend(places),
                    // Leases are left to end first.
                    Some(None) => again.push(some),
                    // One queue of another type spoils the call of all of them; apart it spoils its own.
                    None if some.len() > 1 => again.extend(some.into_iter().map(|shard| vec![shard])),
                    None => {}
                }
            }
            open = again;
        }
        due.sort_unstable();
        due.truncate(limit);
        Ok(due)
    }

    /// Asks these shards' queues who is due.
    fn peek(&self, keys: &QueueKeys, queue: Queue, shards: &[u32], limit: usize) -> Call {
        let cost = ENDING_LEASES + (2 * limit * shards.len() * keys.forms) as u32;
        self.queue_call(function!("peek"), keys, queue, shards).arg(limit).costing(cost)
    }

    /// Who is due; the first number says how many members the function put aside. `None` = to be asked again.
    fn places_of(&self, answer: Value) -> StoreResult<Option<Vec<(u8, i64, String)>>> {
        const QUEUE: &str = "due queue";
        let flat: Vec<Vec<u8>> = read(QUEUE, answer)?;
        let Some((aside, places)) = flat.split_first() else { return Ok(Some(Vec::new())) };
        if aside == b"more" {
            return Ok(None);
        }
        for _ in 0..number::<u64>(QUEUE, Some(aside))? {
            self.unreadable.note(RecordKind::Due, &corrupt(QUEUE, "neither a user nor a lease; put aside"));
        }
        let place = |place: &[Vec<u8>]| {
            let user = String::from_utf8(place[2].clone()).map_err(|error| corrupt(QUEUE, error.to_string()))?;
            Ok((number(QUEUE, Some(&place[0]))?, number(QUEUE, Some(&place[1]))?, user))
        };
        let places = places.chunks_exact(3).map(|found| self.unreadable.skip(RecordKind::Due, place(found)));
        Ok(Some(places.collect::<StoreResult<Vec<_>>>()?.into_iter().flatten().collect()))
    }

    async fn lease(
        &self,
        keys: &QueueKeys,
        queue: Queue,
        due: Vec<(u8, i64, String)>,
        lease: Duration,
    ) -> StoreResult<Vec<Claim>> {
        let wanted: Vec<Claim> = due
            .into_iter()
            // Random tokens: two replicas never hold the same one.
            .map(|(class, due_ms, user)| Claim { user, class, due_ms, token: rand::random() })
            .collect();
        // A queue of another type spoils the call of all of them; those taken apart are of one class of few.
        let taken = self.take(keys, queue, &wanted, lease, self.link.is_cluster()).await;
        let taken = match taken {
            Err(error) if error.is_unreadable() => self.take(keys, queue, &wanted, lease, true).await?,
            taken => taken?,
        };
        Ok(wanted.into_iter().zip(taken).filter_map(|(claim, taken)| taken.then_some(claim)).collect())
    }

    /// Which of these were still there and are taken now. Apart, queues that cannot be read are passed over.
    async fn take(
        &self,
        keys: &QueueKeys,
        queue: Queue,
        wanted: &[Claim],
        lease: Duration,
        apart: bool,
    ) -> StoreResult<Vec<bool>> {
        let groups = self.by_queue(keys, wanted.iter().map(|claim| claim.user.as_str()), apart);
        let calls = groups.iter().map(|queues| {
            let call = self.queue_call(function!("take"), keys, queue, &queues.shards).arg(millis(lease));
            let call = call.costing(cost(keys, queues.members.len()));
            queues.members.iter().fold(call, |call, (queue, index)| {
                let claim = &wanted[*index];
                call.arg(queue).arg(&claim.user).arg(claim.class).arg(claim.due_ms).arg(token_of(claim))
            })
        });
        let answers = self.link.run_each("claim", calls.collect()).await;
        let mut taken = vec![false; wanted.len()];
        for (queues, answer) in groups.iter().zip(answers) {
            let flags = answer.and_then(|answer| read::<Vec<i64>>("due queue", answer));
            let flags = if apart { self.unreadable.skip(RecordKind::Due, flags)? } else { Some(flags?) };
            for ((_, index), flag) in queues.members.iter().zip(flags.unwrap_or_default()) {
                taken[*index] = flag == 1;
            }
        }
        Ok(taken)
    }

    /// The queues of these users, by the calls they take, each queue in as few as can be, since a call names all keys of its queues: a
    /// cluster takes keys of one slot a call, a single Redis all at once.
    fn by_queue<'a>(&self, keys: &QueueKeys, users: impl Iterator<Item = &'a str>, apart: bool) -> Vec<Queues> {
        let mut by_shard: Vec<(u32, usize)> =
            users.enumerate().map(|(index, user)| (self.shard(user), index)).collect();
        by_shard.sort_unstable();
        let mut groups: Vec<Queues> = Vec::new();
        for (shard, index) in by_shard {
            let takes = |queues: &Queues| {
                queues.members.len() < members(keys) && (!apart || queues.shards.last() == Some(&shard))
            };
            match groups.last_mut() {
                Some(queues) if takes(queues) => queues.add(shard, index),
                _ => {
                    let mut queues = Queues::default();
                    queues.add(shard, index);
                    groups.push(queues);
                }
            }
        }
        groups
    }

    /// A step of a walk over the counters of all users: their keys, and where to go on. The place is a master and a cursor of its
    /// `SCAN`; where that is no master any more the walk begins anew.
    pub(super) async fn walk(&self, operation: &'static str, place: &str) -> StoreResult<(Vec<String>, Next)> {
        let mut masters = self.link.masters();
        masters.sort_unstable();
        let known = reached(place, &masters);
        let is_anew = known.is_none();
        let (at, cursor) = known.unwrap_or((0, "0"));
        let Some(node) = masters.get(at) else { return Ok((Vec::new(), Next { place: String::new(), is_anew })) };
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(self.keys.all_states()).arg("COUNT").arg(SCAN_STEP);
        let (next, keys): (String, Vec<Vec<u8>>) = read("scan", self.link.on(operation, node, &scan).await?)?;
        let mut keys: Vec<String> = keys.into_iter().filter_map(|key| String::from_utf8(key).ok()).collect();
        keys.sort_unstable();
        keys.dedup();
        let (at, next) = if next == "0" { (at + 1, "0") } else { (at, next.as_str()) };
        let place = masters.get(at).map(|node| format!("{} {next}", link::name(node))).unwrap_or_default();
        Ok((keys, Next { place, is_anew }))
    }

    /// Of some users those whose features are behind in one of the spaces, and those of them who are held back.
    pub(super) async fn states_of(&self, spaces: &[String], state_keys: &[String]) -> StoreResult<Behind> {
        let refreshed: Vec<String> = spaces.iter().map(|space| format!("r:{space}")).collect();
        let fields = |key: &String| Call::new("HMGET", key).arg("seq").arg("erased_seq").arg("held").arg(&refreshed);
        let answers = self.link.run_each("sweep", state_keys.iter().map(fields).collect()).await;
        let mut found = Behind::default();
        for (key, answer) in state_keys.iter().zip(answers) {
            let standing = self.unreadable.skip(RecordKind::State, answer.and_then(|answer| standing(key, answer)))?;
            let Some(user) = self.keys.user_of_state(key) else { continue };
            match standing {
                Some(Standing::Behind) => found.behind.push(user),
                Some(Standing::Held) => found.held.push(user),
                Some(Standing::Done) | None => {}
            }
        }
        Ok(found)
    }

    /// Marks users due who neither wait nor are leased; returns how many.
    async fn mark_absent(&self, users: Vec<String>) -> StoreResult<usize> {
        let keys = self.forms.now();
        let mut by_shard: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        for user in users {
            by_shard.entry(self.shard(&user)).or_default().push(user);
        }
        let calls = by_shard.iter().flat_map(|(shard, users)| {
            users.chunks(members(&keys)).map(|some| {
                let call = self.queue_call(function!("mark_absent"), &keys, Queue::Due, std::slice::from_ref(shard));
                call.arg(SWEEP_CLASS).arg(some).costing(cost(&keys, some.len()))
            })
        });
        let mut marked = 0;
        for answer in self.link.run_each("sweep", calls.collect()).await {
            let answer = answer.and_then(|answer| read::<usize>("due queue", answer));
            marked += self.unreadable.skip(RecordKind::Due, answer)?.unwrap_or(0);
        }
        Ok(marked)
    }

    fn shard(&self, user: &str) -> u32 {
        shard_of(user, self.shards)
    }

    /// A call on these shards of a queue, in all forms that are read.
    fn queue_call(&self, name: &str, keys: &QueueKeys, queue: Queue, shards: &[u32]) -> Call {
        let all: Vec<&String> = shards.iter().flat_map(|shard| keys.of(queue, *shard)).collect();
        Call::function(name, &all).arg(self.clock_argument()).arg(keys.forms).arg(keys.into)
    }

    fn lease_call(&self, name: &str, queue: Queue, claim: &Claim) -> Call {
        let call = self.queue_call(name, &self.forms.now(), queue, &[self.shard(&claim.user)]);
        call.arg(&claim.user).arg(token_of(claim))
    }
}

/// Users that one call is about, at most: each is looked for in every form.
fn members(keys: &QueueKeys) -> usize {
    (MEMBERS / keys.forms).max(1)
}

/// What a call about so many users costs, in µs.
fn cost(keys: &QueueKeys, users: usize) -> u32 {
    FUNCTION + MEMBER * (users * keys.forms) as u32
}

/// How a user's features stand to what came.
enum Standing {
    /// Nothing came since what was refreshed and what was erased.
    Done,
    Behind,
    /// Behind by bulk history alone.
    Held,
}

fn standing(key: &str, answer: Value) -> StoreResult<Standing> {
    let fields: Vec<Field> = read(key, answer)?;
    let field = |nth: usize| fields.get(nth).and_then(Option::as_deref);
    let (seq, erased_seq, held) = (field(0), field(1), field(2));
    let refreshed = least_refreshed(key, fields.get(3..).unwrap_or_default())?.unwrap_or(0);
    let (seq, done) = (number::<u64>(key, seq)?, refreshed.max(number(key, erased_seq)?));
    if seq <= done {
        return Ok(Standing::Done);
    }
    // A mark that cannot be read holds nobody back.
    let mut held = held.unwrap_or_default().split(|byte| *byte == b' ').map(|part| number::<u64>(key, Some(part)).ok());
    let is_held = matches!((held.next(), held.next()), (Some(Some(from)), Some(Some(to))) if from <= done && to == seq);
    Ok(if is_held { Standing::Held } else { Standing::Behind })
}

/// A lease's token as it is stored. The 0 before it tells our leases from those of 0.1.0, which reads both alike.
fn token_of(claim: &Claim) -> String {
    format!("0{}", claim.token)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Where a walk goes on.
pub(super) struct Next {
    /// Empty at the end.
    pub place: String,
    /// It began with this step: also where the place that was given is none any more.
    pub is_anew: bool,
}

/// Users of a step of a walk.
#[derive(Default)]
pub(super) struct Behind {
    /// The features are behind.
    pub behind: Vec<String>,
    /// By bulk history alone.
    pub held: Vec<String>,
}

/// Users and those held back that were counted, and the place of the walk.
fn counted(place: &str) -> Option<(u64, u64, &str)> {
    let (users, rest) = place.split_once(' ')?;
    let (held, rest) = rest.split_once(' ')?;
    Some((users.parse().ok()?, held.parse().ok()?, rest))
}

/// Which master, and the cursor there.
fn reached<'a>(place: &'a str, masters: &[Node]) -> Option<(usize, &'a str)> {
    let (name, cursor) = place.split_once(' ')?;
    Some((masters.iter().position(|node| link::name(node) == name)?, cursor))
}
