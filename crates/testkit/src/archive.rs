//! Images as archives: OCI layout, and what `docker save` writes.

use std::collections::BTreeMap;

use serde_json::json;

use crate::builder::BuiltImage;
use crate::layer::{Layer, sha256};

/// An OCI archive with these images under these names.
pub fn oci_archive(images: &[(&str, &BuiltImage)]) -> Vec<u8> {
    let mut blobs: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut entries = Vec::new();
    for (name, image) in images {
        blobs.extend(image.blobs.clone());
        blobs.extend(image.manifests.iter().map(|(digest, (_, bytes))| (digest.clone(), bytes.clone())));
        blobs.insert(image.digest(), image.manifest.clone());
        entries.push(json!({
            "mediaType": image.media_type, "digest": image.digest(), "size": image.manifest.len(),
            "annotations": {"org.opencontainers.image.ref.name": name},
        }));
    }
    let index = json!({"schemaVersion": 2, "manifests": entries}).to_string();
    let mut out = Layer::new()
        .dir("blobs", 0o755)
        .dir("blobs/sha256", 0o755)
        .file("oci-layout", 0o644, r#"{"imageLayoutVersion":"1.0.0"}"#)
        .file("index.json", 0o644, index);
    for (digest, bytes) in blobs {
        out = out.file(&format!("blobs/sha256/{}", digest.trim_start_matches("sha256:")), 0o644, bytes);
    }
    out.tar()
}

/// What `docker save` wrote before it learned OCI: `manifest.json`, a config, and plain layer tars.
pub fn docker_archive(names: &[&str], config: &[u8], layers: &[Layer]) -> Vec<u8> {
    let config_name = format!("{}.json", sha256(config).trim_start_matches("sha256:"));
    let mut out = Layer::new();
    let mut paths = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let path = format!("{number:064}/layer.tar");
        out = out.dir(&format!("{number:064}"), 0o755).file(&path, 0o644, layer.tar());
        paths.push(path);
    }
    let manifest = json!([{"Config": config_name, "RepoTags": names, "Layers": paths}]).to_string();
    out.file(&config_name, 0o644, config).file("manifest.json", 0o644, manifest).tar()
}
