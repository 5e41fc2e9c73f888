//! [`UserIndex`] on FAISS: an immutable main index of any factory type plus a flat delta of fresh vectors.

use super::{Neighbour, RetrieveError, UserIndex, decode_f16};
use crate::feature::Version;
use crate::store::FreshVector;
use ::faiss::index::autotune::ParameterSpace;
use ::faiss::index::{IndexImpl, index_factory, io};
use ::faiss::selector::IdSelector;
use ::faiss::{Idx, Index, MetricType};
use parking_lot::{Mutex, RwLock};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

/// Most replaced vectors left in the fresh part.
const MAX_DEAD: usize = 64;

/// How the main part is built.
#[derive(Debug, Clone)]
pub struct IndexShape {
    /// FAISS factory string, e.g. `IVF32,SQ8`; must take `add` without ids (ids are row numbers).
    pub factory: String,
    /// Vector length.
    pub dim: usize,
}

/// The index of one generation. See [`UserIndex`].
pub struct FaissUserIndex {
    dim: usize,
    /// FAISS searches take `&mut` in the safe binding, so each part has a lock; a search holds it for microseconds.
    main: Mutex<Option<IndexImpl>>,
    main_users: Vec<String>,
    main_rows: HashMap<String, usize>,
    fresh: Mutex<IndexImpl>,
    delta: RwLock<Delta>,
}

/// What the fresh part knows beside the vectors.
#[derive(Default)]
struct Delta {
    /// User → newest entry; `id` is `None` for a tombstone.
    entries: HashMap<String, DeltaEntry>,
    users: HashMap<u64, String>,
    /// Replaced vectors still in the index: FAISS removes in time linear to its size, so they go in batches.
    dead: Vec<Idx>,
    /// Rows of the main part that a fresh entry replaces or hides.
    hidden_rows: HashSet<usize>,
    next_id: u64,
}

struct DeltaEntry {
    id: Option<u64>,
    era: u64,
    version: Version,
    /// Of the vector's bytes, 0 = tombstone: a feed read once more must not rebuild the index.
    hash: u64,
}

fn failed(operation: &'static str) -> impl Fn(::faiss::error::Error) -> RetrieveError {
    move |error| RetrieveError::Faiss { operation, message: error.to_string() }
}

/// Trains and fills a main index from unit vectors (row-major `rows × dim`) and writes it to `path`.
pub fn build_main(shape: &IndexShape, vectors: &[f32], path: &Path) -> Result<(), RetrieveError> {
    let mut index =
        index_factory(shape.dim as u32, &shape.factory, MetricType::InnerProduct).map_err(failed("factory"))?;
    index.train(vectors).map_err(failed("train"))?;
    index.add(vectors).map_err(failed("add"))?;
    io::write_index(&index, path.to_string_lossy()).map_err(failed("write"))
}

impl FaissUserIndex {
    /// An index without a main part, for a service that starts with no users.
    pub fn empty(dim: usize) -> Result<FaissUserIndex, RetrieveError> {
        Self::assemble(dim, None, Vec::new())
    }

    /// Loads the main part; `users[row]` is the user of each row, `nprobe` applies to IVF types.
    pub fn load(path: &Path, users: Vec<String>, dim: usize, nprobe: usize) -> Result<FaissUserIndex, RetrieveError> {
        let refuse = |message: String| RetrieveError::Load { path: path.display().to_string(), message };
        let main = io::read_index(path.to_string_lossy()).map_err(|error| refuse(error.to_string()))?;
        if main.d() as usize != dim {
            return Err(refuse(format!("has {} dimensions, the encoder {dim}", main.d())));
        }
        if main.ntotal() as usize != users.len() {
            return Err(refuse(format!("has {} rows, the id map {}", main.ntotal(), users.len())));
        }
        let parameters = ParameterSpace::new().map_err(failed("parameters"))?;
        // Types without lists (flat, hnsw) do not know nprobe; that is not an error.
        if let Err(error) = parameters.set_index_parameter(&main, "nprobe", nprobe as f64) {
            tracing::debug!(%error, "index type has no nprobe");
        }
        Self::assemble(dim, Some(main), users)
    }

    fn assemble(dim: usize, main: Option<IndexImpl>, users: Vec<String>) -> Result<FaissUserIndex, RetrieveError> {
        let fresh = index_factory(dim as u32, "IDMap,Flat", MetricType::InnerProduct).map_err(failed("factory"))?;
        let main_rows = users.iter().enumerate().map(|(row, user)| (user.clone(), row)).collect();
        Ok(FaissUserIndex {
            dim,
            main: Mutex::new(main),
            main_users: users,
            main_rows,
            fresh: Mutex::new(fresh),
            delta: RwLock::new(Delta::default()),
        })
    }

    /// (label, similarity) of the nearest `k`, unfilled places left out.
    fn nearest(index: &mut IndexImpl, vector: &[f32], k: usize) -> Result<Vec<(u64, f32)>, RetrieveError> {
        let k = k.min(index.ntotal() as usize);
        if k == 0 {
            return Ok(Vec::new());
        }
        let found = index.search(vector, k).map_err(failed("search"))?;
        let labelled = found.labels.iter().zip(&found.distances);
        // Stored vectors are rounded (fp16, SQ8), so the product of two unit vectors can come out above 1.
        let kept = |(label, similarity): (&Idx, &f32)| label.get().map(|id| (id, similarity.clamp(-1.0, 1.0)));
        Ok(labelled.filter_map(kept).collect())
    }

    fn search_main(&self, vector: &[f32], k: usize) -> Result<Vec<Neighbour>, RetrieveError> {
        let hidden = self.delta.read().hidden_rows.len();
        let mut guard = self.main.lock();
        let Some(main) = guard.as_mut() else { return Ok(Vec::new()) };
        // Enough extra places that hidden rows cannot push visible ones out, within reason.
        let rows = Self::nearest(main, vector, k + hidden.min(4 * k) + 1)?;
        drop(guard);
        let delta = self.delta.read();
        let visible = rows.into_iter().filter(|(row, _)| !delta.hidden_rows.contains(&(*row as usize)));
        Ok(visible
            .filter_map(|(row, similarity)| {
                self.main_users.get(row as usize).map(|user| Neighbour { user: user.clone(), similarity })
            })
            .collect())
    }

    fn search_fresh(&self, vector: &[f32], k: usize) -> Result<Vec<Neighbour>, RetrieveError> {
        let dead = self.delta.read().dead.len();
        let rows = Self::nearest(&mut self.fresh.lock(), vector, k + dead + 1)?;
        let delta = self.delta.read();
        let known = rows.into_iter().filter_map(|(id, similarity)| delta.users.get(&id).map(|user| (user, similarity)));
        Ok(known.map(|(user, similarity)| Neighbour { user: user.clone(), similarity }).collect())
    }
}

impl UserIndex for FaissUserIndex {
    fn search(&self, vector: &[f32], k: usize, exclude: &str) -> Result<Vec<Neighbour>, RetrieveError> {
        if vector.len() != self.dim {
            return Err(RetrieveError::Dimension { found: vector.len(), wanted: self.dim });
        }
        let mut found = self.search_main(vector, k)?;
        found.extend(self.search_fresh(vector, k)?);
        found.retain(|neighbour| neighbour.user != exclude);
        // Equal similarities are ordered by name, so that every replica gives the same answer.
        found.sort_by(|a, b| b.similarity.total_cmp(&a.similarity).then_with(|| a.user.cmp(&b.user)));
        found.truncate(k);
        Ok(found)
    }

    fn apply(&self, fresh: &FreshVector) -> Result<(), RetrieveError> {
        let vector = fresh.vector.as_deref().map(decode_f16);
        if let Some(vector) = &vector
            && vector.len() != self.dim
        {
            return Err(RetrieveError::Dimension { found: vector.len(), wanted: self.dim });
        }
        let mut index = self.fresh.lock();
        let mut delta = self.delta.write();
        let hash = fresh.vector.as_deref().map_or(0, xxh3_64);
        let known = delta.entries.get(&fresh.user).map(|entry| (entry.id, (entry.era, entry.version), entry.hash));
        if let Some((_, version, stored)) = known {
            let offered = (fresh.era, fresh.version);
            if version > offered || (version == offered && stored == hash) {
                return Ok(());
            }
        }
        if let Some((Some(old), ..)) = known {
            delta.users.remove(&old);
            delta.dead.push(Idx::new(old));
            // A search looks beyond the dead, so there may only be a few.
            if delta.dead.len() >= MAX_DEAD.min(1 + delta.users.len() / 2) {
                let selector = IdSelector::batch(&delta.dead).map_err(failed("selector"))?;
                index.remove_ids(&selector).map_err(failed("remove"))?;
                delta.dead.clear();
            }
        }
        let id = match &vector {
            Some(vector) => {
                let id = delta.next_id;
                index.add_with_ids(vector, &[Idx::new(id)]).map_err(failed("add"))?;
                delta.next_id += 1;
                delta.users.insert(id, fresh.user.clone());
                Some(id)
            }
            None => None,
        };
        if let Some(row) = self.main_rows.get(&fresh.user) {
            delta.hidden_rows.insert(*row);
        }
        delta.entries.insert(fresh.user.clone(), DeltaEntry { id, era: fresh.era, version: fresh.version, hash });
        Ok(())
    }

    fn sizes(&self) -> (usize, usize) {
        (self.main_users.len(), self.delta.read().users.len())
    }

    fn dim(&self) -> usize {
        self.dim
    }
}

#[cfg(test)]
mod tests {
    use super::super::encode_f16;
    use super::*;

    fn unit(angle: f32) -> Vec<f32> {
        vec![angle.cos(), angle.sin(), 0.0, 0.0]
    }

    fn fresh(user: &str, seq: u64, angle: Option<f32>) -> FreshVector {
        FreshVector {
            user: user.to_string(),
            era: 0,
            version: Version { seq, turn: 1 },
            vector: angle.map(|angle| encode_f16(&unit(angle))),
        }
    }

    fn names(found: &[Neighbour]) -> Vec<&str> {
        found.iter().map(|neighbour| neighbour.user.as_str()).collect()
    }

    fn index_with_main() -> FaissUserIndex {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("users.faiss");
        let vectors: Vec<f32> = [0.0, 0.5, 1.0].iter().flat_map(|angle| unit(*angle)).collect();
        build_main(&IndexShape { factory: "Flat".into(), dim: 4 }, &vectors, &path).expect("build");
        let users = ["a", "b", "c"].map(String::from).to_vec();
        FaissUserIndex::load(&path, users, 4, 8).expect("load")
    }

    #[test]
    fn never_oneself_and_fresh_beats_main() {
        let index = index_with_main();
        assert_eq!(names(&index.search(&unit(0.0), 2, "a").expect("search")), ["b", "c"]);
        index.apply(&fresh("c", 1, Some(0.01))).expect("apply");
        assert_eq!(names(&index.search(&unit(0.0), 3, "a").expect("search")), ["c", "b"]);
    }

    #[test]
    fn older_versions_are_ignored_and_tombstones_hide() {
        let index = index_with_main();
        index.apply(&fresh("x", 5, Some(0.0))).expect("apply");
        index.apply(&fresh("x", 4, Some(3.0))).expect("apply");
        let found = index.search(&unit(0.0), 1, "a").expect("search");
        assert_eq!(names(&found), ["x"]);
        assert!((found[0].similarity - 1.0).abs() < 1e-3);
        index.apply(&fresh("x", 5, Some(1.0))).expect("apply");
        let found = index.search(&unit(1.0), 1, "c").expect("search");
        assert_eq!(names(&found), ["x"], "a repeated refresh replaces its own vector, as in the feed");
        index.apply(&fresh("x", 6, None)).expect("apply");
        index.apply(&fresh("b", 6, None)).expect("apply");
        assert_eq!(names(&index.search(&unit(0.0), 3, "").expect("search")), ["a", "c"]);
        assert_eq!(index.sizes(), (3, 0));
    }

    #[test]
    fn a_user_refreshed_many_times_is_found_once_and_where_it_is_now() {
        let index = FaissUserIndex::empty(4).expect("empty");
        index.apply(&fresh("other", 1, Some(1.0))).expect("apply");
        for seq in 1..200 {
            index.apply(&fresh("x", seq, Some(seq as f32 * 0.001))).expect("apply");
            let found = index.search(&unit(0.0), 5, "").expect("search");
            assert_eq!(names(&found), ["x", "other"], "after {seq} refreshes");
        }
        assert_eq!(index.sizes(), (0, 2));
    }

    #[test]
    fn wrong_dimension_is_an_error() {
        let index = FaissUserIndex::empty(4).expect("empty");
        assert!(matches!(index.search(&[1.0], 1, ""), Err(RetrieveError::Dimension { found: 1, wanted: 4 })));
        assert!(index.search(&unit(0.0), 5, "").expect("search").is_empty());
    }
}
