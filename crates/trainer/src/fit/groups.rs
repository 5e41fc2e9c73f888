//! Which parameters are trained, and how: groups by name, each frozen or with a learning rate and a decay of its own.
//!
//! Called by whoever begins to train. A parameter belongs to the first group with a pattern that fits its name, else to none
//! and is trained as the run's settings say.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::FitError;
use crate::nn::{Module, Parameter, TensorFile, with_values};

/// A group of parameters: recipe block `[[sft.group]]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GroupSettings {
    /// Patterns of names. `*` is any text, `{4..7}` any number from 4 to 7: `model.layers.{4..7}.*` is a band of layers.
    pub names: Vec<String>,
    /// Not trained at all.
    pub frozen: bool,
    /// Highest learning rate; the run's where it is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Weight decay; the run's where it is missing. Matrices only, as everywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
}

impl GroupSettings {
    fn check(&self) -> Result<(), FitError> {
        let shown = || self.names.join(", ");
        let fail = |message: String| Err(FitError::Group { pattern: shown(), message });
        if self.names.is_empty() {
            return fail("names no parameter: give names = [\"…\"]".into());
        }
        if self.frozen && (self.lr.is_some() || self.weight_decay.is_some()) {
            return fail("is frozen: leave out lr and weight_decay".into());
        }
        if self.lr.is_some_and(|lr| !(lr > 0.0 && lr.is_finite())) {
            return fail("lr must be positive: use frozen = true to train nothing".into());
        }
        if self.weight_decay.is_some_and(|decay| !(decay >= 0.0 && decay.is_finite())) {
            return fail("weight_decay must not be negative".into());
        }
        Ok(())
    }
}

/// Trainable parameter with its group's settings.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) parameter: Parameter,
    /// The group's learning rate as a part of the run's.
    pub(super) rate_scale: f64,
    /// The group's weight decay; the run's if none.
    pub(super) weight_decay: Option<f64>,
}

/// The trainable parameters of a module.
#[derive(Debug)]
pub struct ParameterSet {
    pub(super) members: Vec<Member>,
}

impl ParameterSet {
    /// All of them, alike.
    pub fn all(module: &dyn Module) -> Self {
        module.freeze(&|_| false);
        let member = |parameter| Member { parameter, rate_scale: 1.0, weight_decay: None };
        Self { members: module.parameters().into_iter().map(member).collect() }
    }

    /// Those that no group freezes; the module takes the others off the tape. `lr` is the run's highest learning rate.
    pub fn grouped(module: &dyn Module, groups: &[GroupSettings], lr: f64) -> Result<Self, FitError> {
        groups.iter().try_for_each(GroupSettings::check)?;
        let parameters = module.parameters();
        for pattern in groups.iter().flat_map(|group| &group.names) {
            check_pattern(pattern)?;
            if !parameters.iter().any(|parameter| matches(pattern, &parameter.name)) {
                let example = parameters.first().map(|parameter| parameter.name.as_str()).unwrap_or_default();
                let message = format!("fits no parameter: names are like {example}");
                return Err(FitError::Group { pattern: pattern.clone(), message });
            }
        }
        let group_of = |name: &str| groups.iter().find(|group| group.names.iter().any(|names| matches(names, name)));
        let frozen = |name: &str| group_of(name).is_some_and(|group| group.frozen);
        module.freeze(&frozen);
        let members: Vec<Member> = parameters
            .into_iter()
            .filter(|parameter| !frozen(&parameter.name))
            .map(|parameter| {
                let group = group_of(&parameter.name);
                let rate_scale = group.and_then(|group| group.lr).map_or(1.0, |own| own / lr);
                Member { rate_scale, weight_decay: group.and_then(|group| group.weight_decay), parameter }
            })
            .collect();
        if members.is_empty() {
            return Err(FitError::AllFrozen);
        }
        Ok(Self { members })
    }

    /// The trainable parameters, in the module's order.
    pub fn trainable(&self) -> impl Iterator<Item = &Parameter> {
        self.members.iter().map(|member| &member.parameter)
    }

    /// Number of trainable values.
    pub fn value_count(&self) -> usize {
        self.trainable().map(|parameter| parameter.var.elem_count()).sum()
    }

    /// A copy of all values, in the set's order.
    pub(super) fn values(&self) -> Result<Vec<Vec<f32>>, FitError> {
        self.trainable().map(|parameter| Ok(with_values(&parameter.var, <[f32]>::to_vec)?)).collect()
    }

    /// Sets all values.
    pub(super) fn set_values(&self, values: &[Vec<f32>]) -> Result<(), FitError> {
        for (parameter, new) in self.trainable().zip(values) {
            parameter.var.set(&Tensor::from_slice(new, parameter.var.dims(), parameter.var.device())?)?;
        }
        Ok(())
    }

    /// Values in the set's order as a file under the parameters' names.
    pub(super) fn file_of(&self, values: Vec<Vec<f32>>) -> TensorFile {
        let named = self.trainable().zip(values);
        let tensors = named.map(|(parameter, values)| (parameter.name.clone(), parameter.var.dims().to_vec(), values));
        TensorFile { tensors: tensors.collect(), ..TensorFile::default() }
    }

    /// What [`Self::file_of`] made, read back.
    pub(super) fn values_of(&self, path: &std::path::Path) -> Result<Vec<Vec<f32>>, FitError> {
        let mut file = TensorFile::read(path)?;
        let take = |parameter: &Parameter| Ok(file.take(path, &parameter.name, parameter.var.dims())?);
        self.trainable().map(take).collect()
    }
}

fn check_pattern(pattern: &str) -> Result<(), FitError> {
    let mut rest = pattern;
    while let Some((_, after)) = rest.split_once('{') {
        let Some((_, _, tail)) = range(after) else {
            let message = "{…} must be a range of numbers, as {4..7}".to_owned();
            return Err(FitError::Group { pattern: pattern.to_owned(), message });
        };
        rest = tail;
    }
    Ok(())
}

/// `4..7}rest` → 4, 7, rest.
fn range(text: &str) -> Option<(u64, u64, &str)> {
    let (inside, rest) = text.split_once('}')?;
    let (low, high) = inside.split_once("..")?;
    let (low, high) = (low.parse().ok()?, high.parse().ok()?);
    (low <= high).then_some((low, high, rest))
}

/// Whether a name fits a pattern.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    let Some(first) = pattern.chars().next() else { return name.is_empty() };
    let rest = &pattern[first.len_utf8()..];
    match first {
        '*' => name.char_indices().map(|(at, _)| at).chain([name.len()]).any(|at| matches(rest, &name[at..])),
        '{' => {
            let Some((low, high, rest)) = range(rest) else { return false };
            let digits = name.len() - name.trim_start_matches(|letter: char| letter.is_ascii_digit()).len();
            let number = name[..digits].parse::<u64>();
            number.is_ok_and(|number| (low..=high).contains(&number)) && matches(rest, &name[digits..])
        }
        _ => name.strip_prefix(first).is_some_and(|name| matches(rest, name)),
    }
}
