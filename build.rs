//! Compiles `proto/taiji.proto` with a pure-Rust protoc, so that a bare machine needs no protobuf compiler.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/taiji.proto");
    let descriptors = protox::compile(["proto/taiji.proto"], ["proto"])?;
    prost_build::Config::new().btree_map(["."]).compile_fds(descriptors)?;
    Ok(())
}
