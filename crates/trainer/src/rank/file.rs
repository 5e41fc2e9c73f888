//! A trained ranker in a folder, and back.
//!
//! In: a model with its vocabulary. Out: `ranker.safetensors` (weights), `ranker.json` (vocabulary, and what of a point is looked at).
//! Called by `training`, `stages` and `simulate`.

use super::inputs::{Anchors, FeatureShape, ITEM_FIELDS, ItemFields, Vocabulary};
use super::mixer::MixerSettings;
use super::onepiece::OnePieceSettings;
use super::settings::Arch;
use super::{RankError, RankModel};
use crate::data::Dataset;
use crate::nn::tensor_file::write_json;
use crate::nn::{FileError, Module, TensorFile, tensor};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;

/// Name of the weights' file.
const WEIGHTS_FILE: &str = "ranker.safetensors";
/// Name of the vocabulary's file.
const VOCABULARY_FILE: &str = "ranker.json";

/// A ranker that can be asked about users of a dataset.
pub struct Ranker {
    /// Numbers of everything that has a name, items in the dataset's order.
    pub vocabulary: Vocabulary,
    /// The model.
    pub model: RankModel,
    /// Engagements and items of a cross-user sequence looked at.
    pub limits: (usize, usize),
    /// Items of the dataset that the ranker was not trained with: it knows nothing of them.
    pub unknown_items: usize,
}

/// Names in the order of their numbers, which begin with 1.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    width: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tokenmixer: Option<MixerSettings>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    onepiece: Option<OnePieceSettings>,
    /// Of OnePiece alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    anchors: Vec<Anchors>,
    history: usize,
    cross: usize,
    item_sizes: [usize; ITEM_FIELDS],
    items: Vec<(String, ItemFields)>,
    actions: Vec<String>,
    fields: Vec<String>,
    values: Vec<(usize, String)>,
    words: Vec<String>,
    domains: Vec<String>,
    features: FeatureShape,
}

/// Numbers by name.
fn numbered<K, M: FromIterator<(K, u32)>>(names: Vec<K>) -> M {
    names.into_iter().zip(1..).collect()
}

/// Writes both files. `limits` as in [`Ranker`].
pub(super) fn save(
    folder: &Path,
    model: &RankModel,
    vocabulary: &Vocabulary,
    arch: &Arch,
    limits: (usize, usize),
) -> Result<(), RankError> {
    let mut file = TensorFile::default();
    for parameter in model.parameters() {
        let (shape, values) = (parameter.var.dims().to_vec(), parameter.var.flatten_all()?.to_vec1()?);
        file.tensors.push((parameter.name, shape, values));
    }
    file.write(&folder.join(WEIGHTS_FILE))?;
    let mut words: Vec<(&String, &u32)> = vocabulary.words.iter().collect();
    words.sort_by_key(|(_, number)| **number);
    let (width, tokenmixer, onepiece) = match arch {
        Arch::Din { width } => (*width, None, None),
        Arch::Tokenmixer(settings) => (1.0, Some(settings.clone()), None),
        Arch::OnePiece(settings) => (1.0, None, Some(settings.clone())),
    };
    let written = Written {
        width,
        tokenmixer,
        anchors: if onepiece.is_some() { vocabulary.anchors.clone() } else { Vec::new() },
        onepiece,
        history: limits.0,
        cross: limits.1,
        item_sizes: vocabulary.item_sizes,
        items: vocabulary.item_ids.iter().cloned().zip(vocabulary.items.iter().copied()).collect(),
        // Both are numbered in the order of their keys.
        actions: vocabulary.actions.keys().cloned().collect(),
        fields: vocabulary.fields.clone(),
        values: vocabulary.values.keys().cloned().collect(),
        words: words.into_iter().map(|(word, _)| word.clone()).collect(),
        domains: vocabulary.domains.keys().cloned().collect(),
        features: vocabulary.features,
    };
    Ok(write_json(&folder.join(VOCABULARY_FILE), &written)?)
}

impl Ranker {
    /// Reads a folder, for the items and users of a dataset.
    pub fn load(folder: &Path, dataset: &Dataset) -> Result<Self, RankError> {
        let path = folder.join(VOCABULARY_FILE);
        let bytes = std::fs::read(&path).map_err(FileError::io(&path))?;
        let written: Written = serde_json::from_slice(&bytes).map_err(|error| FileError::content(&path, error))?;
        let beyond = |fields: &ItemFields| fields.iter().zip(written.item_sizes).any(|(id, size)| *id as usize >= size);
        if let Some((id, _)) = written.items.iter().find(|(_, fields)| beyond(fields)) {
            return Err(FileError::content(&path, format!("item {id} has a number beyond item_sizes")).into());
        }
        let known: HashMap<&str, ItemFields> = written.items.iter().map(|(id, item)| (id.as_str(), *item)).collect();
        let of = |id: &str| known.get(id).copied().unwrap_or_default();
        let unknown_items = dataset.items.iter().filter(|item| !known.contains_key(item.id.as_str())).count();
        let vocabulary = Vocabulary {
            items: dataset.items.iter().map(|item| of(&item.id)).collect(),
            item_ids: dataset.items.iter().map(|item| item.id.clone()).collect(),
            item_sizes: written.item_sizes,
            actions: numbered(written.actions),
            fields: written.fields,
            values: numbered(written.values),
            words: numbered(written.words),
            domains: numbered(written.domains),
            anchors: written.anchors,
            features: written.features,
        };
        let arch = Arch::of(written.width, written.tokenmixer, written.onepiece);
        let model = RankModel::random(&vocabulary, &arch, 0)?;
        let path = folder.join(WEIGHTS_FILE);
        let mut file = TensorFile::read(&path)?;
        for parameter in model.parameters() {
            let shape = parameter.var.dims();
            let values = file.take(&path, &parameter.name, shape)?;
            parameter.var.set(&tensor(values, shape)?)?;
        }
        Ok(Self { vocabulary, model, limits: (written.history, written.cross), unknown_items })
    }
}
