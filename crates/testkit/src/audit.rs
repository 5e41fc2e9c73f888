//! Whether the bars are to hold as they are.

/// Whether bars of speed are to hold as they are (`make audit`), not as a shared machine lets them.
pub fn is_audit() -> bool {
    std::env::var("TAIJI_AUDIT").as_deref() == Ok("1")
}
