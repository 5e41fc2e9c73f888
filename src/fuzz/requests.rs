//! Bodies of reads: a request or refused, whatever the bytes.

/// The encoding's number, then the body.
pub(super) fn read(bytes: &[u8]) -> bool {
    let Some((encoding, body)) = bytes.split_first() else { return false };
    crate::api::is_request(*encoding % 5, body)
}
