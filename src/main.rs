//! `taiji`: the near-online feature service and its tools. Everything is in the library; see `taiji::cli`.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    taiji::cli::run()
}
