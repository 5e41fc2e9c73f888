//! A whole page: what is in it, and that nothing out of data acts on its reader.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::fit::CurvePoint;
use crate::sft::samples::Sample;
use serde_json::json;

/// What somebody might call an item.
const EVIL: &str =
    "</pre><script>alert(1)</script><img src=x onerror='alert(2)'>\" onload=\"alert(3) <svg/onload=alert(4)>";

fn training(samples: Vec<Sample>) -> SftReport {
    let point = |step: u64| CurvePoint {
        step,
        epoch: Some(step as f64 / 100.0),
        train_loss: (step != 30).then_some(5.0 / step as f64),
        validation_loss: step.is_multiple_of(20).then_some(6.0 / step as f64),
        validation_accuracy: step.is_multiple_of(20).then_some(0.5),
        lr: 3e-3,
        gradient_norm: Some(1.0),
        num_tokens: step * 2000,
        tokens_per_s: 9000.0,
        skipped: 0,
    };
    SftReport {
        parameters: 1_050_752,
        trained_parameters: 1_050_752,
        vocab: 2048,
        examples: 12_951,
        left_out: 0,
        steps: 100,
        skipped: 0,
        stopped_early: false,
        tokens: 200_000,
        seconds: 71.0,
        tokens_per_s: 9000.0,
        validation_loss: Some(0.39),
        best_step: Some(100),
        curve: (1..=10).map(|tenth| point(tenth * 10)).collect(),
        samples,
    }
}

fn report() -> Report {
    let stage = |label: &str, parents: Vec<usize>, state| StageEntry {
        label: label.into(),
        kind: "sft".into(),
        hash: "0123456789abcdef".into(),
        seconds: (state != StageState::Missing).then_some(71.0),
        state,
        parents,
    };
    let sample = |text: &str| Sample {
        prompt: text.into(),
        wanted: "<answer>Music > Guitars</answer>".into(),
        before: String::new(),
        after: text.into(),
    };
    Report {
        name: EVIL.into(),
        facts: vec![("recipe".into(), EVIL.into())],
        failed: Some(EVIL.into()),
        stages: vec![
            stage(EVIL, vec![], StageState::Before),
            stage("sft", vec![0], StageState::Made),
            stage("judge", vec![0, 1], StageState::Missing),
        ],
        trainings: vec![(EVIL.into(), training(vec![sample(EVIL)]))],
        judgements: vec![(
            EVIL.into(),
            json!({ EVIL: EVIL, "users": 4000, "figures": [
                { "metric": EVIL, "model": { "estimate": 0.7412, "low": 0.72, "high": 0.76, "level": 0.95, "p": 0.0, "method": "users" } },
            ]}),
        )],
    }
}

#[test]
fn text_out_of_data_stays_text() {
    let page = page(&report());
    let (head, body) = page.split_once("<body>").unwrap();
    assert!(head.contains("default-src 'none'"), "the page's own policy forbids scripts, too");
    assert!(page.matches("alert(1)").count() >= 8, "it is shown everywhere");
    // Every tag is one of ours, and none has a handler: each `<` of the data is escaped.
    let ours = [
        "main",
        "header",
        "h1",
        "h2",
        "h3",
        "h4",
        "p",
        "span",
        "b",
        "section",
        "div",
        "svg",
        "g",
        "path",
        "rect",
        "text",
        "title",
        "i",
        "figure",
        "figcaption",
        "line",
        "polyline",
        "circle",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "pre",
        "details",
        "summary",
        "code",
        "body",
        "html",
    ];
    for tag in body.split('<').skip(1) {
        let (inside, _) = tag.split_once('>').unwrap();
        let name = inside.trim_start_matches('/').split([' ', '/']).next().unwrap();
        assert!(ours.contains(&name), "<{inside}>");
        assert!(!inside.contains(" on") && !inside.contains("javascript:"), "<{inside}>");
    }
}

#[test]
fn nothing_outside_of_the_page_is_asked_for() {
    let page = page(&report());
    for outside in ["http://", "https://", "url(", "@import", " src=", "href", "<script", "<link", "<iframe"] {
        let escaped = escape_of_evil(&page);
        assert!(!escaped.contains(outside), "{outside}");
    }
    assert!(page.contains("prefers-color-scheme: dark"));
}

/// The page without what the data put there.
fn escape_of_evil(page: &str) -> String {
    page.replace(&html::escape(EVIL), "")
}

#[test]
fn what_a_run_was_is_there_in_order() {
    let page = page(&report());
    let order = ["Ended early", ">Stages<", ">Training<", ">Judged<", ">Samples<"].map(|part| page.find(part).unwrap());
    assert!(order.is_sorted(), "{order:?}");
    for part in
        ["loss, eval_loss", "learning_rate", "grad_norm", "tokens/s", "mean_token_accuracy", "num_tokens", "epoch"]
    {
        assert!(page.contains(part), "{part}");
    }
    for part in [
        "1 min 11 s",
        "0123456789abcdef",
        "made now",
        "not made",
        "1,050,752",
        "0.741",
        "0.72 to 0.76",
        "before training",
    ] {
        assert!(page.contains(part), "{part}");
    }
    assert!(!page.contains("NaN") && page.contains("&lt;answer&gt;Music &gt; Guitars"));
    let empty = super::page(&Report { name: "empty".into(), ..Report::default() });
    assert!(empty.contains("<h1>empty</h1>") && !empty.contains("<h2>"));
}

#[test]
fn many_arms_are_a_table_and_the_curves_of_some() {
    let mut many = report();
    many.stages =
        (0..40).map(|place| StageEntry { label: format!("arm-{place}/sft"), ..many.stages[1].clone() }).collect();
    many.stages.iter_mut().for_each(|stage| stage.parents.clear());
    many.trainings = (0..12).map(|place| (format!("arm-{place}/sft"), training(vec![]))).collect();
    let page = page(&many);
    assert!(page.contains("40 stages") && !page.contains("<rect"));
    assert!(page.contains("The curves of 4 more are not drawn") && page.contains("arm-11/sft"));
    assert!(page.contains("class=\"c7\"") && !page.contains(">Samples<"));
}

#[test]
fn an_experiments_page_shows_what_is_a_number_and_acts_on_nobody() {
    let row = |label: &str, range: [f64; 3], strong: bool| IntervalRow { label: label.into(), range, strong };
    let point = |label: &str, x: [f64; 3]| FrontPoint { label: label.into(), x, y: [0.1, 0.2, 0.3] };
    let page = experiment_page(&ExperimentReport {
        name: EVIL.into(),
        question: EVIL.into(),
        facts: vec![("rows".into(), EVIL.into())],
        contrasts: vec![(
            EVIL.into(),
            vec![row(EVIL, [-0.1, 0.2, 0.5], true), row("gone", [0.0, f64::NAN, 1.0], false)],
        )],
        decided: vec![[EVIL, "l3", "+0.2", "shown"].map(str::to_string)],
        reference: EVIL.into(),
        beside: vec![("l3".into(), vec![row("one", [0.0, 0.0, 0.0], false)])],
        arms: Vec::new(),
        curves: vec![(
            EVIL.into(),
            EVIL.into(),
            vec![Series { name: EVIL.into(), colour: 0, seldom: false, points: vec![(0.0, 1.0), (25.0, 2.0)] }],
        )],
        fronts: vec![(
            EVIL.into(),
            [EVIL.into(), "y".into()],
            vec![point(EVIL, [0.0, 0.5, 1.0]), point("b", [f64::NAN; 3])],
        )],
    });
    assert!(!page.contains("<script") && !page.contains("<img") && !page.contains("onload=\"alert"), "{page}");
    assert!(page.contains("default-src 'none'") && !page.contains("NaN"));
    assert_eq!(page.matches("class=\"dot ").count(), 2, "the row that is no number is left out");
    assert_eq!((page.matches("<polyline").count(), page.matches("r=\"9\"").count()), (1, 1));
    assert!(!page.contains("<h2>Arms</h2>"), "what has nothing in it is left out");
}
