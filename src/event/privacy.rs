//! How a user says not to be shown to others.

use serde_json::Value;

/// A user with this profile attribute set is neither shown to others nor indexed (DESIGN 5.3). It steers the service and
/// tells nothing about wishes, so it never enters a prompt.
pub const OPT_OUT_ATTRIBUTE: &str = "cross_opt_out";

/// Whether a user asked not to be shown to others; `attribute` looks up an attribute of their profile.
pub fn is_opted_out(attribute: impl FnOnce(&str) -> Option<Value>) -> bool {
    attribute(OPT_OUT_ATTRIBUTE).is_some_and(|value| opts_out(&value))
}

/// Anything but a clear no asks to be left alone. A text says what it would say as JSON: data sets keep texts only.
fn opts_out(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => {
            let text = text.trim().to_ascii_lowercase();
            let is_no = matches!(text.as_str(), "" | "false" | "no" | "off" | "null");
            !is_no && text.parse::<f64>().ok() != Some(0.0)
        }
        Value::Number(number) => number.as_f64() != Some(0.0),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn anything_but_a_clear_no_opts_out() {
        let opted = |value: Value| is_opted_out(|name| (name == OPT_OUT_ATTRIBUTE).then_some(value));
        for yes in [json!(true), json!("True"), json!("yes"), json!(1), json!(1.0), json!("on"), json!([])] {
            assert!(opted(yes.clone()), "{yes}");
        }
        for no in [json!(false), json!("False"), json!("no"), json!(0), json!(null), json!("")] {
            assert!(!opted(no.clone()), "{no}");
        }
        assert!(!is_opted_out(|_| None));
    }

    #[test]
    fn audit_15_a_value_kept_as_text_says_the_same() {
        let opted = |value: &Value| is_opted_out(|_| Some(value.clone()));
        for value in
            [json!(true), json!(false), json!(0), json!(0.0), json!(-0.0), json!(2), json!(null), json!([]), json!({})]
        {
            assert_eq!(opted(&Value::String(value.to_string())), opted(&value), "{value}");
        }
    }
}
