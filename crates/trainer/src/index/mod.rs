//! One generation of a bundle: catalogue, user index, and the histories of the users in it.
//!
//! In: the dataset, the trained models. Out: `catalogue.parquet`, `users.faiss`, `users.parquet`.
//! Callers: `stages`. The service reads the files in `catalogue` and `retrieve`.

use crate::data::{Cut, Dataset, Holdout, UserRow};
use crate::models::{ModelsError, ServedModels};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use taiji::catalogue::{CatalogueError, CatalogueRow, write_catalogue};
use taiji::event::is_opted_out;
use taiji::prompt::PromptInput;
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

/// Builds and writes a generation. What `holdout` keeps back is not looked at.
pub fn build_index(
    recipe: &IndexRecipe,
    dataset: &Dataset,
    holdout: &Holdout,
    models: &ServedModels,
    folder: &Path,
) -> Result<(), IndexError> {
    let contents = contents(recipe, dataset, holdout, models.schema.max_engagements);
    write_catalogue(&folder.join("catalogue.parquet"), &contents.catalogue)?;
    let answers = models.answer(&contents.prompts)?;
    let vectors: Vec<f32> = answers.iter().flat_map(|answer| answer.vector.iter().copied()).collect();
    let shape = IndexShape { factory: recipe.factory.clone(), dim: models.encoder.dim() };
    build_main(&shape, &vectors, &folder.join("users.faiss"))?;
    UserSnapshot::write(&folder.join("users.parquet"), &contents.users)?;
    Ok(())
}

/// What goes into a generation before any model is asked.
struct Contents {
    catalogue: Vec<CatalogueRow>,
    /// The chosen users, as neighbours show them.
    users: Vec<SnapshotUser>,
    /// Of the same users.
    prompts: Vec<PromptInput>,
}

fn contents(recipe: &IndexRecipe, dataset: &Dataset, holdout: &Holdout, max_engagements: usize) -> Contents {
    let cuts: Vec<Cut> = dataset.users.iter().map(|user| holdout.cut(dataset, user)).collect();
    let chosen = choose_users(recipe, dataset, &cuts);
    Contents {
        catalogue: catalogue_rows(dataset, &cuts),
        users: chosen.iter().map(|(user, cut)| snapshot_user(user, *cut)).collect(),
        prompts: chosen.iter().map(|(user, cut)| dataset.prompt_input(user, *cut, max_engagements)).collect(),
    }
}

/// Every n-th user with enough history, so that the choice does not follow the order of the file.
fn choose_users<'a>(recipe: &IndexRecipe, dataset: &'a Dataset, cuts: &[Cut]) -> Vec<(&'a UserRow, Cut)> {
    let enough = |(user, cut): &(&UserRow, Cut)| {
        user.engagements_before(*cut).len() >= recipe.min_engagements && !has_opted_out(user)
    };
    let all: Vec<(&UserRow, Cut)> = dataset.users.iter().zip(cuts.iter().copied()).filter(enough).collect();
    let step = all.len().div_ceil(recipe.users.max(1)).max(1);
    all.into_iter().step_by(step).collect()
}

/// Whether a user asked not to be shown to others: what they said last counts, also after a cut.
pub(crate) fn has_opted_out(user: &UserRow) -> bool {
    let value = |name: &str| user.profile.iter().rev().find(|known| known.name == name);
    is_opted_out(|name| value(name).map(|known| serde_json::Value::String(known.value.clone())))
}

/// Every item with the number of distinct users who engaged with it.
fn catalogue_rows(dataset: &Dataset, cuts: &[Cut]) -> Vec<CatalogueRow> {
    let mut users_of: BTreeMap<&str, u32> = BTreeMap::new();
    for (user, cut) in dataset.users.iter().zip(cuts) {
        let items: BTreeSet<&str> =
            user.engagements_before(*cut).iter().map(|behaviour| behaviour.item_id.as_str()).collect();
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
pub(crate) fn snapshot_user(user: &UserRow, cut: Cut) -> SnapshotUser {
    let latest = user.engagements_before(cut).iter().rev().take(HISTORY_CAP);
    let engagements = latest.map(|behaviour| proto::Behaviour {
        ts_ms: behaviour.ts_ms,
        item_id: behaviour.item_id.clone(),
        action: behaviour.action.clone(),
        ..proto::Behaviour::default()
    });
    SnapshotUser { user: user.user_id.clone(), engagements: engagements.collect() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use serde_json::json;
    use taiji::event::{ActionTable, Event};

    /// Purchases and clicks in one log: the last two *purchases* are the truth, not the last two events.
    #[test]
    fn no_held_out_purchase_and_nothing_after_it_is_in_a_generation() {
        let items =
            (0..8).map(|id| serde_json::from_value(json!({"id": id.to_string(), "title": format!("thing {id}")})));
        let log =
            ["purchase", "purchase", "click", "purchase", "search", "profile", "click", "purchase", "click", "click"];
        let events = log.iter().enumerate().map(|(place, action)| -> Event {
            let mut event = json!({"event_id": format!("{place:02}"), "user_id": "u", "action": action,
                "ts_ms": 1_500_000_000_000i64 + place as i64});
            match *action {
                "search" => event["context"] = json!({"query": "late"}),
                "profile" => event["context"] = json!({"stage": "late"}),
                _ => event["item_id"] = json!(place.to_string()),
            }
            serde_json::from_value(event).unwrap()
        });
        let items = items.collect::<Result<Vec<_>, _>>().unwrap();
        let data = Dataset::from_records(items, vec![], events, &ActionTable::default());
        let recipe = IndexRecipe { users: 10, factory: "Flat".into(), min_engagements: 1 };

        let held = contents(&recipe, &data, &Holdout::of_training("purchase"), 50);
        let shown: Vec<&str> = held.users[0].engagements.iter().map(|shown| shown.item_id.as_str()).collect();
        assert_eq!(shown, ["2", "1", "0"]);
        let counts: Vec<u32> = held.catalogue.iter().map(|row| row.distinct_users).collect();
        assert_eq!(counts, [1, 1, 1, 0, 0, 0, 0, 0]);
        let prompt = &held.prompts[0];
        assert_eq!((prompt.engagements.len(), prompt.queries.len(), prompt.profile.len()), (3, 0, 0));

        let all = contents(&recipe, &data, &Holdout::none(), 50);
        assert_eq!((all.users[0].engagements.len(), all.prompts[0].queries.len()), (8, 1));
    }
}
