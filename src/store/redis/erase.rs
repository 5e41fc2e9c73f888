//! Erasing a user, step by step (DESIGN 5.2, Erase); the order of the steps is the job of [`crate::erase`].
//!
//! Erasures are one hash, user → `id era`, whose ids rise within its slot; two sorted sets beside it find the unfinished ones and those
//! to expire; those of idle users wait in a hash of their own until they took place. What is deleted of a user is one function call in
//! the user's slot; it names the spaces it was given, and asks for more when the counters know another one.

use super::aside::{Bad, Source};
use super::call::Call;
use super::features::{ROUNDS, contended};
use super::function;
use super::pace::{ERASE, FUNCTION, MEMBER, MEMBERS, STEP};
use super::values::{corrupt, read};
use super::{RedisStore, SCAN_STEP};
use crate::event::decode::check_id;
use crate::store::{CrossBlank, Erasure, Erasures, IdleErasure, IdlePlan, RecordKind, StoreResult, UserState, codec};
use async_trait::async_trait;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What the function answers: a space is missing, new, seq, weight, last refresh, era, erased before, erased seq.
type Answer = (u8, u64, u64, f64, i64, u64, i64, u64);

#[async_trait]
impl Erasures for RedisStore {
    async fn note_space(&self, space: &str) -> StoreResult<()> {
        self.link.one("note space", Call::new("SADD", &self.keys.spaces()).arg(space)).await?;
        self.forms.note_space(space);
        Ok(())
    }

    async fn spaces(&self) -> StoreResult<Vec<String>> {
        let key = self.keys.spaces();
        let stored: Vec<Vec<u8>> = read(&key, self.link.one("read spaces", Call::new("SMEMBERS", &key)).await?)?;
        let (mut spaces, mut bad) = (Vec::with_capacity(stored.len()), Vec::new());
        for member in stored {
            match name_of("space", &member) {
                Ok(space) => spaces.push(space),
                Err(message) => bad.push(Bad { member, value: Vec::new(), message }),
            }
        }
        self.set_aside(RecordKind::Space, Source::Set(&key), bad).await;
        spaces.sort_unstable();
        Ok(spaces)
    }

    async fn note_erasure(&self, user: &str) -> StoreResult<Erasure> {
        let keys = self.keys.erasures();
        let call = Call::function(function!("note_erasure"), &keys).arg(self.clock_argument()).arg(user);
        let id = read(&keys[0], self.link.write_one("note erasure", call).await?)?;
        Ok(Erasure { user: user.to_string(), id, finished_era: None })
    }

    async fn erasures(&self) -> StoreResult<Vec<Erasure>> {
        let [key, ..] = self.keys.erasures();
        let stored: Vec<(Vec<u8>, Vec<u8>)> = self.scan("read erasures", "HSCAN", &key).await?;
        let stored: HashMap<Vec<u8>, Vec<u8>> = stored.into_iter().collect();
        let (mut erasures, mut bad) = (Vec::with_capacity(stored.len()), Vec::new());
        for (member, value) in stored {
            match erasure_of(&member, &value) {
                Ok(erasure) => erasures.push(erasure),
                Err(message) => bad.push(Bad { member, value, message }),
            }
        }
        self.set_aside(RecordKind::Erasure, Source::Hash(&key), bad).await;
        erasures.sort_unstable_by_key(|erasure| (erasure.finished_era.is_some(), erasure.id));
        Ok(erasures)
    }

    async fn unfinished_erasures(&self) -> StoreResult<Vec<Erasure>> {
        let keys = self.keys.erasures();
        let (mut erasures, mut after) = (BTreeMap::new(), 0u64);
        loop {
            let call = Call::function(function!("unfinished_erasures"), &keys).arg("").arg(after).arg(MEMBERS);
            let call = call.costing(FUNCTION + MEMBER * MEMBERS as u32);
            let answer = self.link.one("read unfinished erasures", call).await?;
            let (last, found): (u64, Vec<(Vec<u8>, u64)>) = read(&keys[2], answer)?;
            for (user, id) in found {
                // What is no name is put aside by who reads all of them.
                let Ok(user) = name_of("user_id", &user) else { continue };
                erasures.insert(id, Erasure { user, id, finished_era: None });
            }
            if last <= after {
                return Ok(erasures.into_values().collect());
            }
            after = last;
        }
    }

    async fn file_erasures(&self, place: &str) -> StoreResult<String> {
        let keys = self.keys.erasures();
        let cursor = if place.is_empty() { "0" } else { place };
        let scan = Call::new("HSCAN", &keys[0]).arg(cursor).arg("COUNT").arg(SCAN_STEP).costing(STEP);
        let (next, found): (String, Vec<(Vec<u8>, Vec<u8>)>) =
            read(&keys[0], self.link.one("file erasures", scan).await?)?;
        let calls = found.chunks(MEMBERS).map(|some| {
            let users: Vec<&[u8]> = some.iter().map(|(user, _)| user.as_slice()).collect();
            let call = Call::function(function!("file_erasures"), &keys).arg("").arg(users);
            call.costing(FUNCTION + MEMBER * some.len() as u32)
        });
        self.link.run("file erasures", calls.collect()).await?;
        Ok(if next == "0" { String::new() } else { next })
    }

    async fn erase_user(&self, erasure: &Erasure) -> StoreResult<UserState> {
        Ok(self.erase_at(&erasure.user, erasure.id, None).await?.0)
    }

    async fn quiet_time(&self, at_most_ms: i64) -> StoreResult<i64> {
        let [_, key] = self.keys.idle();
        let call = Call::function(function!("quiet_time"), std::slice::from_ref(&key));
        let call = call.arg(self.clock_argument()).arg(at_most_ms.max(0));
        read(&key, self.link.one("quiet time", call).await?)
    }

    async fn plan_idle_erasure(&self, user: &str, plan: &IdlePlan) -> StoreResult<Option<IdleErasure>> {
        let keys = self.idle_keys();
        let stored = codec::encode_plan(plan).map_err(|message| corrupt(&keys[4], message))?;
        let call = Call::function(function!("plan_idle_erasure"), &keys).arg(self.clock_argument());
        let call = call.arg(user).arg(stored);
        let id: u64 = read(&keys[4], self.link.one("plan idle erasure", call).await?)?;
        Ok((id > 0).then(|| IdleErasure { user: user.to_string(), id, plan: plan.clone() }))
    }

    async fn idle_erasures(&self) -> StoreResult<Vec<IdleErasure>> {
        let [key, _] = self.keys.idle();
        let stored: Vec<(Vec<u8>, Vec<u8>)> = self.scan("read idle erasures", "HSCAN", &key).await?;
        let stored: HashMap<Vec<u8>, Vec<u8>> = stored.into_iter().collect();
        let (mut planned, mut bad) = (Vec::with_capacity(stored.len()), Vec::new());
        for (member, value) in stored {
            match name_of("user_id", &member).and_then(|user| Ok((user, codec::decode_plan(&value)?))) {
                Ok((user, (id, plan))) => planned.push(IdleErasure { user, id, plan }),
                Err(message) => bad.push(Bad { member, value, message }),
            }
        }
        self.set_aside(RecordKind::Erasure, Source::Hash(&key), bad).await;
        planned.sort_unstable_by_key(|idle| idle.id);
        Ok(planned)
    }

    async fn erase_idle_user(&self, idle: &IdleErasure) -> StoreResult<(UserState, bool)> {
        self.erase_at(&idle.user, idle.id, Some(idle.plan.seq)).await
    }

    async fn settle_idle_erasure(&self, idle: &IdleErasure, took_place: bool) -> StoreResult<()> {
        // Who finds the note erases: it must not outlast what was applied on whatever master.
        if took_place {
            self.link.confirm_all("settle idle erasure").await?;
        }
        let call = Call::function(function!("settle_idle_erasure"), &self.idle_keys()).arg("");
        let call = call.arg(&idle.user).arg(idle.id).arg(u8::from(took_place));
        self.link.write_one("settle idle erasure", call).await?;
        Ok(())
    }

    async fn blank_cross(&self, space: &str, user: &str, neighbour: &str, era: u64) -> StoreResult<CrossBlank> {
        let key = self.keys.features(user, space);
        for _ in 0..ROUNDS {
            let stored = self.read_record("blank cross", &key).await;
            let Some(stored) = self.unreadable.skip(RecordKind::Features, stored)? else {
                self.delete_features(&key).await?;
                return Ok(CrossBlank::Blanked);
            };
            let Some((mut record, revision)) = stored else { return Ok(CrossBlank::Other) };
            let found = crate::store::blank::blank(&mut record.features, neighbour, era);
            if found != CrossBlank::Blanked || self.rewrite("blank cross", &key, &record, &revision).await? {
                return Ok(found);
            }
        }
        Err(contended("blank cross", user))
    }

    async fn finish_erasure(&self, erasure: &Erasure, era: u64) -> StoreResult<()> {
        let call = Call::function(function!("finish_erasure"), &self.keys.erasures())
            .arg("")
            .arg(&erasure.user)
            .arg(erasure.id)
            .arg(era);
        // What the steps before wrote, on whatever master, must not be lost when this is not.
        self.link.confirm_all("finish erasure").await?;
        self.link.write_one("finish erasure", call).await?;
        Ok(())
    }

    async fn expire_erasures(&self, before_ms: i64) -> StoreResult<usize> {
        self.expire_aside(before_ms).await;
        let (keys, mut gone) = (self.keys.erasures(), 0);
        loop {
            let call = Call::function(function!("expire_erasures"), &keys).arg("").arg(before_ms).arg(MEMBERS);
            let call = call.costing(FUNCTION + MEMBER * MEMBERS as u32);
            let (seen, went): (usize, usize) = read(&keys[0], self.link.one("expire erasures", call).await?)?;
            gone += went;
            if seen < MEMBERS {
                return Ok(gone);
            }
        }
    }
}

/// The name in these bytes, if it can be one.
fn name_of(what: &str, bytes: &[u8]) -> Result<String, String> {
    let name = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    check_id(what, name).map_err(|error| error.reason)?;
    Ok(name.to_string())
}

/// `id era`, the era empty while steps are left to do; what a later version writes behind is passed over.
fn erasure_of(user: &[u8], value: &[u8]) -> Result<Erasure, String> {
    let user = name_of("user_id", user)?;
    let text = std::str::from_utf8(value).map_err(|error| error.to_string())?;
    let mut words = text.split(' ');
    let mut number = || -> Option<Result<u64, String>> {
        let word = words.next()?;
        (!word.is_empty()).then(|| word.parse().map_err(|_| format!("{word:?} is no number")))
    };
    let id = number().ok_or("an erasure without an id")??;
    Ok(Erasure { user, id, finished_era: number().transpose()? })
}

impl RedisStore {
    /// Keys of the erasures, then of the plans.
    fn idle_keys(&self) -> Vec<String> {
        let [plans, _] = self.keys.idle();
        self.keys.erasures().into_iter().chain([plans]).collect()
    }

    /// Erases a user, where a `seq` is given as idle and only if it is still that one. Returns the counters, and whether it took place.
    async fn erase_at(&self, user: &str, id: u64, seq: Option<u64>) -> StoreResult<(UserState, bool)> {
        for _ in 0..ROUNDS {
            let mut spaces: BTreeSet<String> = self.spaces().await?.into_iter().collect();
            let state_key = self.keys.of_user(user, "st");
            let fields = self.link.one("erase", Call::new("HKEYS", &state_key)).await;
            let fields = fields.and_then(|fields| read::<Vec<Vec<u8>>>(&state_key, fields));
            // Whose counters cannot be read is known in the spaces that were noted.
            let fields = self.unreadable.skip(RecordKind::State, fields)?.unwrap_or_default();
            let fields = fields.into_iter().filter_map(|field| String::from_utf8(field).ok()).collect::<Vec<_>>();
            spaces.extend(fields.iter().filter_map(|field| field.strip_prefix("r:")).map(String::from));
            let mut keys: Vec<String> = ["st", "h:e", "h:i", "q", "prof", "remembered"]
                .iter()
                .map(|part| self.keys.of_user(user, part))
                .collect();
            keys.extend(spaces.iter().map(|space| self.keys.features(user, space)));
            keys.extend(spaces.iter().map(|space| self.keys.referrers(user, space)));
            let call = Call::function(function!("erase"), &keys).arg(self.clock_argument()).arg(id);
            let call = call.costing(ERASE).arg(seq.map(|seq| seq.to_string()).unwrap_or_default());
            let call = spaces.iter().fold(call, |call, space| call.arg(space));
            let answer: Answer = read(&state_key, self.link.one("erase", call).await?)?;
            let (missing, is_new, seq, weight, last_refresh_ms, era, erased_before_ms, erased_seq) = answer;
            if missing == 1 {
                continue;
            }
            self.count_new_user(is_new).await?;
            if missing != 2 {
                self.clear_aside(&self.keys.erasures()[0], user).await?;
            }
            let state = UserState { seq, weight, last_refresh_ms, era, erased_before_ms, erased_seq };
            return Ok((state, missing != 2));
        }
        Err(contended("erase", user))
    }
}
