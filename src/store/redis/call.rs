//! One command for Redis, with what the way there needs to know: its slot and what it may cost.

use super::keys::{loggable, slot_of};
use super::pace;
use crate::store::StoreError;
use redis::Cmd;

/// Arguments beside the keys, and their bytes, that a new function call has room for.
const ROOM: (usize, usize) = (16, 192);

/// One command and the slot of its keys.
pub struct Call {
    pub(super) slot: u16,
    pub(super) cmd: Cmd,
    /// What it may cost the server, in µs.
    pub(super) cost: u32,
    pub(super) is_function: bool,
}

impl Call {
    /// A plain command on one key; further arguments follow with [`Call::arg`].
    pub fn new(name: &str, key: &str) -> Call {
        let mut cmd = redis::cmd(name);
        cmd.arg(key);
        Call { slot: slot_of(key), cmd, cost: pace::COMMAND, is_function: false }
    }

    /// A plain command on one key, with room for all of it at once: there is one a user and read.
    pub fn with_arguments(name: &str, key: &str, arguments: &[&str]) -> Call {
        let length: usize = arguments.iter().map(|argument| argument.len()).sum();
        let mut cmd = Cmd::with_capacity(arguments.len() + 2, name.len() + key.len() + length);
        cmd.arg(name).arg(key);
        for argument in arguments {
            cmd.arg(*argument);
        }
        Call { slot: slot_of(key), cmd, cost: pace::COMMAND, is_function: false }
    }

    /// A function call on keys of one slot.
    pub fn function<K: AsRef<str>>(name: &str, keys: &[K]) -> Call {
        let length: usize = keys.iter().map(|key| key.as_ref().len()).sum();
        // With room for the arguments of a few records: a command grows in steps otherwise, and there is one a user.
        let mut cmd = Cmd::with_capacity(keys.len() + ROOM.0, name.len() + length + ROOM.1);
        cmd.arg("FCALL").arg(name).arg(keys.len());
        for key in keys {
            cmd.arg(key.as_ref());
        }
        let slot = keys.first().map_or(0, |key| slot_of(key.as_ref()));
        Call { slot, cmd, cost: pace::FUNCTION, is_function: true }
    }

    /// A command without a key, beside those on `key`.
    pub fn beside(name: &str, key: &str) -> Call {
        Call { slot: slot_of(key), cmd: redis::cmd(name), cost: pace::COMMAND, is_function: false }
    }

    /// It may cost the server so many µs ([`pace`]).
    pub fn costing(self, cost: u32) -> Call {
        Call { cost, ..self }
    }

    /// Adds an argument.
    pub fn arg(mut self, argument: impl redis::ToRedisArgs) -> Call {
        self.cmd.arg(argument);
        self
    }

    /// The error with the command's (first) key as the log may show it, where it is about what stands under it.
    pub(super) fn named(&self, error: StoreError) -> StoreError {
        let StoreError::Corrupt { message, .. } = error else { return error };
        let mut arguments = self.cmd.args_iter();
        let place = if matches!(arguments.next(), Some(redis::Arg::Simple(b"FCALL"))) { 2 } else { 0 };
        let key = match arguments.nth(place) {
            Some(redis::Arg::Simple(key)) => loggable(&String::from_utf8_lossy(key)),
            _ => String::new(),
        };
        StoreError::Corrupt { key, message }
    }
}
