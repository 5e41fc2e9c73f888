//! Choosing the user whose sequence is shown: privacy rules first, similarity second (DESIGN 5.3).

use crate::catalogue::Catalogue;
use crate::config::RetrieveSettings;
use crate::feature::CrossFinding;
use crate::proto::Behaviour;
use crate::retrieve::{Neighbour, UserSnapshot};
use crate::store::{FeatureStore, HISTORY_CAP, StoreError, UserHistory};

/// Histories are read of the first candidate, which nearly always may be shown; then of this many times as many, and so on.
const MORE_EACH_TIME: usize = 4;

/// What the choice reads.
pub(super) struct Chooser<'a> {
    pub store: &'a dyn FeatureStore,
    pub catalogue: &'a Catalogue,
    pub snapshot: &'a UserSnapshot,
    pub settings: &'a RetrieveSettings,
    pub space: &'a str,
}

impl Chooser<'_> {
    /// The first candidate that every rule admits, or `None`.
    pub async fn choose(
        &self,
        candidates: &[Neighbour],
        previous: Option<&str>,
    ) -> Result<Option<CrossFinding>, StoreError> {
        let (mut offset, mut size) = (0, 1);
        while offset < candidates.len() {
            let end = candidates.len().min(offset + size);
            let part = &candidates[offset..end];
            if let Some(chosen) = self.choose_among(candidates, offset, part, previous).await? {
                return Ok(Some(chosen));
            }
            (offset, size) = (end, size * MORE_EACH_TIME);
        }
        Ok(None)
    }

    /// The first of `part` that may be shown; `part` begins at `offset` of `candidates`.
    async fn choose_among(
        &self,
        candidates: &[Neighbour],
        offset: usize,
        part: &[Neighbour],
        previous: Option<&str>,
    ) -> Result<Option<CrossFinding>, StoreError> {
        let names: Vec<String> = part.iter().map(|candidate| candidate.user.clone()).collect();
        let (histories, referrers) =
            tokio::try_join!(self.store.histories(&names), self.store.referrer_counts(self.space, &names))?;
        for (place, candidate) in part.iter().enumerate() {
            let history = histories.get(place).and_then(Option::as_ref);
            let crowded = referrers.get(place).is_some_and(|count| *count >= self.settings.max_referrers);
            // Who shows the neighbour already does not make it more crowded.
            if history.is_some_and(UserHistory::is_opted_out) || (crowded && previous != Some(candidate.user.as_str()))
            {
                continue;
            }
            let engagements = self.engagements(candidate, history);
            if engagements.len() < self.settings.min_engagements {
                continue;
            }
            let shown = self.shown(engagements).await?;
            if shown.is_empty() {
                continue;
            }
            let next = candidates.get(offset + place + 1).map(|other| other.similarity);
            return Ok(Some(CrossFinding {
                user: candidate.user.clone(),
                era: history.map_or(0, |history| history.state.era),
                similarity: candidate.similarity,
                gap_to_second: next.map(|similarity| candidate.similarity - similarity).unwrap_or(0.0),
                engagements: shown,
            }));
        }
        Ok(None)
    }

    /// The store's history; a user only the bundle knows has the generation's snapshot.
    fn engagements(&self, candidate: &Neighbour, history: Option<&UserHistory>) -> Vec<Behaviour> {
        match history {
            Some(history) => history.engagements.clone(),
            None => self.snapshot.engagements(&candidate.user).unwrap_or_default(),
        }
    }

    /// Items used by enough distinct users, counted when the bundle was made or since.
    async fn shown(&self, mut engagements: Vec<Behaviour>) -> Result<Vec<Behaviour>, StoreError> {
        engagements.truncate(HISTORY_CAP);
        let wanted = self.settings.min_item_users;
        let is_known = |behaviour: &Behaviour| self.catalogue.distinct_users(&behaviour.item_id) >= wanted;
        let asked = engagements.iter().filter(|behaviour| !is_known(behaviour));
        let items: Vec<String> = asked.map(|behaviour| behaviour.item_id.clone()).collect();
        let mut since = self.store.item_user_counts(&items).await?.into_iter();
        engagements.retain(|behaviour| is_known(behaviour) || since.next().unwrap_or(0) >= wanted);
        Ok(engagements)
    }
}
