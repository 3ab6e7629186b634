//! Compiles proto/nri.proto and proto/ttrpc.proto without protoc. Messages only: calls are made by name.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    let mut compiler = protox::Compiler::new([&folder])?;
    for file in ["nri.proto", "ttrpc.proto"] {
        println!("cargo::rerun-if-changed={}", folder.join(file).display());
        compiler.open_file(file)?;
    }
    // Maps in a stable order: plugins are asked with the same bytes for the same container.
    prost_build::Config::new().btree_map(["."]).compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
