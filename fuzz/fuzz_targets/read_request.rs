#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| taiji::fuzz::run("read_request", bytes));
