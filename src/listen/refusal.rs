//! Requests that hyper refuses before any route sees them: a head that is no HTTP, or is too long. Its answers have no body; ours
//! have the port's usual one, and an id.

use axum::http::StatusCode;
use bytes::Bytes;

/// What was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// 400, 414 or 431.
    pub status: StatusCode,
    /// As in other errors of the port.
    pub code: &'static str,
    /// What is wrong, and what would be right.
    pub message: &'static str,
}

/// Writes a port's error body.
pub type RefusalBody = fn(&Refusal) -> String;

const REFUSALS: [Refusal; 3] = [
    Refusal {
        status: StatusCode::BAD_REQUEST,
        code: "bad_request",
        message: "the request's head is no http: a method, a path, a version and headers are expected",
    },
    Refusal { status: StatusCode::URI_TOO_LONG, code: "uri_too_long", message: "the path has more than 65534 bytes" },
    Refusal {
        status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        code: "header_fields_too_large",
        message: "the request's head has more than 100 headers or 131072 bytes",
    },
];

/// Longest head that hyper writes of its own accord.
const LONGEST: usize = 256;

/// Our answer for what hyper would write, if that is a refusal of its own: a head and nothing else, without an id.
pub fn in_place_of(bytes: &[u8], body: RefusalBody) -> Option<Bytes> {
    if bytes.len() > LONGEST || !bytes.ends_with(b"\r\n\r\n") {
        return None;
    }
    let head = std::str::from_utf8(bytes).ok()?;
    let status = head.strip_prefix("HTTP/1.1 ").or_else(|| head.strip_prefix("HTTP/1.0 "))?.get(..3)?;
    let refusal = REFUSALS.iter().find(|refusal| refusal.status.as_str() == status)?;
    if !head.contains("\r\ncontent-length: 0\r\n") || head.contains("\r\nx-request-id:") {
        return None;
    }
    Some(answer(refusal, body))
}

/// A refusal as it goes over the wire; the connection is over with it.
pub fn answer(refusal: &Refusal, body: RefusalBody) -> Bytes {
    let body = body(refusal);
    let answer = format!(
        "HTTP/1.1 {} {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nx-request-id: {:032x}\r\n\
         connection: close\r\n\r\n{body}",
        refusal.status.as_str(),
        refusal.status.canonical_reason().unwrap_or_default(),
        body.len(),
        rand::random::<u128>(),
    );
    answer.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replaced(head: &str) -> Option<String> {
        in_place_of(head.as_bytes(), |refusal| format!("{{{}}}", refusal.code))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    #[test]
    fn only_an_empty_refusal_without_an_id_is_replaced() {
        let own = "HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\ndate: x\r\n\r\n";
        let given = replaced(own).expect("replaced");
        assert!(given.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\n"), "{given}");
        assert!(given.ends_with("content-length: 25\r\n") || given.ends_with("{header_fields_too_large}"), "{given}");
        assert!(given.contains("\r\nx-request-id: ") && given.contains("\r\nconnection: close\r\n"), "{given}");
        for other in [
            "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 7\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nx-request-id: a\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n",
            "{\"a\": \"HTTP/1.1 400 \r\n\r\n",
        ] {
            assert_eq!(replaced(other), None, "{other}");
        }
    }
}
