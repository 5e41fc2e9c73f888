//! Is a written reason true? Its evidence must be, word for word, that of a cause which held, and its path must follow from it.
//!
//! In: text, the reasons of the purchase (the true one first, then the other causes that held). Out: [`Checked`].
//! Callers: experiments that count true evidence; it needs no model.

use super::Reason;
use super::cause::THEREFORE;
use serde::{Deserialize, Serialize};

/// What a written reason is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Checked {
    /// The evidence is that of a cause which held; chance is true only where it was chance.
    pub evidence: bool,
    /// It is the cause that decided.
    pub decides: bool,
    /// The path is what follows from the evidence. Anything follows from chance, nothing from evidence that is not true.
    pub follows: bool,
    /// The path is that of what was bought.
    pub arrives: bool,
}

/// Checks a text against the causes that held; spaces do not matter. Where it ends without a conclusion, `answer` is what it concluded.
pub fn check(text: &str, answer: &[String], reasons: &[Reason]) -> Checked {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let concluded = answer.join(" > ");
    let (evidence, path) = text.split_once(THEREFORE).unwrap_or((&text, &concluded));
    let (evidence, path) = (evidence.trim(), path.trim().trim_end_matches('.').trim());
    let held = reasons.iter().enumerate().find_map(|(place, reason)| match reason {
        Reason::Decides { domain, cause, path } if cause.evidence(domain) == evidence => Some((place, cause, path)),
        _ => None,
    });
    let bought = reasons.first().and_then(|reason| match reason {
        Reason::Decides { path, .. } => Some(path.join(" > ")),
        _ => None,
    });
    let arrives = bought.is_some_and(|bought| bought == path);
    let Some((place, cause, own)) = held else { return Checked { arrives, ..Checked::default() } };
    let follows = if cause.name().is_none() { !path.is_empty() } else { path == own.join(" > ") };
    Checked { evidence: true, decides: place == 0, follows, arrives }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::super::{Blame, Cause, Planted, RuleTeacher, WrongPath, true_reason, wrong_reason};
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    fn reason(cause: Cause, leaf: &str) -> Reason {
        let path = ["Outdoor", "Camping", leaf].map(str::to_string).to_vec();
        Reason::Decides { domain: "live".into(), cause, path }
    }

    fn reasons() -> Vec<Reason> {
        let [tents, bags] = ["Tents", "Sleeping-bags"].map(str::to_string);
        vec![
            reason(Cause::Set { bought: tents, also: None, missing: bags }, "Sleeping-bags"),
            reason(Cause::Need { stage: "student".into(), need: "trip".into() }, "Camp-stoves"),
            reason(Cause::Refill { bought: "Energy-gels".into() }, "Energy-gels"),
        ]
    }

    #[test]
    fn a_true_reason_passes_and_what_is_changed_in_it_does_not() {
        let text = true_reason(&reasons()).unwrap();
        assert_eq!(
            text,
            "on live the set decides . Tents bought and Sleeping-bags not yet . so next comes Outdoor > Camping > Sleeping-bags ."
        );
        let all = Checked { evidence: true, decides: true, follows: true, arrives: true };
        assert_eq!(check(&text, &[], &reasons()), all);
        assert_eq!(check(&text.replace(" .", "  .\n"), &[], &reasons()), all);
        // Evidence alone, and the answer behind it.
        let evidence = text.split(" so next").next().unwrap();
        let answer = ["Outdoor", "Camping", "Sleeping-bags"].map(str::to_string);
        assert_eq!(check(evidence, &answer, &reasons()), all);
        assert!(!check(evidence, &[], &reasons()).follows);
        let swapped = text.replace("Tents bought", "Mugs bought");
        assert_eq!(check(&swapped, &[], &reasons()), Checked { arrives: true, ..Checked::default() });
        assert!(!check(&text.replace("on live", "on video"), &[], &reasons()).evidence);
        let astray = text.replace("Camping > Sleeping-bags", "Camping > Tents");
        assert_eq!(
            check(&astray, &[], &reasons()),
            Checked { evidence: true, decides: true, follows: false, arrives: false }
        );
        assert_eq!(check("so so", &[], &reasons()), Checked::default());
        assert!(!check("nothing here decides . so next comes A > B > C .", &[], &reasons()).evidence);
    }

    #[test]
    fn a_wrong_reason_is_true_evidence_of_another_cause() {
        let mut random = ChaCha8Rng::seed_from_u64(3);
        let (mut blamed, mut text) = ([0; 2], String::new());
        for _ in 0..200 {
            let lesson = wrong_reason(&reasons(), Blame::Uniform, WrongPath::Right, &mut random).unwrap();
            assert_eq!(lesson.planted, Planted::WrongRight);
            text = lesson.text;
            let checked = check(&text, &[], &reasons());
            assert_eq!(checked, Checked { evidence: true, decides: false, follows: false, arrives: true });
            blamed[usize::from(text.contains("refill"))] += 1;
        }
        assert!(blamed[0] > 70 && blamed[1] > 70, "{blamed:?} {text}");
        let own = wrong_reason(&reasons(), Blame::Search, WrongPath::Own, &mut random).unwrap().text;
        assert!(own.contains("a student searched for trip") && own.contains("Camp-stoves"), "{own}");
        let checked = check(&own, &[], &reasons());
        assert_eq!(checked, Checked { evidence: true, decides: false, follows: true, arrives: false });
        let no_search = [reasons()[0].clone(), reasons()[2].clone()];
        assert_eq!(wrong_reason(&no_search, Blame::Search, WrongPath::Own, &mut random), None);
        assert_eq!(true_reason(&[Reason::New]), None);
    }

    #[test]
    fn the_teacher_errs_at_its_rate_and_only_where_it_can() {
        let mut random = ChaCha8Rng::seed_from_u64(4);
        let teacher = RuleTeacher { wrong: 0.3, blame: Blame::Search, path: WrongPath::Either, told: true };
        let mut share = |teacher: RuleTeacher, planted: Planted| {
            let lessons = (0..4000).map(|_| teacher.write(&reasons(), &mut random).unwrap());
            lessons.filter(|lesson| lesson.planted == planted).count() as f64 / 4000.0
        };
        for (planted, expected) in [(Planted::True, 0.7), (Planted::WrongRight, 0.15), (Planted::WrongOwn, 0.15)] {
            let found = share(teacher, planted);
            assert!((found - expected).abs() < 0.03, "{planted:?} {found}");
        }
        // Not told: the search in 30 %, else one of the three that hold.
        let guesses = share(RuleTeacher { told: false, ..teacher }, Planted::True);
        assert!((guesses - 0.7 / 3.0).abs() < 0.03, "{guesses}");
        let sure = RuleTeacher { wrong: 1.0, ..teacher };
        assert_eq!(sure.write(&reasons()[..1], &mut random).unwrap().planted, Planted::True);
        assert_eq!(sure.write(&[Reason::New], &mut random), None);
    }
}
