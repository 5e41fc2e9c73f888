//! The teacher of real data without a language model: today's writer of derived reasons, and at a set rate somebody else's evidence.
//!
//! In: an [`Origin`] whose reasons were read off its history, another one. Out: [`Lesson`]. Caller: the stage `reason`.

use super::{Lesson, Origin, Planted, reasoning};
use rand::Rng;

/// One wording of the reasons; in `wrong` of the cases with the evidence of `stranger`, which says nothing of this user, and still with the
/// path of what was bought.
pub fn derived_lesson(origin: &Origin, stranger: &Origin, wrong: f64, random: &mut impl Rng) -> Lesson {
    let is_wrong = random.random_bool(wrong.clamp(0.0, 1.0)) && stranger.reasons != origin.reasons;
    let reasons = if is_wrong { &stranger.reasons } else { &origin.reasons };
    let planted = if is_wrong { Planted::WrongRight } else { Planted::True };
    Lesson { text: reasoning(reasons, &origin.categories, random), planted }
}

#[cfg(test)]
mod tests {
    use super::super::Reason;
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use std::collections::BTreeSet;

    #[test]
    fn wordings_differ_and_wrong_ones_have_foreign_evidence_and_the_own_path() {
        let origin = |query: &str, leaf: &str| Origin {
            user_id: "u".into(),
            prompt: "p".into(),
            categories: vec!["Outdoor".into(), leaf.into()],
            title: "t".into(),
            reasons: vec![Reason::Search { query: query.into() }],
        };
        let (own, stranger) = (origin("headlamp", "Lamps"), origin("kettle", "Tents"));
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let lessons: Vec<Lesson> = (0..300).map(|_| derived_lesson(&own, &stranger, 0.3, &mut random)).collect();
        for lesson in &lessons {
            let is_true = lesson.planted == Planted::True;
            assert_eq!((lesson.text.contains("headlamp"), lesson.text.contains("kettle")), (is_true, !is_true));
            assert!(lesson.text.contains("Lamps") && !lesson.text.contains("Tents"), "{}", lesson.text);
        }
        let wrong = lessons.iter().filter(|lesson| lesson.planted != Planted::True).count();
        assert!((60..120).contains(&wrong), "{wrong}");
        assert!(lessons.iter().map(|lesson| &lesson.text).collect::<BTreeSet<_>>().len() > 10);
        assert_eq!(derived_lesson(&own, &own.clone(), 1.0, &mut random).planted, Planted::True);
    }
}
