//! Prompts → lists of items by the engine's beam search over the codes that exist, as the service would search. Called by `judge`.

use super::GenerativeError;
use crate::progress::Progress;
use crate::semantic_ids::CodeTable;
use std::path::Path;
use std::sync::Arc;
use taiji::llm::beam::slots_needed;
use taiji::llm::trie::Trie;
use taiji::llm::{Beam, BeamRequest, LlmEngine, LlmError, LlmOptions, OnnxLlm, Priority, Prompt};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

/// Prompts handed to the engine at once.
const CHUNK: usize = 128;
/// Searches under way.
const MAX_ROWS: usize = 16;

/// The engine with the trie of a table.
pub struct Recommender {
    llm: Arc<OnnxLlm>,
    trie: Arc<Trie>,
    /// Items of each sequence of the trie, by number.
    groups: Vec<Vec<usize>>,
    width: usize,
    runtime: Runtime,
}

impl Recommender {
    /// Opens exported graphs, among them those for beams, for prompts of at most `longest_prompt` tokens; a search keeps `width`
    /// beams. Items of the same codes follow each other by `popularity`, by number.
    pub fn open(
        graphs: &Path,
        table: &CodeTable,
        popularity: &[f64],
        width: usize,
        longest_prompt: usize,
        threads: usize,
    ) -> Result<Self, GenerativeError> {
        let groups = table.groups(popularity);
        let trie = Arc::new(table.trie(&groups)?);
        let options = LlmOptions {
            threads,
            max_rows: MAX_ROWS,
            max_len: slots_needed(&trie, width, longest_prompt),
            queue_limit: CHUNK,
            queue_tokens: usize::MAX,
            ..LlmOptions::default()
        };
        let llm = Arc::new(OnnxLlm::load(graphs, options)?);
        let runtime = Builder::new_current_thread().build();
        let runtime = runtime.map_err(|error| GenerativeError::Threads { threads: 1, message: error.to_string() })?;
        Ok(Recommender { llm, trie, groups, width, runtime })
    }

    /// For each prompt the numbers of the items found, best first; at least one a beam, more where items share their codes.
    pub fn lists(&self, prompts: &[&[u32]], progress: &Progress) -> Result<Vec<Vec<usize>>, GenerativeError> {
        let mut bar = progress.bar("users", prompts.len() as u64);
        let mut lists = Vec::with_capacity(prompts.len());
        for chunk in prompts.chunks(CHUNK) {
            let found = self.runtime.block_on(self.search(chunk))?;
            lists.extend(found.iter().map(|beams| self.items(beams)));
            bar.add(chunk.len() as u64);
        }
        Ok(lists)
    }

    /// The items of beams, those of the same codes one after the other.
    pub(super) fn items(&self, beams: &[Beam]) -> Vec<usize> {
        beams.iter().flat_map(|beam| self.groups[beam.item as usize].iter().copied()).collect()
    }

    /// Beams of each prompt, in order.
    pub(super) async fn search(&self, prompts: &[&[u32]]) -> Result<Vec<Vec<Beam>>, LlmError> {
        let mut tasks = JoinSet::new();
        for (place, prompt) in prompts.iter().enumerate() {
            let request = BeamRequest {
                prompt: Prompt::Tokens(prompt.to_vec()),
                width: self.width,
                trie: self.trie.clone(),
                priority: Priority::Background,
                deadline: None,
            };
            let llm = self.llm.clone();
            tasks.spawn(async move { (place, llm.beam(request).await) });
        }
        let mut found = vec![Vec::new(); prompts.len()];
        while let Some(ended) = tasks.join_next().await {
            let (place, beams) = ended.map_err(|error| LlmError::Run(error.to_string()))?;
            found[place] = beams?;
        }
        Ok(found)
    }
}
