//! Our half of `make bench-sft`: takes optimizer steps on a checkpoint and a batch, as many as each line of the input says.
//!
//! In: a folder with a checkpoint in Hugging Face's form and `batch.json`, made by scripts/bench_sft/run.py. Out: one line after each
//! line of the input: the loss before the first of these steps.

use std::io::{BufRead, Write};
use std::path::PathBuf;

use serde::Deserialize;
use taiji_trainer::fit::{AdamW, AdamWSettings, Gradients, ParameterSet};
use taiji_trainer::model::lora::with_adapter_groups;
use taiji_trainer::model::{Decoder, LoraSettings, TokenBatch, TrainBatch, load_checkpoint};
use taiji_trainer::objective::CrossEntropy;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Texts of one length, what is learned of them, and how.
#[derive(Deserialize)]
struct Setting {
    texts: Vec<Vec<u32>>,
    /// As long as the texts.
    targets: Vec<Vec<u32>>,
    /// One a place, the same in each text.
    weights: Vec<f32>,
    /// Rank of the adapters that alone are trained; 0 = everything is.
    rank: usize,
    lr: f64,
}

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Fallible<()> {
    let folder = PathBuf::from(std::env::args().nth(1).ok_or("usage: sft_worker FOLDER")?);
    let setting: Setting = serde_json::from_slice(&std::fs::read(folder.join("batch.json"))?)?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    pool.install(|| answer(&folder, &setting).map_err(|error| error.to_string()))?;
    Ok(())
}

fn answer(folder: &std::path::Path, setting: &Setting) -> Fallible<()> {
    let mut decoder = load_checkpoint(folder)?;
    let rank = setting.rank;
    let lora = (rank > 0).then(|| LoraSettings { rank, alpha: 2.0 * rank as f64, ..LoraSettings::default() });
    if let Some(lora) = &lora {
        decoder.add_adapters(lora, 1)?;
    }
    let set = ParameterSet::grouped(&decoder, &with_adapter_groups(&[], lora.as_ref()), setting.lr)?;
    let mut optimizer = AdamW::new(set, AdamWSettings::default());
    let batch = TrainBatch {
        input: TokenBatch::from_sequences(setting.texts.iter().map(Vec::as_slice)),
        targets: setting.targets.concat(),
        weights: setting.texts.iter().flat_map(|_| setting.weights.iter().copied()).collect(),
    };
    for line in std::io::stdin().lock().lines() {
        let steps: usize = line?.trim().parse()?;
        let mut losses = Vec::new();
        for _ in 0..steps {
            losses.push(step(&decoder, &mut optimizer, &batch, setting.lr)?);
        }
        println!("{}", losses.first().ok_or("a line asked for no step")?);
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn step(decoder: &Decoder, optimizer: &mut AdamW, batch: &TrainBatch, lr: f64) -> Fallible<f32> {
    let loss = decoder.loss(batch, &CrossEntropy::mean(&batch.weights)?)?;
    let gradients = Gradients::collect(optimizer.set(), &loss.backward()?)?;
    optimizer.update(&gradients, lr)?;
    Ok(loss.to_scalar::<f32>()?)
}
