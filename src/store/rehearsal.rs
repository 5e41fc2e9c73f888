//! A later build, played by this one: for tests of upgrades only.
//!
//! In: the environment variable `TAIJI_REHEARSAL`, any text, no setting and not documented for users. Out: what makes this
//! program another build than the same one without it: the text salts the hash in the names of the functions, and
//! every stored form gets a field that nobody knows. Callers: the stores.

use std::sync::LazyLock;

/// Name of the field that a rehearsal adds to stored forms.
pub const FIELD: &str = "rehearsal";

static REHEARSAL: LazyLock<Option<String>> =
    LazyLock::new(|| std::env::var("TAIJI_REHEARSAL").ok().filter(|text| !text.is_empty()));

/// The text of the variable; `None` in every real process.
pub fn build() -> Option<&'static str> {
    REHEARSAL.as_deref()
}
