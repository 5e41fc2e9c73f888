//! [`UserIndex`] on FAISS: an immutable main index of any factory type, and the fresh vectors beside it (`flat`).
//!
//! Both parts hold one row for each distinct vector, with the users behind it: equal answers give equal vectors, and the most
//! frequent of them would otherwise fill every search with copies of itself.

use super::flat::FlatVectors;
use super::members::Members;
use super::{Neighbour, RetrieveError, UserIndex};
use crate::feature::Version;
use crate::store::FreshVector;
use ::faiss::index::autotune::ParameterSpace;
use ::faiss::index::{IndexImpl, index_factory, io};
use ::faiss::{Idx, Index, MetricType};
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

/// Bytes of an fp16 number.
const F16: usize = 2;
/// Rows decoded at once while a main index is loaded.
const DECODED: usize = 4096;
/// A search of the main part that found too few rows with users asks for so many times as many.
const WIDER: usize = 4;

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
    /// FAISS searches take `&mut` in the safe binding, so they take turns.
    main: Mutex<Option<IndexImpl>>,
    /// User → row of the main part.
    main_rows: HashMap<Arc<str>, usize>,
    state: RwLock<State>,
}

/// What changes.
struct State {
    /// The users of each row of the main part that have no newer entry.
    main: Vec<Members>,
    fresh: FlatVectors,
    /// User → newest entry of the feed.
    entries: HashMap<Arc<str>, Entry>,
    /// Entries with a vector.
    fresh_users: usize,
}

struct Entry {
    /// Of the fresh part; `None` for a tombstone.
    row: Option<usize>,
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
        Ok(Self::assemble(dim, None, Vec::new(), HashMap::new()))
    }

    /// Loads the main part; `users[row]` is the user of each row of the file, `nprobe` applies to IVF types.
    pub fn load(path: &Path, users: Vec<String>, dim: usize, nprobe: usize) -> Result<FaissUserIndex, RetrieveError> {
        let refuse = |message: String| RetrieveError::Load { path: path.display().to_string(), message };
        let mut main = io::read_index(path.to_string_lossy()).map_err(|error| refuse(error.to_string()))?;
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
        let rows = keep_distinct(&mut main, dim)?;
        let mut members = Vec::new();
        members.resize_with(main.ntotal() as usize, Members::default);
        let mut main_rows = HashMap::with_capacity(users.len());
        for (user, row) in users.into_iter().zip(rows) {
            let user: Arc<str> = user.into();
            members[row].insert(user.clone());
            main_rows.insert(user, row);
        }
        Ok(Self::assemble(dim, Some(main), members, main_rows))
    }

    fn assemble(
        dim: usize,
        main: Option<IndexImpl>,
        members: Vec<Members>,
        main_rows: HashMap<Arc<str>, usize>,
    ) -> FaissUserIndex {
        let fresh = FlatVectors::new(dim);
        let state = State { main: members, fresh, entries: HashMap::new(), fresh_users: 0 };
        FaissUserIndex { dim, main: Mutex::new(main), main_rows, state: RwLock::new(state) }
    }

    /// Rows of the main part with their similarities: the nearest `k` that still have users, all in it when there are fewer.
    fn nearest_in_main(&self, vector: &[f32], k: usize) -> Result<Vec<(usize, f32)>, RetrieveError> {
        let mut guard = self.main.lock();
        let Some(main) = guard.as_mut() else { return Ok(Vec::new()) };
        let total = main.ntotal() as usize;
        let mut asked = k.min(total);
        while asked > 0 {
            let mut found = nearest(main, vector, asked)?;
            let is_all = asked == total || found.len() < asked;
            let state = self.state.read();
            found.retain(|(row, _)| !state.main[*row].is_empty());
            if found.len() >= k || is_all {
                return Ok(found);
            }
            asked = (asked * WIDER).min(total);
        }
        Ok(Vec::new())
    }
}

/// (row, similarity) of the nearest `k`, unfilled places left out.
fn nearest(index: &mut IndexImpl, vector: &[f32], k: usize) -> Result<Vec<(usize, f32)>, RetrieveError> {
    let found = index.search(vector, k).map_err(failed("search"))?;
    let labelled = found.labels.iter().zip(&found.distances);
    Ok(labelled.filter_map(|(label, similarity)| Some((label.get()? as usize, *similarity))).collect())
}

/// Leaves one row of each distinct vector in the index, in the order of their first rows. Returns where each row went.
fn keep_distinct(index: &mut IndexImpl, dim: usize) -> Result<Vec<usize>, RetrieveError> {
    let total = index.ntotal() as usize;
    let mut rows = Vec::with_capacity(total);
    let (mut known, mut distinct) = (HashMap::new(), Vec::new());
    for first in (0..total).step_by(DECODED) {
        let count = DECODED.min(total - first);
        let mut values = vec![0.0_f32; count * dim];
        if let Err(error) = index.reconstruct_n(Idx::new(first as u64), count, &mut values) {
            tracing::warn!(%error, "the index type cannot be decoded: its equal vectors keep a row each");
            return Ok((0..total).collect());
        }
        for vector in values.chunks_exact(dim) {
            let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
            let row = *known.entry(xxh3_128(&bytes)).or_insert_with(|| {
                distinct.extend_from_slice(vector);
                distinct.len() / dim - 1
            });
            rows.push(row);
        }
    }
    if known.len() < total {
        // What was trained stays; the vectors come back as they were decoded, which changes none of them.
        index.reset().map_err(failed("reset"))?;
        index.add(&distinct).map_err(failed("add"))?;
    }
    Ok(rows)
}

impl State {
    /// Takes a user from where they stand now.
    fn take_out(&mut self, user: &Arc<str>, main_row: Option<usize>) {
        match self.entries.get(user) {
            Some(Entry { row: Some(row), .. }) => {
                self.fresh.remove(*row, user);
                self.fresh_users -= 1;
            }
            Some(_) => {}
            None => {
                if let Some(row) = main_row {
                    self.main[row].remove(user);
                }
            }
        }
    }
}

impl UserIndex for FaissUserIndex {
    fn search(&self, vector: &[f32], k: usize, exclude: &str) -> Result<Vec<Neighbour>, RetrieveError> {
        if vector.len() != self.dim {
            return Err(RetrieveError::Dimension { found: vector.len(), wanted: self.dim });
        }
        // One may hold `exclude` alone, and one is looked at only for how far away it is.
        let rows = k.saturating_add(2);
        let in_main = self.nearest_in_main(vector, rows)?;
        let state = self.state.read();
        let mut found = state.fresh.nearest(vector, rows);
        found.extend(in_main.into_iter().map(|(row, similarity)| (similarity, &state.main[row])));
        let mut groups: Vec<_> = found
            .into_iter()
            .filter_map(|(similarity, members)| {
                let first = members.others(exclude).next()?;
                // Stored vectors are rounded (fp16, SQ8), so the product of two unit vectors can come out above 1.
                Some((similarity.clamp(-1.0, 1.0), first, members))
            })
            .collect();
        // Equal similarities are ordered by name, so that every replica gives the same answer.
        groups.sort_by(|(one, first, _), (other, second, _)| other.total_cmp(one).then_with(|| first.cmp(second)));
        let mut neighbours = Vec::with_capacity(k.min(groups.len()));
        for (place, (similarity, _, members)) in groups.iter().enumerate() {
            let next = groups.get(place + 1).map(|(similarity, ..)| *similarity);
            let wanted = k - neighbours.len();
            let others = members.others(exclude).take(wanted);
            neighbours.extend(others.map(|user| Neighbour { user: user.to_string(), similarity: *similarity, next }));
            if neighbours.len() == k {
                break;
            }
        }
        Ok(neighbours)
    }

    fn apply(&self, fresh: &FreshVector) -> Result<(), RetrieveError> {
        if let Some(vector) = &fresh.vector
            && vector.len() != self.dim * F16
        {
            return Err(RetrieveError::Dimension { found: vector.len() / F16, wanted: self.dim });
        }
        let hash = fresh.vector.as_deref().map_or(0, xxh3_64);
        let mut guard = self.state.write();
        let state = &mut *guard;
        if let Some(known) = state.entries.get(fresh.user.as_str()) {
            let (stands, offered) = ((known.era, known.version), (fresh.era, fresh.version));
            if stands > offered || (stands == offered && known.hash == hash) {
                return Ok(());
            }
        }
        let in_main = self.main_rows.get_key_value(fresh.user.as_str());
        let name =
            in_main.map(|(name, _)| name).or(state.entries.get_key_value(fresh.user.as_str()).map(|(name, _)| name));
        let user = name.cloned().unwrap_or_else(|| fresh.user.as_str().into());
        state.take_out(&user, in_main.map(|(_, row)| *row));
        let row = fresh.vector.as_deref().map(|vector| state.fresh.insert(vector, user.clone()));
        state.fresh_users += usize::from(row.is_some());
        state.entries.insert(user, Entry { row, era: fresh.era, version: fresh.version, hash });
        Ok(())
    }

    fn sizes(&self) -> (usize, usize) {
        (self.main_rows.len(), self.state.read().fresh_users)
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

    /// A main part whose file has a row for each user, `copies` users a vector.
    fn copied(factory: &str, vectors: usize, copies: usize, dim: usize) -> (FaissUserIndex, Vec<Vec<f32>>) {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("users.faiss");
        let distinct: Vec<Vec<f32>> = (0..vectors).map(|number| direction(number, dim)).collect();
        let rows: Vec<f32> = (0..copies).flat_map(|_| distinct.concat()).collect();
        build_main(&IndexShape { factory: factory.into(), dim }, &rows, &path).expect("build");
        let users = (0..vectors * copies).map(|row| format!("u{row}")).collect();
        (FaissUserIndex::load(&path, users, dim, 64).expect("load"), distinct)
    }

    /// Unit vectors that look like chance, the same every time.
    fn direction(number: usize, dim: usize) -> Vec<f32> {
        let value =
            |place: usize| (xxh3_64(format!("{number} {place}").as_bytes()) >> 40) as f32 / (1 << 24) as f32 - 0.5;
        let values: Vec<f32> = (0..dim).map(value).collect();
        let norm = values.iter().map(|value| value * value).sum::<f32>().sqrt();
        values.into_iter().map(|value| value / norm).collect()
    }

    #[test]
    fn audit_07_a_main_part_of_any_type_has_one_row_for_each_distinct_vector() {
        let (vectors, copies) = (40, 25);
        for factory in ["Flat", "SQ8", "IVF4,Flat", "IVF4,SQ8", "PQ4", "HNSW8"] {
            let (index, distinct) = copied(factory, vectors, copies, 16);
            let rows = index.main.lock().as_ref().map_or(0, |main| main.ntotal());
            // PQ may give two vectors one code.
            assert!(rows as usize <= vectors && rows > 20, "{factory}: {rows} rows");
            assert_eq!(index.sizes(), (vectors * copies, 0), "{factory}");
            for (number, vector) in distinct.iter().enumerate() {
                let found = index.search(vector, copies - 1, &format!("u{number}")).expect("search");
                let is_equal =
                    |found: &Neighbour| found.user[1..].parse().is_ok_and(|row: usize| row % vectors == number);
                assert_eq!(found.len(), copies - 1, "{factory}");
                assert!(factory.starts_with("PQ") || found.iter().all(is_equal), "{factory} {number}: {found:?}");
                assert!(found.iter().all(|found| found.next.is_some_and(|next| next <= found.similarity)), "{factory}");
            }
            // A fresh vector takes its user out of the main part; a tombstone does, too.
            for row in 0..copies {
                let vector = (row % 2 == 0).then(|| encode_f16(&direction(1000, 16)));
                let user = format!("u{}", row * vectors);
                let version = Version { seq: 1, turn: 1 };
                index.apply(&FreshVector { user, era: 0, version, vector }).expect("apply");
            }
            let found = index.search(&distinct[0], vectors * copies, "").expect("search");
            assert!(
                found.iter().all(|found| found.user[1..].parse::<usize>().is_ok_and(|row| row % vectors != 0)
                    || found.similarity < 0.9),
                "{factory}"
            );
            // A graph is searched as far as it is walked.
            let all = (vectors - 1) * copies + copies.div_ceil(2);
            assert!(
                found.len() == all || factory.starts_with("HNSW") && found.len() > all * 8 / 10,
                "{factory}: {}",
                found.len()
            );
        }
    }

    #[test]
    fn audit_07_forty_thousand_users_of_one_vector_are_searched_like_distinct_ones() {
        const USERS: usize = 40_000;
        const DIM: usize = 64;
        let p99 = |vector_of: &dyn Fn(usize) -> usize| {
            let index = FaissUserIndex::empty(DIM).expect("empty");
            for user in 0..USERS {
                let vector = Some(encode_f16(&direction(vector_of(user), DIM)));
                let version = Version { seq: 1, turn: 1 };
                index.apply(&FreshVector { user: format!("u{user}"), era: 0, version, vector }).expect("apply");
            }
            let mut times: Vec<_> = (0..300)
                .map(|number| {
                    let (vector, user) = (direction(vector_of(number), DIM), format!("u{number}"));
                    let begun = std::time::Instant::now();
                    let found = index.search(&vector, 32, &user).expect("search");
                    let took = begun.elapsed();
                    assert_eq!(found.len(), 32);
                    assert!(found.iter().all(|found| found.user != user));
                    took
                })
                .collect();
            times.sort();
            times[times.len() * 99 / 100]
        };
        let (one, distinct) = (p99(&|_| 7), p99(&|user| user));
        let ratio = one.as_secs_f64() / distinct.as_secs_f64();
        println!(
            "audit 07: search among 40,000 users of one vector, p99 {one:.2?}, of distinct ones {distinct:.2?}, ratio {ratio:.3} (bar 3)"
        );
        let bar = if testkit::is_audit() { 3.0 } else { 10.0 };
        assert!(ratio <= bar, "{ratio}");
    }

    #[test]
    fn audit_07_a_changed_vector_costs_the_same_whatever_the_index_holds() {
        const DIM: usize = 64;
        const CHANGES: usize = 2000;
        let cost = |users: usize| {
            let index = FaissUserIndex::empty(DIM).expect("empty");
            let put = |user: usize, seq: u64, vector: Vec<u8>| {
                let version = Version { seq, turn: 1 };
                let vector = Some(vector);
                index.apply(&FreshVector { user: format!("u{user}"), era: 0, version, vector }).expect("apply");
            };
            (0..users).for_each(|user| put(user, 1, encode_f16(&direction(user, DIM))));
            let vectors: Vec<Vec<u8>> = (0..CHANGES).map(|user| encode_f16(&direction(users + user, DIM))).collect();
            let begun = std::time::Instant::now();
            vectors.into_iter().enumerate().for_each(|(user, vector)| put(user, 2, vector));
            let took = begun.elapsed();
            assert_eq!(index.sizes(), (0, users));
            assert_eq!(index.state.read().fresh.len(), users, "replaced rows are used again");
            took
        };
        let (small, large) = (cost(CHANGES), cost(CHANGES * 20));
        let ratio = large.as_secs_f64() / small.as_secs_f64();
        println!("audit 07: 2,000 changed vectors among 40,000 take {ratio:.2} times as long as among 2,000 (bar 3)");
        let bar = if testkit::is_audit() { 3.0 } else { 20.0 };
        assert!(ratio <= bar, "{ratio}: {small:?}, {large:?}");
    }

    #[test]
    fn wrong_dimension_is_an_error() {
        let index = FaissUserIndex::empty(4).expect("empty");
        assert!(matches!(index.search(&[1.0], 1, ""), Err(RetrieveError::Dimension { found: 1, wanted: 4 })));
        assert!(index.search(&unit(0.0), 5, "").expect("search").is_empty());
    }
}
