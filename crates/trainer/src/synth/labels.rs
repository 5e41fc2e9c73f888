//! `labels.jsonl`: for each impression whether it was clicked and whether that click converted.
//!
//! In: the impressions of one life with their true cvr. Out: [`Label`]s. Conversions are drawn from a stream of their own, after
//! the life was lived: its events are the same whether labels are drawn or not. A conversion is not the purchase; the purchase
//! follows its cause. Callers: the worlds.

use crate::data::Label;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use taiji::event::Item;

/// Lives have the streams below.
const STREAM: u64 = 1 << 63;

/// One impression and its fate.
#[derive(Debug, Clone, PartialEq)]
pub struct Shown {
    /// Index of the item.
    pub item: usize,
    /// When.
    pub ts_ms: i64,
    /// Number of the session, from 1.
    pub session: usize,
    /// A click came of it.
    pub clicked: bool,
    /// True chance that a click on it converts.
    pub cvr: f64,
}

/// Draws who converts: once for each click, in the order of the impressions.
pub(super) fn draw(shown: &[Shown], items: &[Item], user_id: &str, index: usize, seed: u64) -> Vec<Label> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(STREAM | index as u64);
    let label = |one: &Shown| Label {
        user_id: user_id.to_string(),
        item_id: items[one.item].id.clone(),
        ts_ms: one.ts_ms,
        request_id: request_id(user_id, one.session),
        clicked: one.clicked,
        converted: one.clicked && random.random_bool(one.cvr),
    };
    shown.iter().map(label).collect()
}

/// Name of a session.
pub(super) fn request_id(user_id: &str, session: usize) -> String {
    format!("{user_id}-s{session}")
}
