//! What rounding a decoder's weights costs on a text: `taiji-trainer perplexity`, and `export` in int4.
//!
//! In: model folders, a text file. Out: perplexities and their ratio. The text is cut into windows of equal length, each read from
//! its start; a window is what the interval draws from, since tokens of one text are not independent.

use crate::stage::StageError;
use crate::stats::{Sample, interval};
use serde::Serialize;
use std::path::{Path, PathBuf};
use taiji::llm::{LlmOptions, OnnxLlm};
use taiji_export::{ExportOptions, ExportReport, Flavour, Precision, export};
use tokenizers::Tokenizer;

/// Tokens of a window.
const WINDOW: usize = 256;
/// Most tokens of a text that are read: fitting and judging cost as much as its length.
const MOST_TOKENS: usize = 32_768;
/// Windows scored at once.
const ROWS: usize = 8;
/// An export is refused when the text is surely this many times as surprising as in f32; a bundle, when its probes are.
pub const MOST_RATIO: f64 = 1.15;

/// Perplexities of one text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rounded {
    /// Tokens of the text.
    pub tokens: usize,
    /// Of the one model, that in f32.
    pub before: f64,
    /// Of the other.
    pub after: f64,
    /// after / before.
    pub ratio: f64,
    /// Lower end of its 95 % interval over windows.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// What int4 is fitted to and judged on.
#[derive(Debug, Clone, Default)]
pub struct Texts {
    /// Fitted to this one.
    pub calibrate: Option<PathBuf>,
    /// Judged on this one; `None` = the one it is fitted to.
    pub judge: Option<PathBuf>,
    /// Written whatever the judgement.
    pub force: bool,
}

/// Exports a checkpoint, fitted to one text and judged on another. Nothing is written when it is refused.
pub fn export_judged(
    checkpoint: &Path,
    out: &Path,
    mut options: ExportOptions,
    texts: &Texts,
) -> Result<(ExportReport, Option<Rounded>), StageError> {
    if let Some(text) = &texts.calibrate {
        options.calibration = read_windows(checkpoint, text)?;
    }
    let Some(text) = texts.judge.as_ref().or(texts.calibrate.as_ref()) else {
        return Ok((export(checkpoint, out, &options)?, None));
    };
    let windows = read_windows(checkpoint, text)?;
    let mut partial = out.as_os_str().to_owned();
    partial.push(".partial");
    let partial = Folder::make(PathBuf::from(partial))?;
    let plain = ExportOptions { precision: Precision::F32, flavours: vec![Flavour::Gqa], ..ExportOptions::default() };
    let exact = partial.0.join("f32");
    export(checkpoint, &exact, &plain)?;
    let before = score(&exact, &windows)?;
    std::fs::remove_dir_all(&exact).map_err(StageError::io(&exact))?;
    let folder = partial.0.join("out");
    let report = export(checkpoint, &folder, &options)?;
    let rounded = Rounded::of(&before, &score(&folder, &windows)?)?;
    if rounded.low > MOST_RATIO && !texts.force {
        return Err(StageError::Refused { message: rounded.refusal() });
    }
    // The graphs come last: a folder with a graph is whole.
    std::fs::create_dir_all(out).map_err(StageError::io(out))?;
    for name in &report.files {
        let to = out.join(name);
        std::fs::rename(folder.join(name), &to).map_err(StageError::io(&to))?;
    }
    Ok((report, Some(rounded)))
}

/// Compares two exports of one checkpoint on a text.
pub fn perplexity(llm: &Path, than: &Path, text: &Path) -> Result<Rounded, StageError> {
    let windows = read_windows(than, text)?;
    Rounded::of(&score(than, &windows)?, &score(llm, &windows)?)
}

impl Rounded {
    /// Of mean log-probabilities by window.
    fn of(before: &[f64], after: &[f64]) -> Result<Self, StageError> {
        let (before, after) = (Sample::of_users(before)?, Sample::of_users(after)?);
        let tokens = before.users() * (WINDOW - 1);
        // What is lost, in nats a token.
        let lost = interval(&before.minus(&after)?, 0.95)?;
        let of = |sample: &Sample| sample.seed_means().first().map_or(f64::NAN, |mean| (-mean).exp());
        let (low, high) = (lost.low.exp(), lost.high.exp());
        Ok(Self { tokens, before: of(&before), after: of(&after), ratio: lost.estimate.exp(), low, high })
    }

    fn refusal(&self) -> String {
        format!(
            "{self}: at least {:.3} times, at most {MOST_RATIO} is accepted: choose smaller blocks, zero points or a text to calibrate on, or --force",
            self.low
        )
    }
}

impl std::fmt::Display for Rounded {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { tokens, before, after, ratio, low, high } = self;
        write!(
            formatter,
            "perplexity {before:.3} in f32, {after:.3} rounded: {ratio:.4} times (95 %: {low:.4} to {high:.4}, {tokens} tokens)"
        )
    }
}

/// The text's tokens in windows of equal length; what is left at the end is not used.
fn read_windows(folder: &Path, text: &Path) -> Result<Vec<Vec<u32>>, StageError> {
    let refuse = |path: &Path, message: String| StageError::File { path: path.display().to_string(), message };
    let definition = folder.join("tokenizer.json");
    let tokenizer = Tokenizer::from_file(&definition).map_err(|error| refuse(&definition, error.to_string()))?;
    let content = std::fs::read_to_string(text).map_err(StageError::io(text))?;
    let encoded = tokenizer.encode_fast(content, false).map_err(|error| refuse(text, error.to_string()))?;
    let windows: Vec<Vec<u32>> =
        encoded.get_ids().chunks_exact(WINDOW).take(MOST_TOKENS / WINDOW).map(<[u32]>::to_vec).collect();
    match windows.len() {
        0 | 1 => Err(refuse(text, format!("is shorter than two windows of {WINDOW} tokens"))),
        _ => Ok(windows),
    }
}

/// Mean log-probability of each window's tokens but the first.
fn score(llm: &Path, windows: &[Vec<u32>]) -> Result<Vec<f64>, StageError> {
    let options = LlmOptions { max_rows: ROWS, max_len: WINDOW, ..LlmOptions::default() };
    let model = OnnxLlm::load(llm, options)?;
    let mut means = Vec::with_capacity(windows.len());
    for windows in windows.chunks(ROWS) {
        let pairs: Vec<(&[u32], &[u32])> = windows.iter().map(|window| window.split_at(1)).collect();
        for scores in model.score_all(&pairs) {
            let scores = scores?;
            means.push(scores.iter().sum::<f64>() / scores.len() as f64);
        }
    }
    Ok(means)
}

/// A folder for the time being.
struct Folder(PathBuf);

impl Folder {
    fn make(path: PathBuf) -> Result<Self, StageError> {
        // What a killed run left is of no use.
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(StageError::io(&path)(error)),
            _ => {}
        }
        std::fs::create_dir_all(&path).map_err(StageError::io(&path))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // The run's own error, if there is one, is the one to report.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn ratios_are_of_means_over_windows() {
        let before = [-3.0, -4.0, -3.5, -3.5];
        let same = Rounded::of(&before, &before).unwrap();
        assert_eq!((same.ratio, same.low, same.high, same.tokens), (1.0, 1.0, 1.0, 4 * 255));
        let worse = Rounded::of(&before, &before.map(|mean| mean - 0.2)).unwrap();
        assert!((worse.ratio - 0.2_f64.exp()).abs() < 1e-12 && (worse.before - 3.5_f64.exp()).abs() < 1e-9);
        assert!(worse.low > MOST_RATIO && worse.refusal().contains("1.221 times"), "{}", worse.refusal());
        let unsure = Rounded::of(&before, &[-4.6, -3.6, -4.0, -3.5]).unwrap();
        assert!(unsure.ratio > MOST_RATIO && unsure.low < MOST_RATIO && unsure.high > unsure.ratio, "{unsure}");
    }
}
