//! Erasing a user, step by step (DESIGN 5.2, Erase); the order of the steps is the job of [`crate::erase`].
//!
//! Erasures are one hash, user → `id era`, whose ids rise within its slot; two sorted sets beside it find the unfinished ones and those
//! to expire. What is deleted of a user is one function call in
//! the user's slot; it names the spaces it was given, and asks for more when the counters know another one.

use super::features::{ROUNDS, contended};
use super::function;
use super::link::Call;
use super::pace::{FUNCTION, MEMBER, MEMBERS, STEP};
use super::values::{corrupt, number, read};
use super::{RedisStore, SCAN_STEP};
use crate::store::{CrossBlank, Erasure, Erasures, StoreResult, UserState};
use async_trait::async_trait;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What the function answers: a space is missing, new, seq, weight, last refresh, era, erased before, erased seq.
type Answer = (u8, u64, u64, f64, i64, u64, i64, u64);

#[async_trait]
impl Erasures for RedisStore {
    async fn note_space(&self, space: &str) -> StoreResult<()> {
        self.link.one("note space", Call::new("SADD", &self.keys.spaces()).arg(space)).await?;
        Ok(())
    }

    async fn spaces(&self) -> StoreResult<Vec<String>> {
        let key = self.keys.spaces();
        let mut spaces: Vec<String> = read(&key, self.link.one("read spaces", Call::new("SMEMBERS", &key)).await?)?;
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
        let stored: HashMap<String, String> = self.scan("read erasures", "HSCAN", &key).await?.into_iter().collect();
        let erasure = |(user, text): (String, String)| {
            let (id, era) = text.split_once(' ').ok_or_else(|| corrupt(&key, "an erasure without an era"))?;
            let finished_era = if era.is_empty() { None } else { Some(number(&key, Some(era.as_bytes()))?) };
            Ok(Erasure { user, id: number(&key, Some(id.as_bytes()))?, finished_era })
        };
        let mut erasures = stored.into_iter().map(erasure).collect::<StoreResult<Vec<_>>>()?;
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
            let (last, found): (u64, Vec<(String, u64)>) = read(&keys[2], answer)?;
            let noted = |(user, id): (String, u64)| (id, Erasure { user, id, finished_era: None });
            erasures.extend(found.into_iter().map(noted));
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
        let (next, found): (String, Vec<(String, String)>) =
            read(&keys[0], self.link.one("file erasures", scan).await?)?;
        let calls = found.chunks(MEMBERS).map(|some| {
            let users: Vec<&str> = some.iter().map(|(user, _)| user.as_str()).collect();
            let call = Call::function(function!("file_erasures"), &keys).arg("").arg(users);
            call.costing(FUNCTION + MEMBER * some.len() as u32)
        });
        self.link.run("file erasures", calls.collect()).await?;
        Ok(if next == "0" { String::new() } else { next })
    }

    async fn erase_user(&self, erasure: &Erasure) -> StoreResult<UserState> {
        let user = erasure.user.as_str();
        for _ in 0..ROUNDS {
            let mut spaces: BTreeSet<String> = self.spaces().await?.into_iter().collect();
            let state_key = self.keys.of_user(user, "st");
            let fields: Vec<String> = read(&state_key, self.link.one("erase", Call::new("HKEYS", &state_key)).await?)?;
            spaces.extend(fields.iter().filter_map(|field| field.strip_prefix("r:")).map(String::from));
            let mut keys: Vec<String> =
                ["st", "h:e", "h:i", "q", "prof"].iter().map(|part| self.keys.of_user(user, part)).collect();
            keys.extend(spaces.iter().map(|space| self.keys.features(user, space)));
            let call = Call::function(function!("erase"), &keys).arg(self.clock_argument()).arg(erasure.id);
            let call = spaces.iter().fold(call, |call, space| call.arg(space));
            let answer: Answer = read(&state_key, self.link.one("erase", call).await?)?;
            let (missing, is_new, seq, weight, last_refresh_ms, era, erased_before_ms, erased_seq) = answer;
            if missing == 1 {
                continue;
            }
            self.count_new_user(is_new).await?;
            return Ok(UserState { seq, weight, last_refresh_ms, era, erased_before_ms, erased_seq });
        }
        Err(contended("erase", user))
    }

    async fn blank_cross(&self, space: &str, user: &str, neighbour: &str, era: u64) -> StoreResult<CrossBlank> {
        let key = self.keys.features(user, space);
        for _ in 0..ROUNDS {
            let Some((mut record, revision)) = self.read_record("blank cross", &key).await? else {
                return Ok(CrossBlank::Other);
            };
            let found = crate::store::blank::blank(&mut record.features, neighbour, era)
                .map_err(|message| corrupt(&key, message))?;
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
