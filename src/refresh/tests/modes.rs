//! How the model is asked to answer: by due class, as far as the bundle can.

use super::*;
use crate::config::RefreshMode;
use crate::due::{CLASS_ROUTINE, CLASS_SYNC};
use crate::prompt::PromptMode;

fn bundle_of_modes(modes: &[PromptMode]) -> Arc<Bundle> {
    let mut bundle = Arc::into_inner(bundle(GatedLlm::new(true, Duration::ZERO))).unwrap();
    bundle.schema.modes = modes.to_vec();
    Arc::new(bundle)
}

/// Answers counted with and without reasoning.
fn answers(refresher: &Refresher) -> [u64; 2] {
    ["think", "no_think"].map(|mode| {
        let count = |grounded| refresher.metrics.answers.with_label_values(&[mode, "ok", grounded]).get();
        ["item", "category", "none"].map(count).iter().sum()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_class_is_answered_in_its_mode_and_reasoning_is_not_given_up() {
    let (folder, mut settings) = (tempfile::tempdir().unwrap(), eager());
    settings.refresh.mode.sync = RefreshMode::NoThink;
    let store = embedded(folder.path());
    let refresher = refresher(store.clone(), bundle_of_modes(&[PromptMode::Think, PromptMode::NoThink]), &settings);
    let take_in = async |items: &[usize]| take_in(store.as_ref(), SPACE, &settings, &[events("a", items)]).await;
    let refreshed = async |class: u8| refresher.refresh("a", class).await.unwrap();

    take_in(&[9]).await;
    assert!(matches!(refreshed(CLASS_ROUTINE).await, Refreshed::Written { .. }));
    assert_eq!(answers(&refresher), [1, 0]);
    assert!(matches!(refreshed(CLASS_SYNC).await, Refreshed::Skipped { .. }), "what is reasoned stays");
    assert_eq!(answers(&refresher), [1, 0]);

    take_in(&[10]).await;
    assert!(matches!(refreshed(CLASS_SYNC).await, Refreshed::Written { .. }));
    assert_eq!(answers(&refresher), [1, 1]);
    assert!(matches!(refreshed(CLASS_SYNC).await, Refreshed::Skipped { .. }));
    assert!(
        matches!(refreshed(CLASS_ROUTINE).await, Refreshed::Written { .. }),
        "reasoning is more than an answer at once"
    );
    assert_eq!(answers(&refresher), [2, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mode_that_the_bundle_lacks_is_its_first() {
    for (asked, has, expected) in [
        (RefreshMode::NoThink, PromptMode::Think, [1, 0]),
        (RefreshMode::Think, PromptMode::NoThink, [0, 1]),
        (RefreshMode::Bundle, PromptMode::NoThink, [0, 1]),
    ] {
        let (folder, mut settings) = (tempfile::tempdir().unwrap(), eager());
        settings.refresh.mode.sync = asked;
        let store = embedded(folder.path());
        let refresher = refresher(store.clone(), bundle_of_modes(&[has]), &settings);
        take_in(store.as_ref(), SPACE, &settings, &[events("a", &[9])]).await;
        assert!(matches!(refresher.refresh("a", CLASS_SYNC).await.unwrap(), Refreshed::Written { .. }));
        assert_eq!(answers(&refresher), expected, "{asked:?} of a bundle with {has:?}");
    }
}
