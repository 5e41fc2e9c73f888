//! The writes of one refresh, of the LLM or of the fast path, in the order of DESIGN 5.2: referrer, vector, put, then the
//! look back at the eras. A crash anywhere costs one repeated refresh.
//!
//! In: what was read and what the models made. Out: groups, a vector, notes of who shows whom. Callers: `user`, `fast`.

use super::user::{Attempt, ModelOutputs, Read, newest_event};
use super::{RefreshError, Refreshed, UserEra, drop_note, look_back};
use crate::catalogue::Grounding;
use crate::feature::{CrossFinding, Finding, Version, assemble, flags};
use crate::proto::GroupMeta;
use crate::retrieve::encode_f16;
use crate::store::{FeaturePut, FreshVector, PutBody, PutOutcome};

/// Version of a fast path's vector in the feed and the index: above the tombstone of an erasure (0, 0), below every vector of
/// an LLM's answer (seq from 1), which replaces it whatever it had read and never gives way to it.
const QUICK_VECTOR: Version = Version { seq: 0, turn: 1 };

/// A neighbour whose last place others took is chosen anew so many times.
const CHOICES: usize = 4;

/// What is about to be written.
pub(super) struct Draft {
    /// 0 fast path, 1 LLM.
    pub tier: u8,
    /// Seq read, turn.
    pub version: Version,
    /// Of the prompt; 0 = none, never skipped over.
    pub hash: u64,
    /// Some of the history was left out.
    pub truncated: bool,
    pub made: ModelOutputs,
    pub chosen: Option<CrossFinding>,
    /// The neighbour shown before.
    pub previous: Option<UserEra>,
}

impl Attempt<'_> {
    pub(super) async fn write(&self, user: &str, read: &Read, mut draft: Draft) -> Result<Refreshed, RefreshError> {
        let (space, era) = (self.space(), read.history.state.era);
        let (version, tier, previous) = (draft.version, draft.tier, draft.previous.clone());
        let embedding = encode_f16(&draft.made.vector);
        // Both stand before the put; between them no order counts: either alone is what a crash before the put leaves, too.
        let (chosen, ()) = tokio::try_join!(
            self.note_neighbour(user, read, &draft),
            self.feed_vector(user, read, &draft, &embedding)
        )?;
        draft.chosen = chosen;
        let neighbour = draft.chosen.as_ref().map(|chosen| UserEra { user: chosen.user.clone(), era: chosen.era });
        let (hash, groups) = (draft.hash, assemble(self.finding(read, draft)));
        let body = PutBody::Write { groups, prompt_hash: hash, embedding };
        let put = FeaturePut { user: user.to_string(), era, version, tier, body };
        let current_seq = match self.shared.store.put(space, put).await? {
            PutOutcome::Written { current_seq } => current_seq,
            PutOutcome::Refused(refusal) => {
                if let Some(noted) = &neighbour {
                    drop_note(self.shared.store.as_ref(), space, user, &noted.user).await?;
                }
                return Ok(Refreshed::Refused(refusal));
            }
        };
        self.settle(&UserEra { user: user.to_string(), era }, previous, neighbour).await?;
        Ok(Refreshed::Written { seq: version.seq, current_seq })
    }

    /// Notes at the neighbour that the user shows them. Where others took the last place meanwhile another one is chosen.
    async fn note_neighbour(
        &self,
        user: &str,
        read: &Read,
        draft: &Draft,
    ) -> Result<Option<CrossFinding>, RefreshError> {
        let (store, space, previous) = (self.shared.store.as_ref(), self.space(), draft.previous.as_ref());
        let mut chosen = draft.chosen.clone();
        for _ in 0..CHOICES {
            let Some(neighbour) = chosen.as_ref().map(|chosen| chosen.user.as_str()) else { return Ok(None) };
            let referrers = store.add_referrer(space, neighbour, user).await?;
            if referrers <= self.shared.retrieve.max_referrers || previous.is_some_and(|seen| seen.user == neighbour) {
                return Ok(chosen);
            }
            drop_note(store, space, user, neighbour).await?;
            chosen = self.neighbour(user, &read.history, &draft.made.vector, previous).await?;
        }
        Ok(None)
    }

    /// After the put: takes the note at the neighbour shown before away, and looks back at the one shown now.
    async fn settle(
        &self,
        user: &UserEra,
        previous: Option<UserEra>,
        current: Option<UserEra>,
    ) -> Result<(), RefreshError> {
        let (store, space) = (self.shared.store.as_ref(), self.space());
        let is_shown = |old: &UserEra| current.as_ref().is_some_and(|now| now.user == old.user);
        let replaced = previous.filter(|old| !is_shown(old));
        let leave = async {
            let Some(old) = &replaced else { return Ok(()) };
            drop_note(store, space, &user.user, &old.user).await
        };
        let look = async {
            let Some(neighbour) = &current else { return Ok(()) };
            look_back(store, space, user, neighbour).await.map(|_| ())
        };
        // They are about two different neighbours.
        tokio::try_join!(leave, look)?;
        Ok(())
    }

    /// Who opted out is not indexed: the LLM's tombstone hides a vector of before.
    async fn feed_vector(&self, user: &str, read: &Read, draft: &Draft, embedding: &[u8]) -> Result<(), RefreshError> {
        let opted_out = read.history.is_opted_out();
        if draft.tier == 0 && opted_out {
            return Ok(());
        }
        let vector = (!opted_out).then(|| embedding.to_vec());
        let version = if draft.tier == 0 { QUICK_VECTOR } else { draft.version };
        let fresh = FreshVector { user: user.to_string(), era: read.history.state.era, version, vector };
        self.shared.store.append_vector(self.space(), &fresh).await?;
        Ok(())
    }

    fn finding(&self, read: &Read, draft: Draft) -> Finding {
        let Draft { tier, version, made, chosen, truncated, .. } = draft;
        let (grounded_item_id, category_ids) = match made.grounding {
            Grounding::Item { id, categories } => (id, categories),
            Grounding::Category(path) => (String::new(), path),
            Grounding::None => (String::new(), Vec::new()),
        };
        let fallback_reason = match tier {
            0 => "fast_path",
            _ if self.models.canned => "null_engine",
            _ => "",
        };
        let set = |flag: u32, on: bool| if on { flag } else { 0 };
        let ttl = self.shared.refresh.ttl_ms;
        let meta = GroupMeta {
            epoch: self.view.epoch(),
            space: self.space().to_string(),
            catalogue_generation: self.view.bundle().manifest.generation,
            index_generation: self.view.bundle().manifest.generation,
            generated_at_ms: read.now_ms,
            source_ts_ms: newest_event(&read.history),
            expires_at_ms: if ttl == 0 { 0 } else { read.now_ms.saturating_add(ttl) },
            seq: version.seq,
            turn: version.turn,
            tier: tier.into(),
            flags: set(flags::FORMAT_OK, made.parsed.format_ok)
                | set(flags::GROUNDED, !category_ids.is_empty() || !grounded_item_id.is_empty())
                | set(flags::TRUNCATED, truncated)
                | set(flags::FALLBACK, !fallback_reason.is_empty()),
            fallback_reason: fallback_reason.into(),
        };
        Finding {
            meta,
            sparse_ids: made.sparse_ids,
            category_ids,
            cross: chosen,
            reasoning: made.parsed.reasoning,
            answer: made.parsed.answer,
            grounded_item_id,
        }
    }
}
