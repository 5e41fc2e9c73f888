//! A page about an experiment: what is claimed and what was found, each arm beside the first, figures along an axis, fronts.

use super::chart::{Series, chart_over};
use super::front::{FrontPoint, front};
use super::html::escape;
use super::interval_chart::{IntervalRow, interval_chart};
use super::page::document;

/// What is told of an experiment.
#[derive(Debug, Clone, Default)]
pub struct ExperimentReport {
    /// Of the declaration.
    pub name: String,
    /// What is asked.
    pub question: String,
    /// Beneath it: what, and its value.
    pub facts: Vec<(String, String)>,
    /// By metric, declared contrasts.
    pub contrasts: Vec<(String, Vec<IntervalRow>)>,
    /// A line a contrast: its name, its figures, what is decided.
    pub decided: Vec<[String; 4]>,
    /// The arm that the others are beside.
    pub reference: String,
    /// By metric, arm − reference, paired.
    pub beside: Vec<(String, Vec<IntervalRow>)>,
    /// By metric, arms' own figures.
    pub arms: Vec<(String, Vec<IntervalRow>)>,
    /// Title, axis, lines.
    pub curves: Vec<(String, String, Vec<Series>)>,
    /// Title, metrics, arms.
    pub fronts: Vec<(String, [String; 2], Vec<FrontPoint>)>,
}

/// The whole page.
pub fn experiment_page(report: &ExperimentReport) -> String {
    let fact = |(what, value): &(String, String)| format!("<span>{} <b>{}</b></span>", escape(what), escape(value));
    let facts: String = report.facts.iter().map(fact).collect();
    let head = format!(
        "<h1>{}</h1>\n<p>{}</p>\n<p class=\"facts\">{facts}</p>",
        escape(&report.name),
        escape(&report.question)
    );
    let curves: String = report.curves.iter().map(|(title, axis, series)| chart_over(title, axis, series)).collect();
    let fronts: String =
        report.fronts.iter().map(|(title, names, points)| front(title, [&names[0], &names[1]], points)).collect();
    let reference = format!("Each arm less {}", report.reference);
    let parts = [
        section("Declared contrasts", &(intervals(&report.contrasts, Some(0.0)) + &table(&report.decided))),
        section("Along an axis", &wrapped(&curves)),
        section("Fronts", &fronts),
        section(&reference, &intervals(&report.beside, Some(0.0))),
        section("Arms", &intervals(&report.arms, None)),
    ];
    document(&format!("{}: an experiment", escape(&report.name)), &head, &parts.concat())
}

fn wrapped(charts: &str) -> String {
    if charts.is_empty() { String::new() } else { format!("<div class=\"charts\">{charts}</div>") }
}

fn section(title: &str, inside: &str) -> String {
    match inside.is_empty() {
        true => String::new(),
        false => format!("<section>\n<h2>{}</h2>\n{inside}\n</section>\n", escape(title)),
    }
}

fn intervals(by_metric: &[(String, Vec<IntervalRow>)], line: Option<f64>) -> String {
    by_metric.iter().map(|(metric, rows)| interval_chart(metric, rows, line)).collect()
}

fn table(decided: &[[String; 4]]) -> String {
    if decided.is_empty() {
        return String::new();
    }
    let heads = ["contrast", "metric", "estimate (95 %)", ""];
    let heads: String = heads.iter().map(|head| format!("<th scope=\"col\">{head}</th>")).collect();
    let row = |cells: &[String; 4]| {
        let cells: String = cells.iter().map(|cell| format!("<td>{}</td>", escape(cell))).collect();
        format!("<tr>{cells}</tr>")
    };
    let rows: String = decided.iter().map(row).collect();
    format!(
        "<div class=\"card\"><div class=\"scroll\"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div></div>"
    )
}
