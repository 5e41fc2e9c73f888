//! One generation of a bundle: catalogue, user index, and the histories of the users in it.
//!
//! In: the dataset, the trained models. Out: `catalogue.parquet`, `users.faiss`, `users.parquet`.
//! Callers: `pipeline`. The service reads the files in `catalogue` and `retrieve`.

use crate::data::{Dataset, UserRow};
use crate::models::{ModelsError, ServedModels};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use taiji::catalogue::{CatalogueError, CatalogueRow, write_catalogue};
use taiji::event::is_opted_out;
use taiji::proto;
use taiji::retrieve::{IndexShape, RetrieveError, SnapshotUser, UserSnapshot, build_main};
use taiji::store::HISTORY_CAP;
use thiserror::Error;

/// Why a generation cannot be built.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum IndexError {
    #[error(transparent)]
    Models(#[from] ModelsError),
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    #[error(transparent)]
    Retrieve(#[from] RetrieveError),
}

/// `[index]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IndexRecipe {
    /// Most users in the main part; every n-th user is taken.
    pub users: usize,
    /// FAISS factory string.
    pub factory: String,
    /// Users with fewer engagements are left out.
    pub min_engagements: usize,
}

/// Builds and writes a generation. The last `holdout` engagements of every user are not looked at.
pub fn build_index(
    recipe: &IndexRecipe,
    dataset: &Dataset,
    holdout: usize,
    models: &ServedModels,
    folder: &Path,
) -> Result<(), IndexError> {
    write_catalogue(&folder.join("catalogue.parquet"), &catalogue_rows(dataset, holdout))?;
    let users = choose_users(recipe, dataset, holdout);
    let inputs: Vec<_> = users
        .iter()
        .map(|user| dataset.prompt_input(user, visible(user, holdout), i64::MAX, models.schema.max_engagements))
        .collect();
    let answers = models.answer(&inputs)?;
    let vectors: Vec<f32> = answers.iter().flat_map(|answer| answer.vector.iter().copied()).collect();
    let shape = IndexShape { factory: recipe.factory.clone(), dim: models.encoder.dim() };
    build_main(&shape, &vectors, &folder.join("users.faiss"))?;
    let snapshot: Vec<SnapshotUser> = users.iter().map(|user| snapshot_user(user, holdout)).collect();
    UserSnapshot::write(&folder.join("users.parquet"), &snapshot)?;
    Ok(())
}

/// Engagements that may be looked at.
fn visible(user: &UserRow, holdout: usize) -> usize {
    user.engagements.len().saturating_sub(holdout)
}

/// Every n-th user with enough history, so that the choice does not follow the order of the file.
fn choose_users<'a>(recipe: &IndexRecipe, dataset: &'a Dataset, holdout: usize) -> Vec<&'a UserRow> {
    let enough = |user: &&UserRow| visible(user, holdout) >= recipe.min_engagements && !has_opted_out(user);
    let all: Vec<&UserRow> = dataset.users.iter().filter(enough).collect();
    let step = all.len().div_ceil(recipe.users.max(1)).max(1);
    all.into_iter().step_by(step).collect()
}

/// Whether a user asked not to be shown to others.
fn has_opted_out(user: &UserRow) -> bool {
    let value = |name: &str| user.profile.iter().find(|(known, _)| known == name);
    is_opted_out(|name| value(name).map(|(_, text)| serde_json::Value::String(text.clone())))
}

/// Every item with the number of distinct users who engaged with it.
fn catalogue_rows(dataset: &Dataset, holdout: usize) -> Vec<CatalogueRow> {
    let mut users_of: BTreeMap<&str, u32> = BTreeMap::new();
    for user in &dataset.users {
        let items: BTreeSet<&str> =
            user.engagements[..visible(user, holdout)].iter().map(|behaviour| behaviour.item_id.as_str()).collect();
        for item in items {
            *users_of.entry(item).or_default() += 1;
        }
    }
    let row = |item: &taiji::event::Item| CatalogueRow {
        item: Arc::new(item.clone()),
        distinct_users: users_of.get(item.id.as_str()).copied().unwrap_or(0),
    };
    dataset.items.iter().map(row).collect()
}

/// The latest engagements, newest first, as a neighbour shows them.
fn snapshot_user(user: &UserRow, holdout: usize) -> SnapshotUser {
    let latest = user.engagements[..visible(user, holdout)].iter().rev().take(HISTORY_CAP);
    let engagements = latest.map(|behaviour| proto::Behaviour {
        ts_ms: behaviour.ts_ms,
        item_id: behaviour.item_id.clone(),
        action: behaviour.action.clone(),
        ..proto::Behaviour::default()
    });
    SnapshotUser { user: user.user_id.clone(), engagements: engagements.collect() }
}
