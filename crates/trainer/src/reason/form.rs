//! A prompt with a reason → the text that is learned, in one of several forms.
//!
//! In: a [`Group`], one of its reasons, a [`Form`]. Out: prompt and completion. Caller: the stage `filter`; `answers` asks a trained model
//! in the same form.

use super::Group;
use serde::{Deserialize, Serialize};
use taiji::prompt::{PromptMode, THINK_CLOSE, answer_text, completion};

/// What a model is taught to write behind a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// Reason and answer.
    #[default]
    Reasoned,
    /// The answer at once: the thinking is closed in the prompt.
    Answer,
    /// The title at once: what a scorer of titles is warmed on.
    Title,
    /// Reason, then the title alone: what a scorer is warmed on that shall read reasons.
    ReasonedTitle,
    /// The reason's last sentence and the answer.
    Conclusion,
    /// The reason without its last sentence, and the answer.
    Evidence,
    /// Evidence of somebody else, the own conclusion, and the answer.
    Shuffled,
}

impl Form {
    /// Whether the model writes a reason itself.
    pub fn mode(self) -> PromptMode {
        match self {
            Form::Answer | Form::Title => PromptMode::NoThink,
            _ => PromptMode::Think,
        }
    }

    /// The prompt that a model of this form goes on from, of one rendered in the mode `think`.
    pub fn prompt(self, rendered: &str) -> String {
        match self.mode() {
            PromptMode::Think => rendered.to_string(),
            PromptMode::NoThink => format!("{rendered}{THINK_CLOSE}"),
        }
    }

    /// What it is to write. `stranger`: a reason of somebody else.
    pub fn completion(self, group: &Group, reason: &str, stranger: &str, max_title_chars: usize) -> String {
        let whole = answer_text(&group.categories, &group.title, max_title_chars);
        let title = answer_text(&[], &group.title, max_title_chars);
        let (evidence, conclusion) = parts(reason);
        let foreign = format!("{} {conclusion}", parts(stranger).0);
        let (written, answer) = match self {
            Form::Reasoned | Form::Answer => (reason, &whole),
            Form::ReasonedTitle | Form::Title => (reason, &title),
            Form::Conclusion => (conclusion, &whole),
            Form::Evidence => (evidence, &whole),
            Form::Shuffled => (foreign.trim(), &whole),
        };
        completion(written, answer, self.mode())
    }
}

/// Evidence and conclusion: all sentences but the last, and the last. One sentence alone is a conclusion.
pub fn parts(reason: &str) -> (&str, &str) {
    let reason = reason.trim();
    let body = reason.trim_end_matches(['.', ' ']);
    match body.rfind(". ") {
        Some(place) => (reason[..=place].trim(), reason[place + 1..].trim()),
        None => ("", reason),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use taiji::prompt::parse;

    #[test]
    fn each_form_teaches_its_part() {
        let group = Group {
            user_id: "u".into(),
            prompt: "p<think>".into(),
            categories: ["A", "B", "C"].map(str::to_string).to_vec(),
            title: "t u".into(),
            teacher: "rule".into(),
            reasons: vec![],
        };
        let reason = "on live the set decides . X bought . so next comes A > B > C .";
        let other = "It is late. They like Y. So next comes D in E.";
        let made = |form: Form| form.completion(&group, reason, other, 40);
        assert_eq!(made(Form::Reasoned), format!("{reason}</think><answer>A > B > C: t u</answer>"));
        assert_eq!(made(Form::Conclusion), "so next comes A > B > C .</think><answer>A > B > C: t u</answer>");
        assert_eq!(made(Form::Evidence), "on live the set decides . X bought .</think><answer>A > B > C: t u</answer>");
        assert_eq!(
            made(Form::Shuffled),
            "It is late. They like Y. so next comes A > B > C .</think><answer>A > B > C: t u</answer>"
        );
        assert_eq!(made(Form::ReasonedTitle), format!("{reason}</think><answer>t u</answer>"));
        assert_eq!(
            (made(Form::Answer).as_str(), made(Form::Title).as_str()),
            ("<answer>A > B > C: t u</answer>", "<answer>t u</answer>")
        );
        assert_eq!(
            (Form::Answer.prompt("p<think>"), Form::Shuffled.prompt("p<think>")),
            ("p<think></think>".into(), "p<think>".into())
        );
        for form in
            [Form::Reasoned, Form::Conclusion, Form::Evidence, Form::Shuffled, Form::ReasonedTitle, Form::Answer]
        {
            assert!(parse(&made(form), form.mode()).format_ok);
        }
        assert_eq!(parts("One thing."), ("", "One thing."));
    }
}
