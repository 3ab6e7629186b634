//! Compiles proto/runtime.proto without protoc.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo::rerun-if-changed={}", folder.join("runtime.proto").display());
    let mut compiler = protox::Compiler::new([folder])?;
    compiler.open_file("runtime.proto")?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    // Encoded by the compiler itself: `prost-types` does not know `debug_redact` and would drop it.
    std::fs::write(out.join("runtime.bin"), compiler.encode_file_descriptor_set())?;
    let descriptors = compiler.file_descriptor_set();
    tonic_prost_build::configure()
        // Maps in a stable order: equal answers are equal bytes.
        .btree_map(".")
        // What is not built answers Unimplemented, so that a new call never breaks the build.
        .generate_default_stubs(true)
        // Secrets never reach a log through `{:?}` (debug_redact in the table of wire facts).
        .skip_debug(["runtime.v1.AuthConfig", "runtime.v1.KeyValue"])
        .compile_fds(descriptors)?;
    Ok(())
}
