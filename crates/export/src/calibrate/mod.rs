//! Rounding that is fitted to a text (GPTQ, arXiv 2210.17323): what a layer's inputs are like decides which errors matter, and
//! later columns make up for the errors of earlier ones.
//!
//! In: a decoder's checkpoint, windows of tokens. Out: packed weights by their names in the graph. Called by `export`. `states` is the
//! way of the text through the layers, `rounding` the fitting; each layer reads what the rounded layers before it give.

mod rounding;
mod states;

use std::collections::HashMap;

use super::ExportError;
use super::checkpoint::Checkpoint;
use super::nbits::PackedWeight;
use super::options::ExportOptions;

use states::Text;

/// The weights of all layers, rounded; empty if there is no text to fit to.
pub fn rounded(source: &mut Checkpoint, options: &ExportOptions) -> Result<HashMap<String, PackedWeight>, ExportError> {
    let mut rounded = HashMap::new();
    if options.calibration.is_empty() {
        return Ok(rounded);
    }
    let mut text = Text::read(source, &options.calibration, options.numbers()?)?;
    for layer in 0..text.layers() {
        rounded.extend(text.pass(source, layer)?);
    }
    Ok(rounded)
}
