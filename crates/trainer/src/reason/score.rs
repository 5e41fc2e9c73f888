//! How surprised a frozen scorer is by the true title, with each reason and without any.
//!
//! In: a decoder with its tokenizer, [`Group`]s. Out: [`Scores`], mean negative log-likelihood (nats) a token of the title; its
//! exponential is the perplexity of ORFT. The title stands directly behind `<answer>`: behind its categories it would say nothing of the
//! reason. All reasons of a prompt share its rows in one batch, and no tape is kept. Caller: the stage `score`.

use super::Group;
use crate::model::{Decoder, TrainBatch};
use crate::sft::{SftError, TextTokenizer};
use serde::{Deserialize, Serialize};
use taiji::prompt::{ANSWER_OPEN, THINK_CLOSE, answer_text};

/// Of one prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scores {
    /// Without a reason; `None` where the prompt is too long for the scorer.
    pub without: Option<f64>,
    /// With each reason; `None` where the two are too long.
    pub with: Vec<Option<f64>>,
}

impl Scores {
    /// What a reason saves: nats a token.
    pub fn gain(&self, reason: usize) -> Option<f64> {
        Some(self.without? - self.with[reason]?)
    }
}

/// A frozen model that reads titles.
pub struct Scorer<'a> {
    /// Its weights.
    pub decoder: &'a Decoder,
    /// Its own: what it reads is text.
    pub tokenizer: &'a TextTokenizer,
    /// Titles are cut here, as in training.
    pub max_title_chars: usize,
    /// Most tokens of one batch; one prompt with its reasons is never split.
    pub batch_tokens: usize,
}

/// Continuations of one prompt: without a reason first, then with each; those too long are left out.
struct Tokens {
    prompt: Vec<u32>,
    /// Tokens, and how many of them stand before the title; `None` = too long.
    continuations: Vec<Option<(Vec<u32>, usize)>>,
}

impl Tokens {
    fn len(&self) -> usize {
        self.prompt.len() + self.continuations.iter().flatten().map(|(tokens, _)| tokens.len()).sum::<usize>()
    }
}

impl Scorer<'_> {
    /// Scores prompts in order; `progress` hears how many are done.
    pub fn score(&self, groups: &[Group], progress: &mut dyn FnMut(usize)) -> Result<Vec<Scores>, SftError> {
        let mut scores = Vec::with_capacity(groups.len());
        let mut waiting: Vec<Tokens> = Vec::new();
        for group in groups {
            let tokens = self.tokens(group)?;
            if !waiting.is_empty() && waiting.iter().map(Tokens::len).sum::<usize>() + tokens.len() > self.batch_tokens
            {
                scores.extend(self.batch(&waiting)?);
                waiting.clear();
                progress(scores.len());
            }
            waiting.push(tokens);
        }
        if !waiting.is_empty() {
            scores.extend(self.batch(&waiting)?);
            progress(scores.len());
        }
        Ok(scores)
    }

    fn tokens(&self, group: &Group) -> Result<Tokens, SftError> {
        let title = self.tokenizer.encode(&answer_text(&[], &group.title, self.max_title_chars))?;
        let prompt = self.tokenizer.encode(&group.prompt)?;
        let longest = self.decoder.config().max_position_embeddings;
        let without = std::iter::once("");
        let texts = without.chain(group.reasons.iter().map(String::as_str));
        let continuation = |reason: &str| -> Result<_, SftError> {
            let mut tokens = self.tokenizer.encode(&format!("{reason}{THINK_CLOSE}{ANSWER_OPEN}"))?;
            let before = tokens.len();
            tokens.extend(&title);
            let fits = !title.is_empty() && prompt.len() + tokens.len() <= longest;
            Ok(fits.then_some((tokens, before)))
        };
        Ok(Tokens { continuations: texts.map(continuation).collect::<Result<_, _>>()?, prompt })
    }

    fn batch(&self, groups: &[Tokens]) -> Result<Vec<Scores>, SftError> {
        let mut batch = TrainBatch::default();
        let mut segments = Vec::new();
        for group in groups {
            let fitting: Vec<&(Vec<u32>, usize)> = group.continuations.iter().flatten().collect();
            if fitting.is_empty() {
                segments.push(0..0);
                continue;
            }
            let own = batch.push_group(&group.prompt, fitting.iter().map(|(tokens, _)| tokens.as_slice()), 0.0)?;
            for (segment, (_, before)) in own.clone().zip(fitting) {
                let start = batch.input.places(segment).start;
                batch.weights[start..start + before].fill(0.0);
            }
            segments.push(own);
        }
        if batch.input.tokens.is_empty() {
            return Ok(groups.iter().map(|group| scores(group, std::iter::empty())).collect());
        }
        let likelihoods = self.decoder.log_likelihoods(&batch)?;
        let rows = batch.row_ranges();
        let mean = |segment: usize| {
            let own = &likelihoods[rows[segment].clone()];
            -own.iter().sum::<f64>() / own.len() as f64
        };
        Ok(groups.iter().zip(segments).map(|(group, own)| scores(group, own.map(mean))).collect())
    }
}

/// Puts what was computed in its places.
fn scores(group: &Tokens, mut computed: impl Iterator<Item = f64>) -> Scores {
    let mut all = group.continuations.iter().map(|one| one.as_ref().and_then(|_| computed.next()));
    Scores { without: all.next().flatten(), with: all.collect() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::model::DecoderConfig;
    use crate::sft::SftExample;
    use crate::sft::packing::{assemble, tokenise};

    fn group(prompt: &str, reasons: &[&str]) -> Group {
        Group {
            user_id: "u".into(),
            prompt: format!("{prompt}<think>"),
            categories: vec!["A".into()],
            title: "red tent for two".into(),
            teacher: "rule".into(),
            reasons: reasons.iter().map(|reason| reason.to_string()).collect(),
        }
    }

    /// Judged by the plain way: each text alone, every token's log-likelihood, the title's picked out.
    #[test]
    fn shared_prompts_score_as_texts_of_their_own_and_what_is_too_long_has_no_score() {
        let groups = [
            group("short", &["because it rains", "they like tents a lot"]),
            group("a longer prompt with words", &[]),
            group("another", &["x"]),
            group(&"far too long ".repeat(200), &["x"]),
        ];
        let texts = groups.iter().flat_map(|group| [group.prompt.as_str(), group.title.as_str()]);
        let tokenizer = TextTokenizer::train(texts, 280, &[]).unwrap();
        let config = DecoderConfig {
            max_position_embeddings: 160,
            ..DecoderConfig::small(tokenizer.vocab_size(), 32, 2, 2, 1, 48)
        };
        let decoder = Decoder::random(&config, 3).unwrap();
        let score = |batch_tokens: usize| {
            let scorer = Scorer { decoder: &decoder, tokenizer: &tokenizer, max_title_chars: 40, batch_tokens };
            scorer.score(&groups, &mut |_| {}).unwrap()
        };
        let together = score(4096);
        assert_eq!(together[3], Scores { without: None, with: vec![None] });
        assert_eq!((together[0].with.len(), together[1].with.len()), (2, 0));
        let alone = |prompt: &str, reason: &str| {
            let completion = format!("{reason}</think><answer>red tent for two");
            let example = SftExample { prompt: prompt.to_string(), completion };
            let (examples, _) = tokenise(&tokenizer, &[example], 160, None).unwrap();
            let all = decoder.log_likelihoods(&assemble(&examples, &[0], 0.0)).unwrap();
            let title = tokenizer.encode("red tent for two").unwrap().len();
            -all[all.len() - title..].iter().sum::<f64>() / title as f64
        };
        for (batch, scores) in [(4096, together), (64, score(64))] {
            for (group, scores) in groups[..3].iter().zip(scores) {
                let reasons = std::iter::once("").chain(group.reasons.iter().map(String::as_str));
                for (reason, found) in reasons.zip(std::iter::once(scores.without).chain(scores.with)) {
                    let expected = alone(&group.prompt, reason);
                    assert!((found.unwrap() - expected).abs() < 1e-5, "{batch}: {found:?} {expected}");
                }
            }
        }
    }
}
