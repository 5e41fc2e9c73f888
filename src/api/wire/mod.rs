//! How a read is asked and answered: JSON, MessagePack, protobuf, an Arrow stream.
//!
//! In: `Accept` and `Content-Type`, a body, the views of a read. Out: a request, an answer. Callers: `features`, `feast`, `refresh`.
//!
//! JSON and MessagePack have one data model, serde's (`columns`, `row`); `protobuf` and `arrow` have their own. None of them builds a tree first.

mod arrow;
mod arrow_request;
mod columns;
mod media;
mod protobuf;
mod request;
mod row;
#[cfg(test)]
mod tests;

pub(super) use media::{Encoding, accepted, sent};
#[cfg(any(test, feature = "fuzz"))]
pub(crate) use request::is_request;
pub(super) use request::{FeaturesRequest, decode, of_message_pack};

use self::columns::Columns;
use self::row::Row;
use super::features::ReadViews;
use crate::feature::FromBlob;
use crate::http::ApiError;
use crate::live::View;
use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use serde::{Serialize, Serializer};

/// A 200 with what serde makes of it; only [`Encoding::Json`] and [`Encoding::MessagePack`] are serde's.
pub(super) fn serialized(encoding: Encoding, answer: &impl Serialize) -> Result<Response, ApiError> {
    let bytes = match encoding {
        Encoding::MessagePack => rmp_serde::to_vec_named(answer).map_err(|error| error.to_string()),
        _ => serde_json::to_vec(answer).map_err(|error| error.to_string()),
    };
    Ok(response(encoding, bytes.map_err(ApiError::Unencodable)?))
}

/// The answer of many users, in columns.
pub(super) fn columnar(encoding: Encoding, view: &View, views: &ReadViews) -> Result<Response, ApiError> {
    match encoding {
        Encoding::Json | Encoding::MessagePack => serialized(encoding, &Columns::new(view, views)),
        Encoding::Protobuf => Ok(protobuf(view, views)),
        Encoding::Arrow => {
            let stream = arrow::features(view, views).map_err(|error| ApiError::Unencodable(error.to_string()))?;
            Ok(response(encoding, stream))
        }
    }
}

/// The same in protobuf, for which the views need not be taken apart.
pub(super) fn protobuf<R: FromBlob>(view: &View, views: &ReadViews<R>) -> Response {
    response(Encoding::Protobuf, protobuf::features(view, views))
}

/// The answer of one user, for [`Encoding::Json`] and [`Encoding::MessagePack`].
pub(super) fn row(encoding: Encoding, view: &View, views: &ReadViews) -> Result<Response, ApiError> {
    serialized(encoding, &Row { space: view.space(), views })
}

fn response(encoding: Encoding, bytes: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(bytes));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(encoding.name()));
    headers.insert(header::VARY, HeaderValue::from_static("accept"));
    response
}

/// Items that are written one after the other, never kept together.
pub(super) struct Sequence<F>(pub F);

impl<F: Fn() -> I, I: IntoIterator<Item: Serialize>> Serialize for Sequence<F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq((self.0)())
    }
}

/// The same of keys with values.
struct Mapping<F>(F);

impl<F: Fn() -> I, I: IntoIterator<Item = (K, V)>, K: Serialize, V: Serialize> Serialize for Mapping<F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map((self.0)())
    }
}
