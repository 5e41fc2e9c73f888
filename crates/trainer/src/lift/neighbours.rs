//! The user whose sequence is shown, as of a point, by the service's index and its choice among equals.
//!
//! In: vectors of a generation's members. Out: a user. Called by `features`. The service's limits on who may be shown how often, and on
//! rare items, are left out: they protect people, who are not in these data.

use super::LiftError;
use super::backfill::Moment;
use crate::data::{Dataset, day_of};
use crate::index::snapshot_user;
use taiji::proto::Behaviour;
use taiji::retrieve::{EQUALS, FaissUserIndex, IndexShape, UserIndex, affinity, build_main, recent_items};

/// Similarities that differ by less are equal: the service's default.
const TIE: f32 = 0.001;

/// One generation, ready to be searched.
pub(super) struct Members {
    index: FaissUserIndex,
}

/// Latest engagements before an instant, newest first, as a neighbour shows them.
pub(super) fn shown_before(dataset: &Dataset, user: usize, ms: i64) -> Vec<Behaviour> {
    snapshot_user(&dataset.users[user], Moment::before(dataset, user, ms).cut).engagements
}

impl Members {
    /// Exact search over `members` (user, vector of `dim` values).
    pub fn new<'a>(
        dataset: &Dataset,
        members: impl Iterator<Item = (usize, &'a [f32])>,
        dim: usize,
    ) -> Result<Self, LiftError> {
        let (mut users, mut vectors) = (Vec::new(), Vec::new());
        for (user, vector) in members {
            users.push(dataset.users[user].user_id.clone());
            vectors.extend_from_slice(vector);
        }
        if users.is_empty() {
            return Ok(Self { index: FaissUserIndex::empty(dim)? });
        }
        let io = |error: std::io::Error| crate::nn::FileError::io(&std::env::temp_dir())(error);
        let folder = tempfile::tempdir().map_err(io)?;
        let path = folder.path().join("users.faiss");
        build_main(&IndexShape { factory: "Flat".into(), dim }, &vectors, &path)?;
        Ok(Self { index: FaissUserIndex::load(&path, users, dim, 1)? })
    }

    /// The most similar other one; of equals the one who says most about the user, as far as their histories before the point's day say.
    pub fn nearest(
        &self,
        dataset: &Dataset,
        moment: Moment,
        point_ms: i64,
        vector: &[f32],
    ) -> Result<Option<usize>, LiftError> {
        let user = dataset.users[moment.user].user_id.as_str();
        let found = self.index.search(vector, EQUALS, user)?;
        let Some(best) = found.first().map(|first| first.similarity) else { return Ok(None) };
        let own = snapshot_user(&dataset.users[moment.user], moment.cut).engagements;
        let recent = recent_items(&own);
        let equals = found.iter().take_while(|other| best - other.similarity <= TIE);
        let place = |id: &str| dataset.users.binary_search_by(|row| row.user_id.as_str().cmp(id)).ok();
        let chosen = equals.filter_map(|other| place(&other.user)).max_by_key(|&other| {
            let shown = shown_before(dataset, other, day_of(point_ms));
            affinity(user, &recent, &dataset.users[other].user_id, &shown)
        });
        Ok(chosen)
    }
}
