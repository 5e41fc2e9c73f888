//! The codebook's file: safetensors with `centroids` `[m, k, dim/m]` and, where used, `rotation` `[dim, dim]`.

use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::{PqCodebook, QuantizeError};

impl PqCodebook {
    /// Writes the file: beside its place first, then renamed, so that no reader sees half of it.
    pub fn save(&self, path: &Path) -> Result<(), QuantizeError> {
        let failed = |message: String| QuantizeError::File { path: path.to_owned(), message };
        let (centroids, rotation) = (bytes(self.centroids()), self.rotation().map(bytes));
        let shape = vec![self.m(), self.k(), self.dim() / self.m()];
        let view = |shape, data| TensorView::new(Dtype::F32, shape, data).map_err(|error| failed(error.to_string()));
        let mut views = vec![("centroids", view(shape, centroids.as_slice())?)];
        if let Some(data) = &rotation {
            views.push(("rotation", view(vec![self.dim(), self.dim()], data)?));
        }
        let serialised = safetensors::serialize(views, None).map_err(|error| failed(error.to_string()))?;
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let attempt = || {
            let mut target = std::fs::File::create(&partial)?;
            std::io::Write::write_all(&mut target, &serialised)?;
            target.sync_all()?;
            std::fs::rename(&partial, path)
        };
        attempt().map_err(|error: std::io::Error| failed(error.to_string()))
    }

    /// Reads a file that [`Self::save`] wrote.
    pub fn load(path: &Path) -> Result<Self, QuantizeError> {
        let failed = |message: String| QuantizeError::File { path: path.to_owned(), message };
        let data = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
        let file = SafeTensors::deserialize(&data).map_err(|error| failed(error.to_string()))?;
        let centroids =
            file.tensor("centroids").map_err(|_| failed("has no tensor centroids: not a codebook".into()))?;
        let &[m, k, width] = centroids.shape() else {
            return Err(failed(format!("centroids have shape {:?}, [slots, codes, width] needed", centroids.shape())));
        };
        let rotation = match file.tensor("rotation") {
            Ok(view) => Some(values(&view).ok_or_else(|| failed("rotation must be float32".into()))?),
            Err(_) => None,
        };
        let centroids = values(&centroids).ok_or_else(|| failed("centroids must be float32".into()))?;
        Self::new(m, k, m * width, centroids, rotation).map_err(|error| failed(error.to_string()))
    }
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn values(view: &TensorView<'_>) -> Option<Vec<f32>> {
    let (words, rest) = view.data().as_chunks::<4>();
    let fits = view.dtype() == Dtype::F32 && rest.is_empty();
    fits.then(|| words.iter().map(|word| f32::from_le_bytes(*word)).collect())
}
