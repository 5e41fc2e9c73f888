//! Text and numbers as a page shows them.

/// Text that no reader of HTML takes for anything else, also inside quotes. Control characters, which no page may hold, become �.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' | '\t' => escaped.push(letter),
            letter if letter.is_control() => escaped.push('\u{FFFD}'),
            letter => escaped.push(letter),
        }
    }
    escaped
}

/// A number in few characters: three significant digits, thousands as k and M.
pub fn number(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() {
        return "–".to_string();
    }
    if value == 0.0 {
        return "0".to_string();
    }
    match size {
        _ if size >= 1e6 => trimmed(value / 1e6, 2) + "M",
        _ if size >= 1e4 => trimmed(value / 1e3, 1) + "k",
        _ if size >= 100.0 => trimmed(value, 0),
        _ if size >= 10.0 => trimmed(value, 1),
        _ if size >= 0.1 => trimmed(value, 3),
        _ if size >= 1e-3 => trimmed(value, 4),
        _ => format!("{value:.1e}"),
    }
}

/// With at most so many decimals, without zeros at the end.
fn trimmed(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => text,
    }
}

/// A whole number with its thousands apart.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A length of time.
pub fn duration(seconds: f64) -> String {
    match seconds {
        _ if seconds < 0.1 => "under .1 s".to_string(),
        _ if seconds < 10.0 => format!("{seconds:.1} s"),
        _ if seconds < 60.0 => format!("{seconds:.0} s"),
        _ if seconds < 3600.0 => format!("{} min {:02} s", seconds as u64 / 60, seconds as u64 % 60),
        _ => format!("{} h {:02} min", seconds as u64 / 3600, seconds as u64 % 3600 / 60),
    }
}
