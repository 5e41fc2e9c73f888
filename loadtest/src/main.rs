//! `taiji-loadtest`: load, reports and measured figures. Everything is in the library; see `loadtest::cli`.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    loadtest::cli::run()
}
