//! Compiles proto/runtime.proto and proto/admin.proto without protoc.

use std::path::{Path, PathBuf};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn main() -> Outcome {
    let folder = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    // Secrets never reach a log through `{:?}` (debug_redact in the table of wire facts).
    compile(&folder, "runtime", &["runtime.v1.AuthConfig", "runtime.v1.KeyValue"])?;
    compile(&folder, "admin", &[])
}

fn compile(folder: &Path, name: &str, secret: &[&str]) -> Outcome {
    let file = format!("{name}.proto");
    println!("cargo::rerun-if-changed={}", folder.join(&file).display());
    let mut compiler = protox::Compiler::new([folder])?;
    compiler.open_file(&file)?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    // Encoded by the compiler itself: `prost-types` does not know `debug_redact` and would drop it.
    std::fs::write(out.join(format!("{name}.bin")), compiler.encode_file_descriptor_set())?;
    let descriptors = compiler.file_descriptor_set();
    tonic_prost_build::configure()
        // Maps in a stable order: equal answers are equal bytes.
        .btree_map(".")
        // What is not built answers Unimplemented, so that a new call never breaks the build.
        .generate_default_stubs(true)
        .skip_debug(secret)
        .compile_fds(descriptors)?;
    Ok(())
}
