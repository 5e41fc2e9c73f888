//! Who does a chore: one hash each, changed by a function.

use super::call::Call;
use super::values::read;
use super::{RedisStore, function};
use crate::store::{ChoreLease, Chores, StoreResult};
use async_trait::async_trait;
use std::time::Duration;

#[async_trait]
impl Chores for RedisStore {
    async fn begin_chore(&self, chore: &str, every: Duration, lease: Duration) -> StoreResult<Option<ChoreLease>> {
        let (key, token) = (self.keys.chore(chore), rand::random::<u64>());
        let call = Call::function(function!("begin_chore"), std::slice::from_ref(&key))
            .arg(self.clock_argument())
            .arg(token.to_string())
            .arg(millis(every))
            .arg(millis(lease));
        let place: Option<String> = read(&key, self.link.one("begin chore", call).await?)?;
        Ok(place.map(|place| ChoreLease { chore: chore.to_string(), token, place }))
    }

    async fn go_on_with_chore(&self, held: &ChoreLease, place: &str, lease: Duration) -> StoreResult<bool> {
        let key = self.keys.chore(&held.chore);
        let call = Call::function(function!("go_on_with_chore"), std::slice::from_ref(&key))
            .arg(self.clock_argument())
            .arg(held.token.to_string())
            .arg(place)
            .arg(millis(lease));
        read(&key, self.link.one("go on with chore", call).await?)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
