//! Exponential moving average of the trained weights: often better than the last ones, and free of the last steps' noise.
//!
//! Called by `run` after each step taken.

use std::path::Path;

use super::FitError;
use super::groups::ParameterSet;
use crate::nn::{FileError, TensorFile, with_values};

/// The averaged values of a set.
pub(super) struct Average {
    decay: f64,
    updates: u64,
    values: Vec<Vec<f32>>,
}

impl Average {
    /// Begins with the weights as they are.
    pub(super) fn new(set: &ParameterSet, decay: f64) -> Result<Self, FitError> {
        Ok(Self { decay, updates: 0, values: set.values()? })
    }

    /// average ← d·average + (1 − d)·weights; d rises to the decay, so that the first weights are soon forgotten:
    /// min(decay, (1 + n) / (10 + n)) at the n-th update.
    pub(super) fn add(&mut self, set: &ParameterSet) -> Result<(), FitError> {
        self.updates += 1;
        let count = self.updates as f64;
        let kept = self.decay.min((1.0 + count) / (10.0 + count)) as f32;
        for (parameter, average) in set.trainable().zip(&mut self.values) {
            with_values(&parameter.var, |weights| {
                for (mean, weight) in average.iter_mut().zip(weights) {
                    *mean = kept * *mean + (1.0 - kept) * weight;
                }
            })?;
        }
        Ok(())
    }

    /// Exchanges the averages and the module's weights; called again it puts them back.
    pub(super) fn swap(&mut self, set: &ParameterSet) -> Result<(), FitError> {
        let weights = set.values()?;
        set.set_values(&self.values)?;
        self.values = weights;
        Ok(())
    }

    pub(super) fn save(&self, set: &ParameterSet, path: &Path) -> Result<(), FitError> {
        let mut file = set.file_of(self.values.clone());
        file.metadata.insert("updates".into(), self.updates.to_string());
        Ok(file.write(path)?)
    }

    /// What [`Self::save`] wrote.
    pub(super) fn restore(&mut self, set: &ParameterSet, path: &Path) -> Result<(), FitError> {
        let updates = TensorFile::read(path)?.metadata.get("updates").and_then(|text| text.parse().ok());
        self.updates = updates.ok_or_else(|| FileError::content(path, "metadata has no count of updates"))?;
        self.values = set.values_of(path)?;
        Ok(())
    }
}
