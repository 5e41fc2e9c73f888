//! The page: stages first, then curves, then what was judged, then samples.

use super::chart::{COLOURS, Series, chart};
use super::figures::figures;
use super::html::{count, duration, escape, number};
use super::stage_graph::stage_graph;
use super::style::STYLE;
use super::{Report, StageEntry, StageState};
use crate::fit::CurvePoint;
use crate::sft::SftReport;
use crate::sft::samples::Sample;
use serde_json::Value;

/// More stages than this are listed and not drawn.
const MOST_DRAWN: usize = 24;
/// Of more trainings than there are colours the curves are drawn of these.
const MOST_CURVES: usize = COLOURS;
/// More judgements than this are folded.
const MOST_OPEN: usize = 3;

/// The whole page.
pub fn page(report: &Report) -> String {
    let title = escape(&report.name);
    let parts = [
        stages(&report.stages),
        trainings(&report.trainings),
        judgements(&report.judgements),
        samples(&report.trainings),
    ];
    document(&format!("{title}: a training run"), &format!("<h1>{title}</h1>\n{}", head(report)), &parts.concat())
}

/// A file around a page's head and its sections; `title` is escaped.
pub(super) fn document(title: &str, header: &str, sections: &str) -> String {
    // Scripts are forbidden by the page itself: whatever a text holds, it is a text.
    let policy = "default-src 'none'; style-src 'unsafe-inline'";
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
        <meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n\
        <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
        <style>{STYLE}</style>\n</head>\n<body>\n<main>\n<header>\n{header}\n</header>\n{sections}</main>\n</body>\n</html>\n"
    )
}

fn head(report: &Report) -> String {
    let fact = |(what, value): &(String, String)| format!("<span>{} <b>{}</b></span>", escape(what), escape(value));
    let facts: String = report.facts.iter().map(fact).collect();
    let failed = report.failed.as_ref().map(|why| format!("<p class=\"failed\">Ended early: {}</p>", escape(why)));
    format!("<p class=\"facts\">{facts}</p>{}", failed.unwrap_or_default())
}

fn stages(stages: &[StageEntry]) -> String {
    if stages.is_empty() {
        return String::new();
    }
    let total: f64 = stages.iter().filter_map(|stage| stage.seconds).sum();
    let state = |state: StageState, class: &str| format!("<span><i class=\"{class}\"></i>{}</span>", state.name());
    let states =
        state(StageState::Made, "made") + &state(StageState::Before, "before") + &state(StageState::Missing, "missing");
    let drawn = match stages.len() <= MOST_DRAWN {
        true => format!(
            "<div class=\"card\">{}<p class=\"states\">{states}<span>{} in all stages</span></p></div>",
            stage_graph(stages),
            duration(total)
        ),
        false => format!(
            "<div class=\"card\"><p class=\"states\">{} stages, {} in all</p>{}</div>",
            stages.len(),
            duration(total),
            list(stages)
        ),
    };
    format!("<section>\n<h2>Stages</h2>\n{drawn}\n</section>\n")
}

fn list(stages: &[StageEntry]) -> String {
    let row = |stage: &StageEntry| {
        format!(
            "<tr><td>{}</td><td>{}</td><td><code>{}</code></td><td>{}</td><td>{}</td></tr>",
            escape(&stage.label),
            escape(&stage.kind),
            escape(&stage.hash),
            stage.seconds.map_or_else(|| "–".to_string(), duration),
            stage.state.name()
        )
    };
    let rows: String = stages.iter().map(row).collect();
    let heads: String =
        ["stage", "kind", "hash", "time", ""].iter().map(|head| format!("<th scope=\"col\">{head}</th>")).collect();
    format!("<div class=\"scroll\"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>")
}

/// A figure of a curve: title, and how it is read from an entry.
type Figure = (&'static str, fn(&CurvePoint) -> Option<f64>);

/// Drawn apart; the loss, which has two lines, comes before them.
const FIGURES: [Figure; 4] = [
    ("mean_token_accuracy (validation)", |point| point.validation_accuracy),
    ("learning_rate", |point| Some(point.lr)),
    ("grad_norm", |point| point.gradient_norm),
    ("tokens/s", |point| Some(point.tokens_per_s)),
];

fn trainings(trainings: &[(String, SftReport)]) -> String {
    if trainings.is_empty() {
        return String::new();
    }
    let mut html = "<section>\n<h2>Training</h2>\n".to_string();
    if let [(label, report)] = trainings {
        html.push_str(&format!("<h3>{}</h3>\n{}", escape(label), summary(report)));
    } else {
        html.push_str(&format!("<div class=\"card\">{}</div>", comparison(trainings)));
    }
    html.push_str("<div class=\"charts\">");
    let drawn = &trainings[..trainings.len().min(MOST_CURVES)];
    html.push_str(&loss_chart(drawn));
    for (title, figure) in FIGURES {
        let series = drawn.iter().enumerate().map(|(colour, (label, report))| Series {
            name: label.clone(),
            colour,
            seldom: title.starts_with("mean_token_accuracy"),
            points: points(report, figure),
        });
        html.push_str(&chart(title, &series.collect::<Vec<_>>()));
    }
    html.push_str("</div>\n");
    if trainings.len() > drawn.len() {
        let left = trainings.len() - drawn.len();
        html.push_str(&format!("<p class=\"empty\">The curves of {left} more are not drawn.</p>"));
    }
    html + "</section>\n"
}

fn points(report: &SftReport, figure: fn(&CurvePoint) -> Option<f64>) -> Vec<(f64, f64)> {
    report.curve.iter().filter_map(|point| Some((point.step as f64, figure(point)?))).collect()
}

/// Loss and validation loss. Of one training in two colours, of several in the colour of each.
fn loss_chart(trainings: &[(String, SftReport)]) -> String {
    let mut series = Vec::new();
    for (place, (label, report)) in trainings.iter().enumerate() {
        let alone = trainings.len() == 1;
        let name = |kind: &str| if alone { kind.to_string() } else { format!("{label} {kind}") };
        let (train, validation) = if alone { (0, 1) } else { (place, place) };
        let (loss, eval_loss) =
            (points(report, |point| point.train_loss), points(report, |point| point.validation_loss));
        series.push(Series { name: name("loss"), colour: train, seldom: false, points: loss });
        series.push(Series { name: name("eval_loss"), colour: validation, seldom: true, points: eval_loss });
    }
    chart("loss, eval_loss (nats per token)", &series)
}

fn summary(report: &SftReport) -> String {
    let last = |figure: fn(&CurvePoint) -> Option<f64>| report.curve.iter().rev().find_map(figure);
    let entries = [
        ("parameters", Some(count(report.parameters as u64))),
        (
            "of them trained",
            (report.trained_parameters != report.parameters).then(|| count(report.trained_parameters as u64)),
        ),
        ("examples", Some(count(report.examples as u64))),
        ("examples left out", (report.left_out > 0).then(|| count(report.left_out as u64))),
        ("steps", Some(count(report.steps))),
        ("steps skipped", (report.skipped > 0).then(|| count(report.skipped))),
        ("num_tokens", Some(count(report.tokens))),
        ("epoch", last(|point| point.epoch).map(number)),
        ("eval_loss", report.validation_loss.map(number)),
        ("eval_mean_token_accuracy", last(|point| point.validation_accuracy).map(number)),
        ("time", Some(duration(report.seconds))),
        ("tokens/s", Some(count(report.tokens_per_s as u64))),
    ];
    let shown = entries.into_iter().filter_map(|(name, value)| Some(format!("<div><b>{}</b>{name}</div>", value?)));
    format!("<div class=\"card summary\">{}</div>\n", shown.collect::<String>())
}

/// Several trainings, one row each.
fn comparison(trainings: &[(String, SftReport)]) -> String {
    let heads = ["stage", "parameters", "examples", "steps", "num_tokens", "eval_loss", "time", "tokens/s"];
    let heads: String = heads.iter().map(|head| format!("<th scope=\"col\">{head}</th>")).collect();
    let row = |(label, report): &(String, SftReport)| {
        let cells = [
            escape(label),
            count(report.parameters as u64),
            count(report.examples as u64),
            count(report.steps),
            count(report.tokens),
            report.validation_loss.map_or_else(|| "–".to_string(), number),
            duration(report.seconds),
            count(report.tokens_per_s as u64),
        ];
        format!("<tr>{}</tr>", cells.iter().map(|cell| format!("<td>{cell}</td>")).collect::<String>())
    };
    let rows: String = trainings.iter().map(row).collect();
    format!("<div class=\"scroll\"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>")
}

fn judgements(judgements: &[(String, Value)]) -> String {
    if judgements.is_empty() {
        return String::new();
    }
    let mut html = "<section>\n<h2>Judged</h2>\n".to_string();
    for (label, value) in judgements {
        let (label, figures) = (escape(label), figures(value));
        html.push_str(&match judgements.len() <= MOST_OPEN {
            true => format!("<h3>{label}</h3>\n<div class=\"card\">{figures}</div>\n"),
            false => format!("<details class=\"card\"><summary>{label}</summary>{figures}</details>\n"),
        });
    }
    html + "</section>\n"
}

fn samples(trainings: &[(String, SftReport)]) -> String {
    let shown: Vec<(&str, &Sample)> = trainings
        .iter()
        .flat_map(|(label, report)| report.samples.iter().map(move |sample| (label.as_str(), sample)))
        .collect();
    if shown.is_empty() {
        return String::new();
    }
    let mut html =
        "<section>\n<h2>Samples</h2>\n<p class=\"facts\">Greedy, of validation prompts, cut at 64 tokens.</p>\n"
            .to_string();
    for (place, (label, sample)) in shown.iter().enumerate() {
        let part = |title: &str, text: &str| {
            let text = match text.trim() {
                "" => "<p class=\"empty\">nothing</p>".to_string(),
                text => format!("<pre>{}</pre>", escape(text)),
            };
            format!("<div><h4>{title}</h4>{text}</div>")
        };
        html.push_str(&format!(
            "<h3>{} {}</h3>\n<div class=\"card\"><div class=\"pair\">{}{}{}</div><details><summary>the prompt</summary><pre>{}</pre></details></div>\n",
            escape(label),
            place + 1,
            part("before training", &sample.before),
            part("after training", &sample.after),
            part("wanted", &sample.wanted),
            escape(&sample.prompt)
        ));
    }
    html + "</section>\n"
}
