//! The prompts of a run and their order.

use crate::draw;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use taiji::event::Item;
use taiji::prompt::PromptMode;

/// A prompt whose truth is known.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptCase {
    /// Who is asked about.
    pub user_id: String,
    /// Token ids.
    pub tokens: Vec<u32>,
    /// How the prompt ends, and so what an answer must look like.
    pub mode: PromptMode,
    /// What was bought next; `None` where it has no text.
    pub truth: Option<Item>,
}

/// Prompts in an order that seed and number of passes decide; the n-th draw is the same whatever was drawn before.
#[derive(Debug, Clone)]
pub(super) struct Order {
    count: usize,
    seed: u64,
    /// The pass that is laid out.
    pass: Option<(usize, Vec<usize>)>,
}

impl Order {
    pub(super) fn new(count: usize, seed: u64) -> Self {
        Self { count, seed, pass: None }
    }

    /// Prompt of a draw, from 0.
    pub(super) fn at(&mut self, draw: usize) -> usize {
        let (pass, place) = (draw / self.count, draw % self.count);
        if let Some((known, order)) = &self.pass
            && *known == pass
        {
            return order[place];
        }
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(1 + pass as u64);
        let mut order: Vec<usize> = (0..self.count).collect();
        draw::shuffle(&mut order, &mut random);
        let prompt = order[place];
        self.pass = Some((pass, order));
        prompt
    }
}
