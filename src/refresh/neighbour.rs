//! Choosing the user whose sequence is shown: privacy rules first, similarity second (DESIGN 5.3), and among equals the one
//! who says most about the user.

use super::RefreshError;
use crate::catalogue::Catalogue;
use crate::config::RetrieveSettings;
use crate::feature::CrossFinding;
use crate::live::View;
use crate::proto::Behaviour;
use crate::retrieve::{Affinity, EQUALS, Neighbour, UserIndex, UserSnapshot, affinity, recent_items};
use crate::store::{Each, FeatureStore, HISTORY_CAP, StoreError, StoreResult, UserHistory};
use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::Arc;

/// A search whose candidates may all not be shown asks for so many times as many…
const WIDER: usize = 4;
/// …up to these.
const MOST_CANDIDATES: usize = 2048;

/// What the choice reads.
pub(super) struct Chooser<'a> {
    pub store: &'a dyn FeatureStore,
    pub index: &'a Arc<dyn UserIndex>,
    pub catalogue: &'a Catalogue,
    pub snapshot: &'a UserSnapshot,
    pub settings: &'a RetrieveSettings,
    pub view: &'a View,
}

/// For whom a neighbour is chosen.
pub(super) struct Seeker<'a> {
    user: &'a str,
    vector: &'a [f32],
    recent: HashSet<&'a str>,
    /// The neighbour shown now.
    previous: Option<&'a str>,
}

/// A candidate who may be shown, as far as their history says.
struct Admitted<'a> {
    candidate: &'a Neighbour,
    era: u64,
    engagements: Vec<Behaviour>,
}

impl<'a> Seeker<'a> {
    pub fn new(user: &'a str, vector: &'a [f32], history: &'a UserHistory, previous: Option<&'a str>) -> Seeker<'a> {
        Seeker { user, vector, recent: recent_items(&history.engagements), previous }
    }

    /// How much a candidate says about the user.
    fn rank(&self, admitted: &Admitted<'_>) -> Affinity {
        affinity(self.user, &self.recent, &admitted.candidate.user, &admitted.engagements)
    }
}

impl Chooser<'_> {
    /// Somebody whom every rule admits, of the nearest; `None` if there is nobody.
    pub async fn choose(&self, seeker: &Seeker<'_>) -> Result<Option<CrossFinding>, RefreshError> {
        let mut limit = self.settings.candidates;
        let (mut looked_at, mut reads_left) = (0, limit.max(EQUALS));
        loop {
            let found = self.search(seeker, limit).await?;
            let new = found.get(looked_at..).unwrap_or_default();
            if let Some(chosen) = self.choose_among(seeker, new, looked_at == 0, &mut reads_left).await? {
                return Ok(Some(chosen));
            }
            if found.len() < limit || limit >= MOST_CANDIDATES || reads_left == 0 {
                return Ok(None);
            }
            looked_at = found.len();
            limit = (limit * WIDER).min(MOST_CANDIDATES);
        }
    }

    /// Off the async threads: a search takes as long as there are vectors, and may wait for others.
    async fn search(&self, seeker: &Seeker<'_>, limit: usize) -> Result<Vec<Neighbour>, RefreshError> {
        let (index, user, vector) = (self.index.clone(), seeker.user.to_string(), seeker.vector.to_vec());
        let found = tokio::task::spawn_blocking(move || index.search(&vector, limit, &user)).await;
        Ok(found.map_err(|error| RefreshError::Task(error.to_string()))??)
    }

    /// The best of the first equals who may be shown. The very first are nearly always among them: their histories and the numbers
    /// of those who show them are read at once. Of all others the numbers come first, so that no history is read in vain.
    async fn choose_among(
        &self,
        seeker: &Seeker<'_>,
        found: &[Neighbour],
        is_first: bool,
        reads_left: &mut usize,
    ) -> Result<Option<CrossFinding>, RefreshError> {
        let mut rest: Vec<&Neighbour> = found.iter().collect();
        if is_first {
            let part = self.next_equals(&mut rest, reads_left);
            let (histories, open) = tokio::try_join!(self.histories(&part), self.open(seeker, &part))?;
            let part = part.into_iter().zip(histories).zip(open);
            let part = part.filter(|(_, is_open)| *is_open).map(|(part, _)| part).collect();
            if let Some(chosen) = self.best_of(seeker, part, found).await? {
                return Ok(Some(chosen));
            }
        }
        let mut open = self.open(seeker, &rest).await?.into_iter();
        rest.retain(|_| open.next().unwrap_or(false));
        while !rest.is_empty() && *reads_left > 0 {
            let part = self.next_equals(&mut rest, reads_left);
            let histories = self.histories(&part).await?;
            let part = part.into_iter().zip(histories).collect();
            if let Some(chosen) = self.best_of(seeker, part, found).await? {
                return Ok(Some(chosen));
            }
        }
        Ok(None)
    }

    /// Takes out the first candidates of like similarity, as many as may be read.
    fn next_equals<'b>(&self, rest: &mut Vec<&'b Neighbour>, reads_left: &mut usize) -> Vec<&'b Neighbour> {
        let Some(first) = rest.first().map(|first| first.similarity) else { return Vec::new() };
        let is_equal = |other: &&&Neighbour| first - other.similarity <= self.settings.tie_epsilon;
        let equals = rest.iter().take(EQUALS.min(*reads_left)).take_while(is_equal).count();
        *reads_left -= equals;
        rest.drain(..equals).collect()
    }

    async fn histories(&self, part: &[&Neighbour]) -> Result<Each<Option<UserHistory>>, StoreError> {
        self.store.histories_each(&names(part)).await
    }

    /// Whether one more user may show each of these. Who shows a neighbour already does not make it more crowded.
    async fn open(&self, seeker: &Seeker<'_>, part: &[&Neighbour]) -> Result<Vec<bool>, StoreError> {
        if part.is_empty() {
            return Ok(Vec::new());
        }
        let counts = self.store.referrer_counts_each(self.view.space(), &names(part)).await?;
        // Of whom nobody can say how many show them is shown by nobody more.
        let is_open = |(candidate, count): (&&Neighbour, StoreResult<usize>)| {
            let Ok(count) = count else { return false };
            count < self.settings.max_referrers || seeker.previous == Some(candidate.user.as_str())
        };
        Ok(part.iter().zip(counts).map(is_open).collect())
    }

    /// The best of these whom the rules admit. `found` is where they come from.
    async fn best_of(
        &self,
        seeker: &Seeker<'_>,
        part: Vec<(&Neighbour, StoreResult<Option<UserHistory>>)>,
        found: &[Neighbour],
    ) -> Result<Option<CrossFinding>, RefreshError> {
        // Of whom nobody can say whether they may be shown is not.
        let readable = part.into_iter().filter_map(|(candidate, history)| Some((candidate, history.ok()?)));
        let admitted = readable.filter_map(|(candidate, history)| self.admit(candidate, history));
        let mut admitted: Vec<Admitted<'_>> = admitted.collect();
        admitted.sort_by_cached_key(|one| Reverse(seeker.rank(one)));
        for Admitted { candidate, era, engagements } in admitted {
            let shown = self.shown(engagements).await?;
            if shown.is_empty() {
                continue;
            }
            return Ok(Some(CrossFinding {
                user: candidate.user.clone(),
                era,
                similarity: candidate.similarity,
                gap_to_second: self.gap(candidate.similarity, found),
                engagements: shown,
            }));
        }
        Ok(None)
    }

    /// Who opted out, or has done too little, is nobody's neighbour.
    fn admit<'b>(&self, candidate: &'b Neighbour, history: Option<UserHistory>) -> Option<Admitted<'b>> {
        if history.as_ref().is_some_and(UserHistory::is_opted_out) {
            return None;
        }
        let era = history.as_ref().map_or(0, |history| history.state.era);
        // The store's history; a user only the bundle knows has the generation's snapshot.
        let engagements = match history {
            Some(history) => history.engagements,
            None => self.snapshot.engagements(&candidate.user).unwrap_or_default(),
        };
        (engagements.len() >= self.settings.min_engagements).then_some(Admitted { candidate, era, engagements })
    }

    /// How much nearer a candidate is than the first one who is not its equal; than the next distinct vector, if all that were found
    /// are equals; 0 if there is none.
    fn gap(&self, similarity: f32, found: &[Neighbour]) -> f32 {
        let others = found.iter().map(|other| other.similarity);
        let last = found.last().and_then(|last| last.next);
        let unequal = others.chain(last).find(|other| similarity - other > self.settings.tie_epsilon);
        let second = unequal.or(last);
        second.map_or(0.0, |second| (similarity - second).max(0.0))
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

fn names(part: &[&Neighbour]) -> Vec<String> {
    part.iter().map(|candidate| candidate.user.clone()).collect()
}
