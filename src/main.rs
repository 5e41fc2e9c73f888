//! `taiji`: the near-online feature service and its tools. Everything is in the library; see `taiji::cli`.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

taiji::require_processor!("taiji");

fn main() -> ExitCode {
    taiji::cli::program::silence_onnx_runtime();
    taiji::cli::run(option_env!("TAIJI_COMMIT"))
}
