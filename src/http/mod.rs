//! What every HTTP port is made of: keys, bodies within limits, the error body, and the layers that each request passes.
//!
//! In: headers and bodies. Out: bytes and JSON, or an [`ApiError`]. Callers: `api`, `openai`, `admin`.

mod body;
mod error;
mod keys;
mod layers;

pub use body::{Entry, parse_batch, parse_json, read_body, require_json, says_ndjson};
pub use error::{ApiError, json_error, method_not_allowed, not_found};
pub use keys::{ApiKeys, Scope};
pub use layers::{Admission, RequestId, measure, name_request, shed};
