//! Users' items → windows to train on, and one case a user for validation and for test. Called by `stages`.
//!
//! Leave-one-out: of a user's items the last is the test's, the one before validation's; training sees those before both alone.
//! A window holds a whole prompt's history and one item more, and windows of a longer user overlap:
//!
//! ```text
//! training part  i i i i i i i i i     window 5, stride 2:  [0..5] [2..7] [4..9]
//! ```

use super::GenerativeError;
use crate::data::{DEFAULT_TARGET, Dataset, Split, targets_of};
use crate::semantic_ids::CodeTable;
use serde::{Deserialize, Serialize};

/// How users are cut.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SequenceSettings {
    /// Newest items that a prompt shows.
    pub history: usize,
    /// Items from one window's begin to the next one's; at most `history + 1`, so that no item is left out.
    pub stride: usize,
    /// The action whose items are the sequence.
    pub action: String,
}

impl Default for SequenceSettings {
    fn default() -> Self {
        SequenceSettings { history: 20, stride: 10, action: DEFAULT_TARGET.to_owned() }
    }
}

impl SequenceSettings {
    /// Refuses windows that hold nothing or leave something out.
    pub fn check(&self) -> Result<(), GenerativeError> {
        let fail = |field, message: String| Err(GenerativeError::Settings { field, message });
        if self.history == 0 {
            return fail("history", "must be at least 1".into());
        }
        if self.stride == 0 || self.stride > self.window() {
            return fail("stride", format!("must be from 1 to history + 1 = {}, got {}", self.window(), self.stride));
        }
        Ok(())
    }

    fn window(&self) -> usize {
        self.history + 1
    }
}

/// One user's item to be found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// As in the data.
    pub user_id: String,
    /// All items before it, oldest first.
    pub history: Vec<String>,
    /// The item.
    pub target: String,
    /// Tokens of the newest items of the history.
    pub prompt: Vec<u32>,
    /// Tokens of the item.
    pub answer: Vec<u32>,
}

/// What is trained on, validated on and tested on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sequences {
    /// Tokens of each window.
    pub train: Vec<Vec<u32>>,
    /// By user; the history ends before validation's item.
    pub validation: Vec<Case>,
    /// By user; the history holds validation's item.
    pub test: Vec<Case>,
}

/// Cuts all users of a dataset, in its order. Users with too few items lack the parts that they have no items for.
pub fn cut(dataset: &Dataset, table: &CodeTable, settings: &SequenceSettings) -> Result<Sequences, GenerativeError> {
    settings.check()?;
    let all: Vec<_> = dataset.users.iter().map(|user| targets_of(dataset, user, &settings.action)).collect();
    table.check_items(all.iter().flatten().map(|target| target.item_id.as_str()))?;
    let mut sequences = Sequences::default();
    for (user, targets) in dataset.users.iter().zip(&all) {
        let ids: Vec<&str> = targets.iter().map(|target| target.item_id.as_str()).collect();
        let numbers: Vec<usize> = ids.iter().filter_map(|id| table.number(id)).collect();
        let train = Split::Train.of(targets).len();
        let starts = window_starts(train, settings.window(), settings.stride);
        sequences
            .train
            .extend(starts.map(|start| table.sequence(&numbers[start..train.min(start + settings.window())])));
        // Validation's item lies behind the training part, the test's behind both.
        let case = |place: usize| Case {
            user_id: user.user_id.clone(),
            history: ids[..place].iter().map(|id| (*id).to_owned()).collect(),
            target: ids[place].to_owned(),
            prompt: table.sequence(&numbers[place.saturating_sub(settings.history)..place]),
            answer: table.tokens(numbers[place]).collect(),
        };
        sequences.validation.extend((train > 0).then(|| case(train)));
        sequences.test.extend((targets.len() > 1).then(|| case(targets.len() - 1)));
    }
    match sequences.train.is_empty() {
        true => Err(GenerativeError::NoSequences { users: dataset.users.len() }),
        false => Ok(sequences),
    }
}

/// Where windows begin; the last one ends where the items do.
pub(super) fn window_starts(items: usize, window: usize, stride: usize) -> impl Iterator<Item = usize> {
    let last = items.saturating_sub(window);
    (0..last).step_by(stride).chain((items > 0).then_some(last))
}
