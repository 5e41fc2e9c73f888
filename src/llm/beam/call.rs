//! Graph calls made of searches: host inputs of the TREE and STD flavours (their contracts: `taiji_export`).
//!
//! In: the state of one search (TREE) or several (STD). Out: tokens, positions, slots and who sees whom. Pure.

use super::search::BeamSearch;

/// Bias of a slot that is not seen; 0 of one that is. Large enough that exp() of it is 0, finite so that a row of it
/// makes no NaN. A device that computes in half precision must replace it by that type's lowest number.
pub const MASKED: f32 = -1e9;

/// One level of one search (batch 1 of the TREE graph) on the prompt's own row.
#[derive(Debug, Clone, PartialEq)]
pub struct TreeCall {
    /// Tokens S of the call.
    pub width: usize,
    /// Slots in use before the call: the prompt and earlier levels. Token i goes into slot `past + i`.
    pub past: usize,
    /// Token ids, `[1, S]`.
    pub input_ids: Vec<i64>,
    /// Positions, `[1, S]`.
    pub position_ids: Vec<i64>,
    /// 0 for the prompt, a token's ancestors and itself, [`MASKED`] elsewhere: `[1, 1, S, past + S]`.
    pub attention_bias: Vec<f32>,
    /// All tokens want logits: 0..S.
    pub logits_indices: Vec<i64>,
}

impl TreeCall {
    /// The next level of a search that has one (`search.width() > 0`).
    pub fn of(search: &BeamSearch) -> Self {
        let (width, past) = (search.width(), search.past());
        let total = past + width;
        let mut attention_bias = vec![MASKED; width * total];
        for ((index, fed), seen) in search.fed().enumerate().zip(attention_bias.chunks_mut(total)) {
            show(seen, search.prompt_len(), fed.ancestors, past + index);
        }
        Self {
            width,
            past,
            input_ids: search.fed().map(|fed| i64::from(fed.token)).collect(),
            position_ids: vec![search.position() as i64; width],
            attention_bias,
            logits_indices: (0..width as i64).collect(),
        }
    }

    /// Slots in use after the call.
    pub fn total(&self) -> usize {
        self.past + self.width
    }
}

/// One level of several searches (the STD graph) on scratch rows: row q is search q of the list.
#[derive(Debug, Clone, PartialEq)]
pub struct StdCall {
    /// Rows Q.
    pub rows: usize,
    /// Tokens S of the widest search; the others are padded on the right with id 0.
    pub width: usize,
    /// Slots M of every row.
    pub slots: usize,
    /// Token ids, `[Q, S]`.
    pub input_ids: Vec<i64>,
    /// Positions, `[Q, S]`.
    pub position_ids: Vec<i64>,
    /// Slot of each row's first token, `[Q]`. Padding is written behind a row's tokens, where its next level goes.
    pub write_indices: Vec<i64>,
    /// As in [`TreeCall`], `[Q, 1, S, M]`. A padded token sees slot 0, so that its softmax is one of a number.
    pub attention_bias: Vec<f32>,
    /// Slots in use after the call, padding not counted, `[Q]`.
    pub nonpad_kv_seqlen: Vec<i64>,
    /// Flat positions in `[Q, S]` of tokens that are not padding, row by row.
    pub logits_indices: Vec<i64>,
}

impl StdCall {
    /// Slots M that scratch rows need for whole searches: no call writes behind them, padding included.
    pub fn slots_needed<'a>(searches: impl Iterator<Item = &'a BeamSearch> + Clone) -> usize {
        let prompt = searches.clone().map(BeamSearch::past).max().unwrap_or(0);
        let calls = searches.clone().map(BeamSearch::most_calls).max().unwrap_or(0);
        let widest = |level| searches.clone().map(|search| search.widest(level)).max().unwrap_or(0);
        prompt + (1..=calls).map(widest).sum::<usize>()
    }

    /// The next level of every search that has one; `None` for a row that idles. Rows behind the last one that goes on
    /// are left out. At least one must go on.
    pub fn of(searches: &[Option<&BeamSearch>], slots: usize) -> Self {
        let goes_on = |search: &&Option<&BeamSearch>| search.is_some_and(|search| search.width() > 0);
        let rows = searches.iter().rposition(|search| goes_on(&search)).map_or(0, |last| last + 1);
        let searches = &searches[..rows];
        let width = searches.iter().flatten().map(|search| search.width()).max().unwrap_or(0);
        let mut call = Self {
            rows,
            width,
            slots,
            input_ids: vec![0; rows * width],
            position_ids: vec![0; rows * width],
            write_indices: vec![0; rows],
            attention_bias: vec![MASKED; rows * width * slots],
            // An idle row is written from slot 0 on, over a prompt nobody needs any more.
            nonpad_kv_seqlen: vec![width as i64; rows],
            logits_indices: Vec::new(),
        };
        call.attention_bias.iter_mut().step_by(slots.max(1)).for_each(|first| *first = 0.0);
        for (row, search) in searches.iter().enumerate().filter(|(_, search)| goes_on(search)) {
            if let Some(search) = search {
                call.fill(row, search);
            }
        }
        call
    }

    fn fill(&mut self, row: usize, search: &BeamSearch) {
        let past = search.past();
        self.write_indices[row] = past as i64;
        self.nonpad_kv_seqlen[row] = (past + search.width()) as i64;
        for (index, fed) in search.fed().enumerate() {
            let cell = row * self.width + index;
            self.input_ids[cell] = i64::from(fed.token);
            self.position_ids[cell] = search.position() as i64;
            self.logits_indices.push(cell as i64);
            let seen = &mut self.attention_bias[cell * self.slots..][..self.slots];
            show(seen, search.prompt_len(), fed.ancestors, past + index);
        }
    }
}

/// Lets one token see its prompt, its ancestors and itself.
fn show(seen: &mut [f32], prompt_len: usize, ancestors: &[usize], own: usize) {
    seen[..prompt_len].fill(0.0);
    ancestors.iter().for_each(|&slot| seen[slot] = 0.0);
    seen[own] = 0.0;
}
