//! The codebook itself: centroids per slot, nearest-centroid search, sparse IDs, content hash.

use sha2::{Digest, Sha256};

use super::QuantizeError;

/// Most centroids per slot: codes are u16.
const MOST_CENTROIDS: usize = 1 << 16;

/// `m` slots of `k` centroids over vectors of `dim` values. Slot s covers values `s·dim/m .. (s+1)·dim/m` of the (rotated)
/// vector.
#[derive(Debug, Clone, PartialEq)]
pub struct PqCodebook {
    m: usize,
    k: usize,
    dim: usize,
    /// `[m, k, dim/m]`.
    centroids: Vec<f32>,
    /// `[dim, dim]` orthogonal, applied before splitting.
    rotation: Option<Vec<f32>>,
    /// `[m, dim/m, k]`: the same centroids, one value of all centroids side by side, so that the search vectorises.
    columns: Vec<f32>,
}

impl PqCodebook {
    /// A codebook from its parts: centroids `[m, k, dim/m]`, rotation `[dim, dim]` (row-major, orthogonal: vector · rotation
    /// is what the slots see).
    pub fn new(
        m: usize,
        k: usize,
        dim: usize,
        centroids: Vec<f32>,
        rotation: Option<Vec<f32>>,
    ) -> Result<Self, QuantizeError> {
        let wrong = |message: String| Err(QuantizeError::Shape(message));
        if m == 0 || dim == 0 || !dim.is_multiple_of(m) {
            return wrong(format!("{dim} dimensions cannot be split into {m} equal slots: choose m that divides them"));
        }
        if k == 0 || k > MOST_CENTROIDS || m * k >= u32::MAX as usize {
            return wrong(format!("k must be 1 to {MOST_CENTROIDS}, got {k}"));
        }
        if centroids.len() != k * dim {
            return wrong(format!("centroids hold {} values, {m}·{k}·{} needed", centroids.len(), dim / m));
        }
        if rotation.as_ref().is_some_and(|values| values.len() != dim * dim) {
            return wrong(format!("rotation must be {dim} × {dim}"));
        }
        if !centroids.iter().chain(rotation.iter().flatten()).all(|value| value.is_finite()) {
            return wrong("holds a value that is not finite: train it again".into());
        }
        let columns = centroids.chunks_exact(k * dim / m).flat_map(|slot| columns_of(slot, k)).collect();
        Ok(Self { m, k, dim, centroids, rotation, columns })
    }

    /// Slots.
    pub fn m(&self) -> usize {
        self.m
    }

    /// Centroids per slot.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Length of the vectors it takes.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// `[m, k, dim/m]`.
    pub fn centroids(&self) -> &[f32] {
        &self.centroids
    }

    /// `[dim, dim]`, where one is used.
    pub fn rotation(&self) -> Option<&[f32]> {
        self.rotation.as_deref()
    }

    /// Sparse IDs are 1 to this; an embedding table needs one row more (0 = missing).
    pub fn sparse_id_count(&self) -> u32 {
        (self.m * self.k) as u32
    }

    /// Nearest centroid of each slot (squared Euclidean distance; ties go to the lowest code).
    pub fn encode(&self, vector: &[f32]) -> Result<Vec<u16>, QuantizeError> {
        let rotated = self.rotated(vector)?;
        let mut distances = vec![0.0f32; self.k];
        let width = self.dim / self.m;
        let slots = rotated.chunks_exact(width).zip(self.columns.chunks_exact(self.k * width));
        Ok(slots.map(|(part, columns)| nearest(part, columns, &mut distances) as u16).collect())
    }

    /// The vector that codes stand for, rotated back.
    pub fn decode(&self, codes: &[u16]) -> Result<Vec<f32>, QuantizeError> {
        self.check_codes(codes)?;
        let width = self.dim / self.m;
        let mut joined = Vec::with_capacity(self.dim);
        for (slot, &code) in codes.iter().enumerate() {
            joined.extend_from_slice(&self.centroids[(slot * self.k + code as usize) * width..][..width]);
        }
        let Some(rotation) = &self.rotation else { return Ok(joined) };
        // The inverse of an orthogonal matrix is its transpose.
        Ok(rotation.chunks_exact(self.dim).map(|row| row.iter().zip(&joined).map(|(r, v)| r * v).sum()).collect())
    }

    /// `slot · k + code + 1` for each slot; 0 never occurs, it means missing.
    pub fn sparse_ids(&self, codes: &[u16]) -> Result<Vec<u32>, QuantizeError> {
        self.check_codes(codes)?;
        Ok(codes.iter().enumerate().map(|(slot, &code)| (slot * self.k) as u32 + u32::from(code) + 1).collect())
    }

    /// Hash (SHA-256, hex) of everything that decides a code: shape, centroids, rotation. Independent of the file format.
    pub fn content_hash(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(b"taiji pq 1\0");
        for number in [self.m, self.k, self.dim, usize::from(self.rotation.is_some())] {
            hash.update((number as u64).to_le_bytes());
        }
        for value in self.centroids.iter().chain(self.rotation.iter().flatten()) {
            hash.update(value.to_le_bytes());
        }
        hex::encode(hash.finalize())
    }

    /// The vector as the slots see it: checked, rotated where the codebook rotates.
    pub fn rotated(&self, vector: &[f32]) -> Result<Vec<f32>, QuantizeError> {
        check_vector(vector, self.dim)?;
        let Some(rotation) = &self.rotation else { return Ok(vector.to_vec()) };
        // Row by row, so that the inner loop runs along the result and vectorises.
        let mut out = vec![0.0f32; self.dim];
        for (value, row) in vector.iter().zip(rotation.chunks_exact(self.dim)) {
            out.iter_mut().zip(row).for_each(|(o, r)| *o += value * r);
        }
        Ok(out)
    }

    fn check_codes(&self, codes: &[u16]) -> Result<(), QuantizeError> {
        if codes.len() != self.m {
            return Err(QuantizeError::CodeCount { expected: self.m, found: codes.len() });
        }
        match codes.iter().enumerate().find(|(_, code)| **code as usize >= self.k) {
            Some((slot, &code)) => Err(QuantizeError::Code { slot, code, k: self.k }),
            None => Ok(()),
        }
    }
}

/// Refuses a vector of another length than `dim`, and one with a value that is not finite.
pub fn check_vector(vector: &[f32], dim: usize) -> Result<(), QuantizeError> {
    if vector.len() != dim {
        return Err(QuantizeError::Dimension { expected: dim, found: vector.len() });
    }
    match vector.iter().enumerate().find(|(_, value)| !value.is_finite()) {
        Some((index, &value)) => Err(QuantizeError::NotFinite { index, value }),
        None => Ok(()),
    }
}

/// `[k, width]` → `[width, k]`.
pub fn columns_of(centroids: &[f32], k: usize) -> Vec<f32> {
    let width = centroids.len() / k;
    (0..width).flat_map(|column| (0..k).map(move |row| centroids[row * width + column])).collect()
}

/// Lowest index of the smallest squared distance from `part` to the centroids in `columns` `[width, k]`; `distances` is
/// scratch of length k and holds the distances afterwards.
pub fn nearest(part: &[f32], columns: &[f32], distances: &mut [f32]) -> usize {
    distances.fill(0.0);
    for (value, column) in part.iter().zip(columns.chunks_exact(distances.len())) {
        for (distance, centroid) in distances.iter_mut().zip(column) {
            let difference = value - centroid;
            *distance += difference * difference;
        }
    }
    let mut best = 0;
    for (index, distance) in distances.iter().enumerate() {
        if *distance < distances[best] {
            best = index;
        }
    }
    best
}
