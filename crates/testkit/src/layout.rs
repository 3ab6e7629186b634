//! Images from an OCI layout on disk, into the registry.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::registry::Registry;

const NAME: &str = "org.opencontainers.image.ref.name";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

impl Registry {
    /// Serves all images of an OCI layout whose names (`org.opencontainers.image.ref.name`) are `repository:tag`, as
    /// `skopeo copy .. oci:FOLDER:repository:tag` writes them. Gives the names.
    pub fn load_layout(&self, folder: &Path) -> Result<Vec<String>, String> {
        let text = read(&folder.join("index.json"))?;
        let index: Value = serde_json::from_slice(&text).map_err(|error| format!("index.json: {error}"))?;
        let mut names = Vec::new();
        for entry in index["manifests"].as_array().into_iter().flatten() {
            let name = entry["annotations"][NAME].as_str().unwrap_or_default();
            let (repository, tag) = name
                .rsplit_once(':')
                .ok_or_else(|| format!("index.json: the name {name:?} is no repository:tag"))?;
            self.load(folder, repository, tag, entry)?;
            names.push(name.to_owned());
        }
        Ok(names)
    }

    /// A manifest or index with everything below it, as this tag (or digest) and its digest.
    fn load(&self, folder: &Path, repository: &str, target: &str, entry: &Value) -> Result<(), String> {
        let digest = entry["digest"].as_str().ok_or("an entry without a digest")?;
        let bytes = blob(folder, digest)?;
        let manifest: Value =
            serde_json::from_slice(&bytes).map_err(|error| format!("manifest {digest}: {error}"))?;
        let kind = manifest["mediaType"].as_str().or(entry["mediaType"].as_str()).unwrap_or(MANIFEST);
        self.put_manifest(repository, target, kind, &bytes);
        self.put_manifest(repository, digest, kind, &bytes);
        for below in manifest["manifests"].as_array().into_iter().flatten() {
            let digest = below["digest"].as_str().ok_or("an entry without a digest")?;
            self.load(folder, repository, digest, below)?;
        }
        let parts = manifest["layers"].as_array().into_iter().flatten().chain([&manifest["config"]]);
        for digest in parts.filter_map(|part| part["digest"].as_str()) {
            self.put_blob(&blob(folder, digest)?);
        }
        Ok(())
    }
}

fn blob(folder: &Path, digest: &str) -> Result<Vec<u8>, String> {
    read(&folder.join("blobs").join(digest.replacen(':', "/", 1)))
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;
    use crate::ImageBuilder;

    #[test]
    fn an_image_of_a_layout_can_be_asked_for_by_its_name() {
        let image = ImageBuilder::new().build();
        let folder = std::env::temp_dir().join(format!("bowline-layout-{}", std::process::id()));
        let blobs = folder.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        for (digest, bytes) in image.blobs.iter().chain([(&image.digest(), &image.manifest)]) {
            fs::write(blobs.join(digest.trim_start_matches("sha256:")), bytes).unwrap();
        }
        let index = serde_json::json!({"manifests": [
            {"digest": image.digest(), "annotations": {NAME: "e2e/busybox:1"}}]});
        fs::write(folder.join("index.json"), index.to_string()).unwrap();
        let registry = Registry::start();
        assert_eq!(registry.load_layout(&folder).unwrap(), ["e2e/busybox:1"]);
        fs::remove_dir_all(&folder).unwrap();
        assert!(registry.load_layout(&folder).unwrap_err().contains("index.json"));
        for path in ["manifests/1".to_owned(), format!("blobs/{}", image.id)] {
            let mut connection = std::net::TcpStream::connect(registry.host()).unwrap();
            write!(connection, "GET /v2/e2e/busybox/{path} HTTP/1.0\r\n\r\n").unwrap();
            let mut answer = Vec::new();
            connection.read_to_end(&mut answer).unwrap();
            assert!(String::from_utf8_lossy(&answer).contains(" 200 "), "{path}");
        }
    }
}
