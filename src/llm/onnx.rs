//! The decoder on ONNX Runtime: many callers, one thread that owns the session.
//!
//! In: a folder with graph.onnx, graph.onnx.data, tokenizer.json and generation.json. Out: generations and scores.
//! Callers: `refresh` through [`LlmEngine`]; `train` and `bundle` through [`OnnxLlm::generate_all`] and
//! [`OnnxLlm::score`]. Way of a prompt: tokenised by its caller → `queue` → `worker` → `batch` and `pool` → back.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokenizers::Tokenizer;
use tokio::sync::oneshot;

use super::batch::{Batch, Prompt, Step, Written};
use super::graph::GraphDims;
use super::pool::Pool;
use super::queue::{Job, Queue};
use super::worker::{LlmStats, Runner, work};
use super::{Finish, GRAPH_FILE, GenerateRequest, Generation, LlmEngine, LlmError, folder, runtime, sample};

/// How to run a decoder.
#[derive(Debug, Clone)]
pub struct LlmOptions {
    /// Threads of one graph call; 0 = one per core.
    pub threads: usize,
    /// Most prompts of one batch.
    pub max_rows: usize,
    /// Most tokens of a row, prompt and answer together; the graph's own limit applies where it is lower.
    pub max_len: usize,
    /// Most requests waiting.
    pub queue_limit: usize,
    /// ONNX Runtime's library; `None` = see [`runtime::environment`].
    pub runtime_path: Option<PathBuf>,
}

impl Default for LlmOptions {
    fn default() -> Self {
        Self { threads: 0, max_rows: 8, max_len: 2048, queue_limit: 256, runtime_path: None }
    }
}

/// A loaded decoder. Dropping it closes the queue and waits for the running batch.
pub struct OnnxLlm {
    tokenizer: Tokenizer,
    queue: Arc<Queue>,
    stats: Arc<LlmStats>,
    thread: Mutex<Option<JoinHandle<()>>>,
    model_id: String,
    max_len: usize,
    vocabulary: usize,
}

impl OnnxLlm {
    /// Opens a model folder and starts its thread. Fails when a file is missing or does not fit the others.
    pub fn load(dir: &Path, options: LlmOptions) -> Result<Self, LlmError> {
        let failed = |message: String| LlmError::Load { path: dir.display().to_string(), message };
        let tokenizer = folder::load_tokenizer(dir).map_err(failed)?;
        let stop = folder::load_stop_tokens(dir, &tokenizer).map_err(failed)?;
        let model_id = folder::model_id(dir).map_err(failed)?;
        let environment =
            runtime::environment(options.runtime_path.as_deref()).map_err(|error| failed(error.to_string()))?;
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let session = runtime::open_session(&environment, &dir.join(GRAPH_FILE), threads)
            .map_err(|error| failed(error.to_string()))?;
        let dims = GraphDims::of(&session).map_err(failed)?;
        let known = folder::tokenizer_vocabulary(&tokenizer);
        if known > dims.vocabulary {
            let message =
                format!("tokenizer.json has {known} ids, the graph only {}: use those of one export", dims.vocabulary);
            return Err(failed(message));
        }
        let max_len = options.max_len.min(dims.positions);
        if max_len < options.max_len {
            tracing::warn!(asked = options.max_len, graph = dims.positions, "rows are shorter than configured");
        }

        let (queue, stats) = (Arc::new(Queue::new(options.queue_limit)), Arc::new(LlmStats::default()));
        let vocabulary = dims.vocabulary;
        let mut runner = OnnxRunner { pool: Pool::new(session, dims, max_len), stop };
        let (thread_queue, thread_stats) = (queue.clone(), stats.clone());
        let thread = std::thread::Builder::new()
            .name("llm".to_owned())
            .spawn(move || work(&thread_queue, &mut runner, &thread_stats, options.max_rows))
            .map_err(|error| failed(format!("the engine thread does not start: {error}")))?;
        Ok(Self { tokenizer, queue, stats, thread: Mutex::new(Some(thread)), model_id, max_len, vocabulary })
    }

    /// Counters for metrics.
    pub fn stats(&self) -> &LlmStats {
        &self.stats
    }

    /// Token ids of a text; special tokens are recognised where they are spelled out, none are added.
    pub fn tokenize(&self, text: &str) -> Result<Vec<u32>, LlmError> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(|error| LlmError::Run(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Generates for many prompts and waits for all, in order. Blocking, never refused for overload: for the trainer.
    pub fn generate_all(&self, requests: &[GenerateRequest]) -> Vec<Result<Generation, LlmError>> {
        let prepared: Vec<Result<Prompt, LlmError>> = requests.iter().map(|request| self.prepare(request)).collect();
        // Prompts of like length share a batch: less padding.
        let mut order: Vec<usize> = (0..requests.len()).collect();
        order.sort_by_key(|&index| prepared[index].as_ref().map_or(0, |prompt| prompt.tokens.len()));

        let mut prepared: Vec<Option<Result<Prompt, LlmError>>> = prepared.into_iter().map(Some).collect();
        let mut waiting: Vec<Option<Waiting>> = requests.iter().map(|_| None).collect();
        for index in order {
            waiting[index] = prepared[index].take().map(|result| submit(result?, |job| self.queue.push_waiting(job)));
        }
        let finished = waiting.into_iter().map(|entry| {
            let (prompt_tokens, answer) = entry.unwrap_or(Err(LlmError::Closed))?;
            let written = futures::executor::block_on(answer).map_err(|_| LlmError::Closed)??;
            self.generation(prompt_tokens, written)
        });
        finished.collect()
    }

    /// Natural-log probability of each continuation token, given the prompt and the tokens before it. Blocking.
    pub fn score(&self, prompt: &[u32], continuation: &[u32]) -> Result<Vec<f64>, LlmError> {
        if continuation.is_empty() {
            return Ok(Vec::new());
        }
        self.check(prompt, continuation.len())?;
        self.check_ids(continuation)?;
        let tokens = [prompt, continuation].concat();
        let (reply, answer) = oneshot::channel();
        self.queue.push_waiting(Job::Score { tokens, from: prompt.len(), reply })?;
        futures::executor::block_on(answer).map_err(|_| LlmError::Closed)?
    }

    /// Stops taking requests; those waiting get [`LlmError::Closed`], the running batch ends normally.
    pub fn close(&self) {
        self.queue.close();
    }

    fn prepare(&self, request: &GenerateRequest) -> Result<Prompt, LlmError> {
        let tokens = self.tokenize(&request.prompt)?;
        self.check(&tokens, request.max_new_tokens)?;
        Ok(Prompt { tokens, max_new_tokens: request.max_new_tokens })
    }

    fn check(&self, tokens: &[u32], more: usize) -> Result<(), LlmError> {
        let limit = self.prompt_limit(more);
        if tokens.len() > limit {
            return Err(LlmError::PromptTooLong { tokens: tokens.len(), limit });
        }
        if tokens.is_empty() {
            return Err(LlmError::Run("the prompt has no tokens: it must have one".to_owned()));
        }
        self.check_ids(tokens)
    }

    fn check_ids(&self, tokens: &[u32]) -> Result<(), LlmError> {
        match tokens.iter().find(|&&token| token as usize >= self.vocabulary) {
            Some(token) => Err(LlmError::Run(format!("token id {token} is not below {}", self.vocabulary))),
            None => Ok(()),
        }
    }

    fn generation(&self, prompt_tokens: usize, written: Written) -> Result<Generation, LlmError> {
        let text = self.tokenizer.decode(&written.tokens, false).map_err(|error| LlmError::Run(error.to_string()))?;
        let Written { tokens, finish, logprob } = written;
        Ok(Generation { text, prompt_tokens, new_tokens: tokens.len(), finish, logprob })
    }
}

/// Prompt length and the way the answer will come.
type Waiting = Result<(usize, oneshot::Receiver<Result<Written, LlmError>>), LlmError>;

/// Queues a prompt; where nothing may be generated the answer is there at once.
fn submit(prompt: Prompt, push: impl FnOnce(Job) -> Result<(), LlmError>) -> Waiting {
    let (reply, answer) = oneshot::channel();
    let prompt_tokens = prompt.tokens.len();
    if prompt.max_new_tokens == 0 {
        let _ = reply.send(Ok(Written { tokens: Vec::new(), finish: Finish::Length, logprob: 0.0 }));
        return Ok((prompt_tokens, answer));
    }
    push(Job::Generate(prompt, reply))?;
    Ok((prompt_tokens, answer))
}

#[async_trait]
impl LlmEngine for OnnxLlm {
    async fn generate(&self, request: GenerateRequest) -> Result<Generation, LlmError> {
        let prompt = self.prepare(&request)?;
        let (prompt_tokens, answer) = submit(prompt, |job| self.queue.push(job))?;
        let written = answer.await.map_err(|_| LlmError::Closed)??;
        self.generation(prompt_tokens, written)
    }

    fn count_tokens(&self, text: &str) -> usize {
        self.tokenize(text).map_or(0, |tokens| tokens.len())
    }

    fn prompt_limit(&self, max_new_tokens: usize) -> usize {
        self.max_len.saturating_sub(max_new_tokens)
    }

    fn model_id(&self) -> &str {
        &self.model_id
    }

    fn queue_depth(&self) -> usize {
        self.queue.depth()
    }
}

impl Drop for OnnxLlm {
    fn drop(&mut self) {
        self.queue.close();
        if let Some(thread) = self.thread.lock().take() {
            // A panic of the thread was reported when it happened.
            let _ = thread.join();
        }
    }
}

/// The session as the engine thread sees it.
struct OnnxRunner {
    pool: Pool,
    stop: Vec<u32>,
}

impl Runner for OnnxRunner {
    fn generate(&mut self, prompts: &[Prompt]) -> Result<Vec<Written>, String> {
        let mut batch = Batch::new(prompts.to_vec());
        let mut next = Some(batch.prefill());
        while let Some(step) = next {
            let logits = self.pool.run(batch.bucket(), &step).map_err(|error| error.to_string())?;
            batch.accept(&step, logits, &self.stop)?;
            next = batch.decode();
        }
        Ok(batch.finish())
    }

    fn score(&mut self, tokens: &[u32], from: usize) -> Result<Vec<f64>, String> {
        let scored = &tokens[from..];
        let step = Step::scoring(tokens, from);
        let logits = self.pool.run(1, &step).map_err(|error| error.to_string())?;
        let vocabulary = logits.len() / scored.len();
        let rows = logits.chunks(vocabulary).zip(scored);
        rows.map(|(row, &token)| sample::log_probability(row, token).ok_or("the logits are not finite".to_owned()))
            .collect()
    }

    fn reset(&mut self) {
        self.pool.reset();
    }
}
