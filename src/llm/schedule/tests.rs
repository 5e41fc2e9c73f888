//! Whatever comes, goes and waits: every request writes what it would write alone.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tokio::sync::oneshot;

use super::toy::{ToyBackend, VOCABULARY, logits_behind, next_token};
use super::*;
use crate::llm::queue::QueueLimits;
use crate::llm::sample::{Sampler, log_probability};
use crate::llm::sequence::{Reply, Written};
use crate::llm::{Finish, Priority, Sampling, Scored};
use crate::telemetry::Metrics;

const STOP: u32 = 7;

/// One request of a random schedule.
#[derive(Debug, Clone)]
struct Ask {
    prompt: Vec<u32>,
    budget: usize,
    /// Turn before which it comes.
    arrives: usize,
    /// Turns after which its caller goes away.
    leaves: Option<usize>,
    kind: Kind,
    priority: Priority,
}

#[derive(Debug, Clone)]
enum Kind {
    Greedy,
    Sampled(u64),
    Score,
}

enum Waiting {
    Written(oneshot::Receiver<Result<Written, LlmError>>),
    Scores(oneshot::Receiver<Result<Vec<Scored>, LlmError>>),
    Left,
}

fn schedule(rows: usize, slots: usize, chunk: usize, bucket: usize) -> Schedule<ToyBackend> {
    let options = ScheduleOptions { prefill_chunk: chunk, max_tokens: rows * slots, hidden: 8 };
    let measures = Arc::new(Measures::new(Arc::new(Metrics::new().unwrap())));
    Schedule::new(ToyBackend::new(rows, slots, bucket), options, measures)
}

fn queue() -> Queue {
    Queue::new(QueueLimits { jobs: 1000, tokens: 1 << 20 })
}

fn sampling(kind: &Kind) -> Sampling {
    match kind {
        Kind::Sampled(seed) => Sampling { temperature: 1.0, top_k: 6, top_p: 0.9, seed: *seed, ..Sampling::GREEDY },
        _ => Sampling::GREEDY,
    }
}

fn job(ask: &Ask) -> (Job, Waiting) {
    if let Kind::Score = ask.kind {
        let (reply, answer) = oneshot::channel();
        let from = ask.prompt.len().div_ceil(2);
        let task = Task::Score { from, scores: Vec::new(), reply: Some(reply) };
        return (Job::new(ask.prompt.clone(), task, ask.priority, None), Waiting::Scores(answer));
    }
    let (reply, answer) = oneshot::channel();
    let sampler = Sampler::new(sampling(&ask.kind), &ask.prompt).unwrap();
    let task = Task::generate(ask.budget, sampler, vec![STOP], None, true, Reply::Whole(reply));
    (Job::new(ask.prompt.clone(), task, ask.priority, None), Waiting::Written(answer))
}

/// What a request writes when nobody else is there, straight from the rule.
fn alone(ask: &Ask) -> (Vec<u32>, Finish) {
    let mut sampler = Sampler::new(sampling(&ask.kind), &ask.prompt).unwrap();
    let mut text = ask.prompt.clone();
    for _ in 0..ask.budget {
        let token = sampler.choose(&logits_behind(&text)).unwrap();
        text.push(token);
        if token == STOP {
            return (text[ask.prompt.len()..].to_vec(), Finish::Stop);
        }
    }
    (text[ask.prompt.len()..].to_vec(), Finish::Length)
}

fn scores_alone(tokens: &[u32]) -> Vec<f64> {
    let from = tokens.len().div_ceil(2);
    (from..tokens.len())
        .map(|index| log_probability(&logits_behind(&tokens[..index]), tokens[index]).unwrap())
        .collect()
}

/// Runs a schedule to its end and compares every answer.
fn run(asks: &[Ask], rows: usize, chunk: usize, bucket: usize, prefix: usize) {
    let queue = queue();
    let mut schedule = schedule(rows, 96, chunk, bucket);
    schedule.keep_prefix(shared_start(prefix)).unwrap();
    let mut waiting: Vec<Option<Waiting>> = asks.iter().map(|_| None).collect();
    let last = asks.iter().map(|ask| ask.arrives).max().unwrap_or(0);
    for turn in 0.. {
        for (ask, slot) in asks.iter().zip(&mut waiting) {
            if ask.arrives == turn {
                let (made, answer) = job(ask);
                queue.push(made).unwrap();
                *slot = Some(answer);
            }
            if ask.leaves.is_some_and(|after| ask.arrives + after == turn) {
                *slot = Some(Waiting::Left);
            }
        }
        schedule.turn(&queue);
        assert!(schedule.under_way().count() <= rows);
        if turn > last && schedule.is_idle() && queue.depth().0 == 0 {
            break;
        }
        assert!(turn < 20_000, "it does not end");
    }
    for (ask, answer) in asks.iter().zip(waiting) {
        match answer.unwrap() {
            Waiting::Written(mut answer) => {
                let written = answer.try_recv().unwrap().unwrap();
                assert_eq!((written.tokens, written.finish), alone(ask), "{ask:?}");
            }
            Waiting::Scores(mut answer) => {
                let (found, wanted) = (answer.try_recv().unwrap().unwrap(), scores_alone(&ask.prompt));
                assert_eq!(found.len(), wanted.len());
                assert!(found.iter().zip(&wanted).all(|(one, other)| (one.logprob - other).abs() < 1e-9));
            }
            Waiting::Left => {}
        }
    }
}

/// What prompts of these tests may begin with.
fn shared_start(length: usize) -> Vec<u32> {
    (0..length as u32).map(|index| index * 5 % VOCABULARY as u32).collect()
}

fn ask() -> impl Strategy<Value = Ask> {
    let kind = prop_oneof![3 => Just(Kind::Greedy), 2 => any::<u64>().prop_map(Kind::Sampled), 1 => Just(Kind::Score)];
    let priority = prop::sample::select(Priority::ALL.to_vec());
    let prompt = (0_usize..40, prop::collection::vec(0_u32..VOCABULARY as u32, 2..40));
    (prompt, 1_usize..16, 0_usize..24, prop::option::weighted(0.2, 0_usize..10), kind, priority).prop_map(
        |((shared, own), budget, arrives, leaves, kind, priority)| {
            let prompt = [shared_start(shared), own].concat();
            Ask { prompt, budget, arrives, leaves, kind, priority }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_request_writes_what_it_would_write_alone(
        asks in prop::collection::vec(ask(), 1..20), rows in 1_usize..7, chunk in 16_usize..48, prefix in 0_usize..40,
    ) {
        run(&asks, rows, chunk, 1, prefix);
    }

    #[test]
    fn answers_to_one_prompt_are_what_each_would_be_alone(
        asks in prop::collection::vec(ask(), 1..5), copies in prop::collection::vec((0_usize..5, any::<u64>(), 0_usize..3), 1..14),
        rows in 1_usize..9, chunk in 32_usize..96,
    ) {
        let copy = |(of, seed, arrives): (usize, u64, usize)| {
            let like = &asks[of % asks.len()];
            Ask { prompt: like.prompt.clone(), arrives, leaves: None, kind: Kind::Sampled(seed), ..like.clone() }
        };
        let all: Vec<Ask> = asks.iter().cloned().chain(copies.into_iter().map(copy)).collect();
        run(&all, rows, chunk, 1, 0);
    }

    #[test]
    fn idle_rows_of_a_bucket_harm_nobody(
        asks in prop::collection::vec(ask(), 1..16), rows in 1_usize..9, bucket in 2_usize..5,
    ) {
        run(&asks, rows, 16, bucket, 20);
    }
}

fn greedy(prompt: Vec<u32>, budget: usize) -> Ask {
    Ask { prompt, budget, arrives: 0, leaves: None, kind: Kind::Greedy, priority: Priority::Background }
}

fn is_answered(answer: &mut Waiting) -> bool {
    match answer {
        Waiting::Written(receiver) => receiver.try_recv().is_ok(),
        _ => false,
    }
}

#[test]
fn decoding_goes_on_between_the_pieces_of_a_long_prompt() {
    let queue = queue();
    let mut schedule = schedule(3, 400, 16, 1);
    // A text that does not stop early.
    let short =
        (0..200).map(|seed| vec![seed % 16, seed / 16]).find(|prompt| alone(&greedy(prompt.clone(), 60)).0.len() == 60);
    let (made, mut short_answer) = match job(&greedy(short.unwrap(), 60)) {
        (made, Waiting::Written(answer)) => (made, answer),
        _ => unreachable!(),
    };
    queue.push(made).unwrap();
    schedule.turn(&queue);
    let long = greedy((0..300).map(|index| index % 16).collect(), 2);
    let (made, _long_answer) = job(&long);
    queue.push(made).unwrap();
    let mut turns = 0;
    while short_answer.try_recv().is_err() {
        schedule.turn(&queue);
        turns += 1;
        assert!(turns <= 60, "the short one waits for the long one");
    }
    // 300 tokens in pieces that shrink with the past: many turns, each with a token for the short one.
    assert!(schedule.staged.len() + schedule.decoding.len() <= 1);
}

#[test]
fn urgent_requests_overtake_background_ones() {
    let queue = queue();
    let mut schedule = schedule(1, 96, 16, 1);
    let mut answers = Vec::new();
    for (first, priority) in [(1, Priority::Background), (2, Priority::Background), (3, Priority::Synchronous)] {
        let (made, answer) = job(&Ask { priority, ..greedy(vec![first, 2], 1) });
        queue.push(made).unwrap();
        answers.push(answer);
    }
    schedule.turn(&queue);
    assert!(is_answered(&mut answers[2]), "the synchronous one goes first");
    schedule.turn(&queue);
    assert!(is_answered(&mut answers[0]) && !is_answered(&mut answers[1]));
}

#[test]
fn tokens_under_way_are_bounded() {
    let queue = queue();
    let mut schedule = schedule(8, 96, 16, 1);
    schedule.options.max_tokens = 40;
    let mut answers: Vec<Waiting> = Vec::new();
    for _ in 0..6 {
        let (made, answer) = job(&greedy(vec![1, 2, 3], 12));
        queue.push(made).unwrap();
        answers.push(answer);
    }
    schedule.turn(&queue);
    assert_eq!(schedule.under_way().count(), 2, "2 * 15 tokens fit into 40, 3 * 15 do not");
    while !schedule.is_idle() || queue.depth().0 > 0 {
        schedule.turn(&queue);
    }
    assert!(answers.iter_mut().all(is_answered));
}

#[test]
fn a_deadline_ends_waiting_and_running_requests() {
    let queue = queue();
    let mut schedule = schedule(1, 96, 16, 1);
    let deadline = Instant::now() + Duration::from_secs(3600);
    let make = |deadline: Option<Instant>| {
        let (reply, answer) = oneshot::channel();
        let sampler = Sampler::new(Sampling::GREEDY, &[]).unwrap();
        let task = Task::generate(80, sampler, Vec::new(), None, false, Reply::Whole(reply));
        queue.push(Job::new(vec![1, 2], task, Priority::Background, deadline)).unwrap();
        answer
    };
    let (mut running, mut waiting) = (make(Some(deadline)), make(Some(deadline)));
    schedule.turn(&queue);
    schedule.turn(&queue);
    schedule.drop_dead(deadline);
    assert_eq!(running.try_recv().unwrap(), Err(LlmError::Deadline { new_tokens: 3 }));
    schedule.sweep(&queue, deadline);
    assert_eq!(waiting.try_recv().unwrap(), Err(LlmError::Deadline { new_tokens: 0 }));
    assert!(schedule.is_idle());
}

#[test]
fn failures_stay_where_they_happen() {
    let queue = queue();
    let mut schedule = schedule(4, 96, 16, 1);
    // Token 14 fails a call, token 15 makes NaN; 13 would panic.
    schedule.backend.poison = Some(13);
    let clean = (0..13).find(|&first| alone(&greedy(vec![first, 3], 6)).0.iter().all(|&token| token < 13)).unwrap();
    let mut answers = Vec::new();
    for prompt in [vec![clean, 3], vec![2, 15], vec![14, 1, 1, 1, 1, 1]] {
        let (made, answer) = job(&greedy(prompt, 6));
        queue.push(made).unwrap();
        if let Waiting::Written(answer) = answer {
            answers.push(answer);
        }
    }
    while !schedule.is_idle() || queue.depth().0 > 0 {
        schedule.turn(&queue);
    }
    assert_eq!(answers[0].try_recv().unwrap().unwrap().tokens, alone(&greedy(vec![clean, 3], 6)).0);
    assert!(matches!(answers[1].try_recv().unwrap(), Err(LlmError::Run(message)) if message.contains("not finite")));
    assert!(matches!(answers[2].try_recv().unwrap(), Err(LlmError::Run(message)) if message == "on purpose"));
}

#[test]
fn the_prefix_is_read_once() {
    let queue = queue();
    let mut schedule = schedule(2, 96, 64, 1);
    schedule.keep_prefix(shared_start(30)).unwrap();
    let prompt = [shared_start(30), vec![3, 1]].concat();
    let (made, answer) = job(&greedy(prompt.clone(), 3));
    queue.push(made).unwrap();
    while !schedule.is_idle() || queue.depth().0 > 0 {
        schedule.turn(&queue);
    }
    let Waiting::Written(mut answer) = answer else { unreachable!() };
    let written = answer.try_recv().unwrap().unwrap();
    assert_eq!((written.cached_tokens, written.prompt_tokens), (30, 32));
    assert_eq!(written.tokens[0], next_token(&prompt));
    let metrics = schedule.measures.metrics();
    assert_eq!(metrics.llm_tokens.with_label_values(&["prompt"]).get(), 2);
    assert_eq!(metrics.llm_tokens.with_label_values(&["cached"]).get(), 30);
    assert_eq!(metrics.llm_prefix.with_label_values(&["hit"]).get(), 1);
}

#[test]
fn a_prompt_of_several_answers_is_read_once() {
    let queue = queue();
    let mut schedule = schedule(6, 96, 64, 1);
    let ask = |prompt: &[u32], seed| Ask { kind: Kind::Sampled(seed), ..greedy(prompt.to_vec(), 8) };
    let asks =
        [ask(&[1, 2, 3, 4], 1), ask(&[5, 6, 7], 2), ask(&[1, 2, 3, 4], 3), ask(&[1, 2, 3, 4], 4), ask(&[5, 6, 7], 5)];
    let answers: Vec<Waiting> = asks
        .iter()
        .map(|ask| {
            let (made, answer) = job(ask);
            queue.push(made).unwrap();
            answer
        })
        .collect();
    while !schedule.is_idle() || queue.depth().0 > 0 {
        schedule.turn(&queue);
    }
    let mut cached = Vec::new();
    for (ask, answer) in asks.iter().zip(answers) {
        let Waiting::Written(mut answer) = answer else { unreachable!() };
        let written = answer.try_recv().unwrap().unwrap();
        assert_eq!((written.tokens, written.finish), alone(ask));
        cached.push(written.cached_tokens);
    }
    assert_eq!(cached, [0, 0, 4, 4, 3]);
    let metrics = schedule.measures.metrics();
    assert_eq!(metrics.llm_tokens.with_label_values(&["prompt"]).get(), 7);
    assert_eq!(metrics.llm_tokens.with_label_values(&["cached"]).get(), 11);
}
