//! Files of models from outside: whatever they say of themselves, what is wrong is named by file and field.

use std::io::Cursor;
use std::path::Path;
use taiji_export::gguf::check;

/// GGUF: container, metadata, table of tensors, and what a model is made of.
pub(super) fn gguf(bytes: &[u8]) -> bool {
    match check(Cursor::new(bytes), Path::new("some.gguf")) {
        Ok(()) => true,
        Err(error) => {
            let message = error.to_string();
            assert!(message.starts_with("some.gguf: "), "{message}");
            false
        }
    }
}
