//! One beam search: which tokens stand where, what they score, and who is kept.
//!
//! In: a trie and, level by level, logits. Out: beams. Pure; `call` reads its state to make graph calls.

use std::cmp::Ordering;
use std::sync::Arc;

use super::super::sample;
use super::super::trie::Trie;
use super::super::{Beam, LlmError};

/// Most slots of a row a search takes: the prompt, and one per token that is fed behind it.
pub fn slots_needed(trie: &Trie, width: usize, prompt_len: usize) -> usize {
    prompt_len + (1..trie.depth()).map(|level| width.min(trie.inner_nodes(level))).sum::<usize>()
}

/// A search from its prompt's logits to its last level.
///
/// [`Self::start`] takes the logits behind the prompt; while [`Self::width`] is above 0, a graph call of that many tokens
/// is run ([`super::TreeCall::of`] or [`super::StdCall::of`]) and [`Self::accept`] takes its logits; then
/// [`Self::beams`]. Sequences may differ in length: a beam at its end competes on with the score it has.
#[derive(Debug, Clone)]
pub struct BeamSearch {
    trie: Arc<Trie>,
    most: usize,
    prompt_len: usize,
    /// Slots of the row in use: the prompt and all levels fed so far.
    past: usize,
    /// Tokens chosen so far.
    level: usize,
    /// Best first. Those with children in the trie, in this order, are fed by the next call.
    beams: Vec<State>,
}

/// A beam on its way.
#[derive(Debug, Clone)]
struct State {
    node: u32,
    score: f64,
    tokens: Vec<u32>,
    /// Slots of its tokens but the last, which has none before it is fed.
    ancestors: Vec<usize>,
    /// Its sequence is complete.
    ended: bool,
}

/// A token of the next call.
#[derive(Debug)]
pub(super) struct Fed<'a> {
    pub token: u32,
    pub ancestors: &'a [usize],
}

/// A possible beam of the next level.
struct Candidate {
    score: f64,
    /// Index of the beam it continues.
    parent: usize,
    /// The token it adds, and the node that leads to; `None` for a beam at its end, which stays.
    step: Option<(u32, u32)>,
}

impl Candidate {
    /// Best first: the higher score, then the better parent, then the lower token. Never equal for two candidates.
    fn order(&self, other: &Self) -> Ordering {
        other.score.total_cmp(&self.score).then(self.parent.cmp(&other.parent)).then(self.step.cmp(&other.step))
    }
}

impl BeamSearch {
    /// A search that keeps `width` beams (at least 1) behind a prompt of `prompt_len` tokens (at least 1).
    pub fn new(trie: Arc<Trie>, width: usize, prompt_len: usize) -> Result<Self, LlmError> {
        if width == 0 || prompt_len == 0 {
            let field = if width == 0 { "width" } else { "prompt" };
            return Err(LlmError::Invalid(format!("{field} must be at least 1")));
        }
        let beams = Vec::new();
        Ok(Self { trie, most: width, prompt_len, past: prompt_len, level: 0, beams })
    }

    /// Chooses the first tokens by the logits behind the prompt, `[vocabulary]`.
    pub fn start(&mut self, logits: &[f32]) -> Result<(), LlmError> {
        let root = State { node: Trie::ROOT, score: 0.0, tokens: Vec::new(), ancestors: Vec::new(), ended: false };
        let mut candidates = Vec::new();
        self.continue_with(&root, 0, logits, &mut candidates)?;
        self.choose(&[root], &[None], candidates)
    }

    /// Takes the logits of a call, `[width, vocabulary]`, and chooses the next tokens.
    pub fn accept(&mut self, logits: &[f32]) -> Result<(), LlmError> {
        let width = self.width();
        if width == 0 || logits.is_empty() || !logits.len().is_multiple_of(width) {
            return Err(LlmError::Run(format!("{} logits for {width} beams", logits.len())));
        }
        let mut rows = logits.chunks(logits.len() / width);
        let (mut candidates, mut slots) = (Vec::new(), Vec::with_capacity(self.beams.len()));
        let parents = std::mem::take(&mut self.beams);
        for (index, parent) in parents.iter().enumerate() {
            let row = if parent.ended { None } else { rows.next() };
            match row {
                Some(row) => {
                    self.continue_with(parent, index, row, &mut candidates)?;
                    slots.push(Some(self.past));
                    self.past += 1;
                }
                None => {
                    candidates.push(Candidate { score: parent.score, parent: index, step: None });
                    slots.push(None);
                }
            }
        }
        self.choose(&parents, &slots, candidates)
    }

    /// Adds all that may follow a beam. Probabilities are those of the whole vocabulary, not of the legal tokens.
    fn continue_with(
        &self,
        parent: &State,
        index: usize,
        logits: &[f32],
        candidates: &mut Vec<Candidate>,
    ) -> Result<(), LlmError> {
        let best =
            sample::maximum(logits).ok_or_else(|| LlmError::Run("the logits of a beam are not finite".to_owned()))?;
        let norm = sample::log_sum(logits, best);
        for (token, node) in self.trie.children(parent.node) {
            let logit = *logits.get(token as usize).ok_or_else(|| {
                LlmError::Invalid(format!("token id {token} of the trie is not below {}", logits.len()))
            })?;
            let score = parent.score + (f64::from(logit) - f64::from(best) - norm);
            candidates.push(Candidate { score, parent: index, step: Some((token, node)) });
        }
        Ok(())
    }

    /// Keeps the best. `slots`: where each parent's last token was fed.
    fn choose(
        &mut self,
        parents: &[State],
        slots: &[Option<usize>],
        mut candidates: Vec<Candidate>,
    ) -> Result<(), LlmError> {
        if candidates.is_empty() {
            return Err(LlmError::NoLegalToken { level: self.level });
        }
        if candidates.len() > self.most {
            candidates.select_nth_unstable_by(self.most - 1, Candidate::order);
            candidates.truncate(self.most);
        }
        candidates.sort_unstable_by(Candidate::order);
        let next = candidates.iter().map(|candidate| {
            let parent = &parents[candidate.parent];
            let Some((token, node)) = candidate.step else {
                return parent.clone();
            };
            State {
                node,
                score: candidate.score,
                tokens: with(&parent.tokens, Some(token)),
                ancestors: with(&parent.ancestors, slots[candidate.parent]),
                ended: self.trie.item(node).is_some(),
            }
        });
        self.beams = next.collect();
        self.level += 1;
        Ok(())
    }

    /// Tokens of the next call; 0 when the search is at its end (or not started).
    pub fn width(&self) -> usize {
        self.beams.iter().filter(|beam| !beam.ended).count()
    }

    /// The complete beams, best first: all of them once the search is at its end.
    pub fn beams(&self) -> Vec<Beam> {
        let complete = |beam: &State| {
            let item = self.trie.item(beam.node)?;
            Some(Beam { item, tokens: beam.tokens.clone(), score: beam.score })
        };
        self.beams.iter().filter_map(complete).collect()
    }

    /// Tokens of the prompt.
    pub fn prompt_len(&self) -> usize {
        self.prompt_len
    }

    /// Slots of the row in use before the next call.
    pub fn past(&self) -> usize {
        self.past
    }

    /// Most tokens of the call that feeds the tokens of this level (the first is 1).
    pub(super) fn widest(&self, level: usize) -> usize {
        self.most.min(self.trie.inner_nodes(level))
    }

    /// Calls this search may take at most.
    pub(super) fn most_calls(&self) -> usize {
        self.trie.depth().saturating_sub(1)
    }

    /// Position of the tokens of the next call, the same for all.
    pub(super) fn position(&self) -> usize {
        self.prompt_len + self.level - 1
    }

    /// What the next call feeds, in the order of its slots.
    pub(super) fn fed(&self) -> impl Iterator<Item = Fed<'_>> {
        let live = self.beams.iter().filter(|beam| !beam.ended);
        live.map(|beam| Fed { token: beam.tokens.last().copied().unwrap_or_default(), ancestors: &beam.ancestors })
    }
}

fn with<T: Copy>(list: &[T], last: Option<T>) -> Vec<T> {
    list.iter().copied().chain(last).collect()
}
