//! The pipeline over an LLM that repeats its prompt's length: order, grounding, codes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use crate::catalogue::CatalogueRow;
use crate::encode::NullEncoder;
use crate::event::{Item, ItemState};
use crate::llm::NullLlm;
use crate::prompt::PromptItem;
use std::time::Duration;

const DIM: usize = 8;

fn codebook() -> PqCodebook {
    let centroids = (0..4 * DIM).map(|place| (place as f32 * 0.37).sin()).collect();
    PqCodebook::new(2, 4, DIM, centroids, None).unwrap()
}

fn input(title: &str) -> PromptInput {
    let item = PromptItem { title: title.into(), action: "click".into(), ..PromptItem::default() };
    PromptInput { engagements: vec![item], ..PromptInput::default() }
}

#[tokio::test]
async fn audit_15_many_inputs_are_answered_in_order_and_as_if_each_were_alone() {
    let item = Item {
        id: "1".into(),
        title: "Oak guitar stand".into(),
        categories: vec!["Music".into()],
        brand: None,
        price: None,
        state: ItemState::Active,
    };
    let catalogue = Catalogue::from_rows(vec![CatalogueRow { item: Arc::new(item), distinct_users: 0 }]);
    let (schema, codebook, llm) = (PromptSchema::small(), codebook(), NullLlm::new(Duration::ZERO, 4));
    let encoder: Arc<dyn Encoder> = Arc::new(NullEncoder::new(DIM));
    let (schema, llm) = (&schema, &llm);
    let answering =
        Answering { schema, mode: schema.mode(), llm, encoder: &encoder, codebook: &codebook, catalogue: &catalogue };
    let inputs: Vec<PromptInput> =
        ["a much longer title than the others have", "b", "middle sized c"].map(input).into();
    let together = answering.answer(&inputs).await.unwrap();
    assert_eq!(together.len(), 3);
    for (input, answer) in inputs.iter().zip(&together) {
        assert_eq!(answering.answer(std::slice::from_ref(input)).await.unwrap(), std::slice::from_ref(answer));
        assert_eq!(answer.codes, codebook.encode(&answer.vector).unwrap());
        assert_eq!(answer.grounding, catalogue.ground(&answer.parsed.answer));
    }
    assert!(together[0] != together[1], "the canned answer depends on the prompt");

    let unreasoned = Answering { mode: PromptMode::NoThink, ..answering }.answer(&inputs).await.unwrap();
    for (at_once, reasoned) in unreasoned.iter().zip(&together) {
        assert!(at_once.parsed.format_ok && reasoned.parsed.format_ok);
        assert!(at_once.parsed.reasoning.is_empty() && !reasoned.parsed.reasoning.is_empty());
    }
}
