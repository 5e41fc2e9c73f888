//! How a user says not to be shown to others.

/// A user with this profile attribute set is neither shown to others nor indexed (DESIGN 5.3). It steers the service and
/// tells nothing about wishes, so it never enters a prompt.
pub const OPT_OUT_ATTRIBUTE: &str = "cross_opt_out";
/// Whether the opt-out attribute's value asks to be left alone. Anything but a clear no does.
pub fn opts_out(value: &serde_json::Value) -> bool {
    match value {
        serde_json::Value::Null | serde_json::Value::Bool(false) => false,
        serde_json::Value::String(text) => {
            !matches!(text.trim().to_ascii_lowercase().as_str(), "" | "false" | "0" | "no" | "off" | "null")
        }
        serde_json::Value::Number(number) => number.as_f64() != Some(0.0),
        _ => true,
    }
}
