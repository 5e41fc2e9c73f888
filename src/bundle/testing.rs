//! Bundles made in memory, for tests of those who use one.
#![allow(clippy::unwrap_used)]

use super::{Bundle, Inference, Lineage, Manifest, Models};
use crate::catalogue::{Catalogue, CatalogueRow};
use crate::encode::{Encoder, NullEncoder};
use crate::event::{Item, ItemState};
use crate::llm::LlmEngine;
use crate::prompt::PromptSchema;
use crate::quantize::PqCodebook;
use crate::retrieve::{FaissUserIndex, UserSnapshot};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Dimensions of the canned encoder's vectors.
pub(crate) const DIM: usize = 16;
/// A model without a step for so long is stalled.
pub(crate) const STALL: Duration = Duration::from_secs(30);

/// An LLM over the canned encoder and an empty index.
pub(crate) fn models(llm: Arc<dyn LlmEngine>) -> Inference {
    let (encoder, index): (Arc<dyn Encoder>, _) = (Arc::new(NullEncoder::new(DIM)), FaissUserIndex::empty(DIM));
    let (index, snapshot) = (Arc::new(index.unwrap()), UserSnapshot::default());
    Inference { llm, encoder, index, snapshot, served: None, canned: false, stall: STALL }
}

/// A bundle of this epoch that writes into this space: a real codebook, 100 items that five users each know.
pub(crate) fn bundle(epoch: u64, space: &str, inference: Option<Inference>) -> Arc<Bundle> {
    let centroids = (0..256 * DIM).map(|place| ((place * 37 % 101) as f32 - 50.0) / 100.0).collect();
    let codebook = PqCodebook::new(8, 256, DIM, centroids, None).unwrap();
    let row = |item: usize| CatalogueRow {
        item: Arc::new(Item {
            id: format!("i{item}"),
            title: format!("Thing number {item}"),
            categories: vec!["Things".into()],
            brand: None,
            price: None,
            state: ItemState::Active,
        }),
        distinct_users: 5,
    };
    let models = Models {
        llm: format!("llm of epoch {epoch}"),
        encoder: "null".into(),
        codebook: codebook.content_hash(),
        prompt_schema: "small-1".into(),
    };
    let manifest = Manifest {
        format_version: Manifest::current_format(),
        name: "test".into(),
        epoch,
        space: space.into(),
        generation: 1,
        models,
        lineage: Lineage { recipe: String::new(), data: String::new(), parents: vec![], licences: vec![] },
        external: BTreeMap::new(),
        files: BTreeMap::new(),
    };
    Arc::new(Bundle {
        manifest,
        schema: PromptSchema::small(),
        codebook,
        catalogue: Arc::new(Catalogue::from_rows((0..100).map(row).collect())),
        inference: inference.map(Arc::new),
    })
}
