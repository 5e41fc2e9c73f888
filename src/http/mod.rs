//! What every HTTP port is made of: keys, bodies within limits, the error body, and the layers that each request passes.
//!
//! In: headers and bodies. Out: bytes and JSON, or an [`ApiError`]. Callers: `api`, `openai`, `admin`.

mod body;
mod error;
mod keys;
mod layers;
mod places;
mod receive;

pub use body::{Entry, parse_batch, parse_json, require_json, says_ndjson};
pub use error::{ApiError, error_body, json_error, method_not_allowed, not_found};
pub use keys::{ApiKeys, KeyNumber, Scope};
pub use layers::{Admission, RequestId, admit, name_answer, name_request};
pub use receive::{BodyLimits, read_body};
