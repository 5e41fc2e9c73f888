//! The decoder on ONNX Runtime: many callers, one thread that owns the session and its key-value pool.
//!
//! In: a folder with graph.onnx, graph.onnx.data, tokenizer.json and generation.json. Out: generations, scores, beams.
//! Callers: `refresh`, `admin` through [`LlmEngine`]; `train` and `bundle` through [`OnnxLlm::generate_all`] and
//! [`OnnxLlm::score_all`]. Way of a request: tokenised and checked by its caller (`prepare`) → `queue` → `worker` →
//! `schedule` on `device` → back.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::device::{Device, DeviceOptions};
use super::device_beam::BeamGraphs;
use super::generation::load_generation;
use super::graph::GraphDims;
use super::measure::{Ended, Measures};
use super::prepare::{Prepared, Preparer};
use super::queue::{Queue, QueueLimits};
use super::schedule::{Schedule, ScheduleOptions};
use super::sequence::{Job, Reply, Written};
use super::{
    Beam, BeamRequest, GenerateRequest, Generation, LlmEngine, LlmError, Piece, Priority, QueueDepth, Scored, worker,
};
use crate::onnx::runtime::{Provider, Threads};
use crate::onnx::{GRAPH_FILE, folder, prepack, runtime};
use crate::telemetry::Metrics;

/// How to run a decoder.
#[derive(Debug, Clone)]
pub struct LlmOptions {
    /// Threads of one graph call; 0 = one per core.
    pub threads: usize,
    /// Whether they spin while there is work ([`Threads::spin`]).
    pub spin: bool,
    /// Rows of the key-value pool: most requests under way.
    pub max_rows: usize,
    /// Most tokens of a row, prompt and answer together; the graph's own limit applies where it is lower.
    pub max_len: usize,
    /// Most requests waiting.
    pub queue_limit: usize,
    /// Most tokens, prompts and answers, of the requests waiting.
    pub queue_tokens: usize,
    /// Most tokens, prompts and answers, of the requests under way; 0 = what the pool holds.
    pub max_tokens: usize,
    /// Tokens of one piece of prefill while others decode: the longest they wait is one piece and one step.
    pub prefill_chunk: usize,
    /// Text that prompts begin with: read once and kept.
    pub prefix: String,
    /// Where to compute.
    pub provider: Provider,
    /// Folder that keeps prepacked weights, mapped instead of held in memory; `None` = none are kept. Processor only.
    pub prepack_dir: Option<PathBuf>,
    /// ONNX Runtime's library; `None` = see [`runtime::environment`].
    pub runtime_path: Option<PathBuf>,
    /// Where to count; `None` = nobody looks.
    pub metrics: Option<Arc<Metrics>>,
}

impl Default for LlmOptions {
    fn default() -> Self {
        Self {
            threads: 0,
            spin: true,
            max_rows: 8,
            max_len: 2048,
            queue_limit: 256,
            queue_tokens: 1 << 20,
            max_tokens: 0,
            prefill_chunk: 256,
            prefix: String::new(),
            provider: Provider::Cpu,
            prepack_dir: None,
            runtime_path: None,
            metrics: None,
        }
    }
}

/// A loaded decoder. Dropping it closes the queue and waits for what is under way.
pub struct OnnxLlm {
    preparer: Preparer,
    queue: Arc<Queue>,
    measures: Arc<Measures>,
    thread: Mutex<Option<JoinHandle<()>>>,
    model_id: String,
}

impl OnnxLlm {
    /// Opens a model folder and starts its thread. Fails when a file is missing or does not fit the others, or when memory
    /// does not hold the pool.
    pub fn load(dir: &Path, options: LlmOptions) -> Result<Self, LlmError> {
        let failed = |message: String| LlmError::Load { path: dir.display().to_string(), message };
        let tokenizer = folder::load_tokenizer(dir).map_err(failed)?;
        let defaults = load_generation(dir, &tokenizer).map_err(failed)?;
        let model_id = folder::model_id(dir).map_err(failed)?;
        let known = folder::tokenizer_vocabulary(&tokenizer);

        let (device, dims, slots) = open_device(dir, &options).map_err(failed)?;
        if known > dims.vocabulary {
            let message =
                format!("tokenizer.json has {known} ids, the graph only {}: use those of one export", dims.vocabulary);
            return Err(failed(message));
        }
        let metrics = match options.metrics {
            Some(metrics) => metrics,
            None => Arc::new(Metrics::new().map_err(|error| failed(error.to_string()))?),
        };
        let measures = Arc::new(Measures::new(metrics));
        let has_beams = device.has_beams();
        let preparer = Preparer::new(tokenizer, defaults, slots, dims.vocabulary, has_beams);
        let prefix = preparer.tokenize(&options.prefix)?;

        let limits = QueueLimits { jobs: options.queue_limit, tokens: options.queue_tokens };
        let queue = Arc::new(Queue::new(limits));
        let max_tokens = match options.max_tokens {
            0 => options.max_rows * slots,
            tokens => tokens,
        };
        let schedule_options =
            ScheduleOptions { prefill_chunk: options.prefill_chunk, max_tokens, hidden: dims.hidden };
        let mut schedule = Schedule::new(device, schedule_options, measures.clone());
        schedule.keep_prefix(prefix).map_err(failed)?;
        let (thread_queue, thread_measures) = (queue.clone(), measures.clone());
        let thread = std::thread::Builder::new()
            .name("llm".to_owned())
            .spawn(move || worker::work(&thread_queue, &mut schedule, &thread_measures))
            .map_err(|error| failed(format!("the engine thread does not start: {error}")))?;
        Ok(Self { preparer, queue, measures, thread: Mutex::new(Some(thread)), model_id })
    }

    /// What the engine counts into.
    pub fn metrics(&self) -> &Metrics {
        self.measures.metrics()
    }

    /// Generates for many prompts and waits for all, in order. Blocking, never refused for overload: for the trainer.
    pub fn generate_all(&self, requests: &[GenerateRequest]) -> Vec<Result<Generation, LlmError>> {
        let jobs: Vec<Result<Prepared<Written>, LlmError>> =
            requests.iter().map(|request| self.whole(request)).collect();
        // Prompts of like length come together: less padding.
        let mut order: Vec<usize> = (0..requests.len()).collect();
        order.sort_by_key(|&index| jobs[index].as_ref().map_or(0, |(job, _)| job.tokens.len()));

        let mut jobs: Vec<_> = jobs.into_iter().map(Some).collect();
        let mut waiting: Vec<_> = requests.iter().map(|_| Err(LlmError::Closed)).collect();
        for index in order {
            let Some(prepared) = jobs[index].take() else { continue };
            waiting[index] = prepared.and_then(|(job, answer)| {
                if job.cost() > job.tokens.len() {
                    self.queue.push_waiting(job)?;
                } else {
                    job.answer_nothing();
                }
                Ok(answer)
            });
        }
        waiting.into_iter().map(|answer| self.finished(blocking(answer?)?)).collect()
    }

    /// Natural-log probability of each continuation token, given its prompt and the tokens before it, for many pairs, in
    /// order. Blocking.
    pub fn score_all(&self, pairs: &[(&[u32], &[u32])]) -> Vec<Result<Vec<f64>, LlmError>> {
        let logprobs = |scored: Vec<Scored>| scored.iter().map(|token| token.logprob).collect();
        self.judge_all(pairs).into_iter().map(|answer| answer.map(logprobs)).collect()
    }

    /// The same, with whether each token is what the model would have written.
    pub fn judge_all(&self, pairs: &[(&[u32], &[u32])]) -> Vec<Result<Vec<Scored>, LlmError>> {
        let waiting: Vec<_> = pairs
            .iter()
            .map(|(prompt, continuation)| {
                let (job, answer) = self.preparer.score(prompt, continuation, Priority::Background)?;
                match job {
                    Some(job) => self.queue.push_waiting(job).map(|()| answer),
                    None => Ok(answer),
                }
            })
            .collect();
        waiting.into_iter().map(|answer| blocking(answer?)).collect()
    }

    /// Stops taking requests; those waiting get [`LlmError::Closed`], what is under way ends normally.
    pub fn close(&self) {
        self.queue.close();
    }

    fn whole(&self, request: &GenerateRequest) -> Result<Prepared<Written>, LlmError> {
        let (reply, answer) = oneshot::channel();
        Ok((self.preparer.generate(request, Reply::Whole(reply), false)?, answer))
    }

    fn push(&self, job: Job) -> Result<(), LlmError> {
        self.queue.push(job).inspect_err(|error| {
            if matches!(error, LlmError::Overloaded { .. }) {
                self.measures.ended(Ended::Overloaded);
            }
        })
    }

    fn finished(&self, written: Written) -> Result<Generation, LlmError> {
        let decoded = match written.text {
            Some(_) => String::new(),
            None => self.preparer.decode(&written.tokens)?,
        };
        Ok(written.into_generation(decoded))
    }
}

/// The answer, or [`LlmError::Closed`] where the engine dropped the job.
fn blocking<T>(answer: oneshot::Receiver<Result<T, LlmError>>) -> Result<T, LlmError> {
    futures::executor::block_on(answer).map_err(|_| LlmError::Closed)?
}

/// Opens the sessions and makes the pool; slots of a row are what is asked for or what the graph has.
fn open_device(dir: &Path, options: &LlmOptions) -> Result<(Device, GraphDims, usize), String> {
    let environment = runtime::environment(options.runtime_path.as_deref()).map_err(|error| error.to_string())?;
    let count = match options.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        count => count,
    };
    let threads = Threads { count, spin: options.spin };
    let open = |graph: &Path| match &options.prepack_dir {
        Some(cache) if options.provider == Provider::Cpu => {
            prepack::open_prepacked(&environment, graph, threads, cache).map_err(|error| error.to_string())
        }
        _ => runtime::open_session_on(&environment, graph, threads, options.provider),
    };
    let session = open(&dir.join(GRAPH_FILE))?;
    let dims = GraphDims::of(&session)?;
    let slots = options.max_len.min(dims.positions);
    if slots < options.max_len {
        tracing::warn!(asked = options.max_len, graph = dims.positions, "rows are shorter than configured");
    }
    let device_options = DeviceOptions { rows: options.max_rows.max(1), slots, provider: options.provider };
    let beams = BeamGraphs::open(dir, &dims, open)?;
    let mut device = Device::new(environment.clone(), session, dims, device_options)?;
    device.set_beams(beams);
    // What unused slots hold must not matter: in tests they begin full of garbage.
    #[cfg(test)]
    device.fill(7.0).map_err(|error| error.to_string())?;
    Ok((device, dims, slots))
}

#[async_trait]
impl LlmEngine for OnnxLlm {
    async fn generate(&self, request: GenerateRequest) -> Result<Generation, LlmError> {
        let (job, answer) = self.whole(&request)?;
        match request.max_new_tokens {
            0 => job.answer_nothing(),
            _ => self.push(job)?,
        }
        let written = answer.await.map_err(|_| LlmError::Closed)??;
        self.finished(written)
    }

    async fn stream(&self, request: GenerateRequest) -> Result<mpsc::UnboundedReceiver<Piece>, LlmError> {
        let (pieces, receiver) = mpsc::unbounded_channel();
        let job = self.preparer.generate(&request, Reply::Stream(pieces), true)?;
        match request.max_new_tokens {
            0 => job.answer_nothing(),
            _ => self.push(job)?,
        }
        Ok(receiver)
    }

    async fn beam(&self, request: BeamRequest) -> Result<Vec<Beam>, LlmError> {
        let (job, answer) = self.preparer.beam(request)?;
        self.push(job)?;
        answer.await.map_err(|_| LlmError::Closed)?
    }

    async fn score(&self, prompt: Vec<u32>, continuation: Vec<u32>) -> Result<Vec<Scored>, LlmError> {
        let (job, answer) = self.preparer.score(&prompt, &continuation, Priority::Interactive)?;
        if let Some(job) = job {
            self.push(job)?;
        }
        answer.await.map_err(|_| LlmError::Closed)?
    }

    fn tokenize(&self, text: &str) -> Result<Vec<u32>, LlmError> {
        self.preparer.tokenize(text)
    }

    fn count_tokens(&self, text: &str) -> usize {
        self.preparer.tokenize(text).map_or(0, |tokens| tokens.len())
    }

    fn prompt_limit(&self, max_new_tokens: usize) -> usize {
        self.preparer.prompt_limit(max_new_tokens)
    }

    fn model_id(&self) -> &str {
        &self.model_id
    }

    fn queue_depth(&self) -> QueueDepth {
        let (requests, tokens) = self.queue.depth();
        QueueDepth { requests, tokens }
    }

    fn stalled(&self) -> Option<Duration> {
        self.measures.progress().stalled()
    }

    fn healthy(&self) -> bool {
        self.measures.is_healthy()
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
