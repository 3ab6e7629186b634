//! Export: an OCI archive that `docker load` reads too.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use super::CONTAINERD_NAME;
use crate::digest::Digest;
use crate::error::ExportError;
use crate::images::{Images, Stored};
use crate::manifest::OCI_INDEX;
use crate::reference::Reference;
use crate::store::REF_NAME;

const BLOCK: u64 = 512;

impl Images {
    /// Writes images into one archive. An image named by tag or digest gets that name there; one named by id all its tags.
    pub async fn export(
        &self,
        names: &[String],
        mut out: impl AsyncWrite + Send + Unpin,
    ) -> Result<(), ExportError> {
        let written = |action| move |source| ExportError::Io { action, source };
        // Nothing of it may be collected while it is being written.
        let claim = self.0.claim();
        let mut images: Vec<(Arc<Stored>, Vec<String>)> = Vec::new();
        for name in names {
            let (stored, tags) = self.exported(name)?;
            match images.iter_mut().find(|(other, _)| other.descriptor.digest == stored.descriptor.digest) {
                Some((_, all)) => all.extend(tags),
                None => images.push((stored, tags)),
            }
        }
        let mut blobs: BTreeMap<Digest, u64> = BTreeMap::new();
        for (stored, _) in &images {
            for blob in std::iter::once(&stored.descriptor).chain(&stored.blobs) {
                if !claim.find_blob(blob.digest) {
                    return Err(ExportError::BlobNotKept(blob.digest));
                }
                blobs.insert(blob.digest, blob.size);
            }
        }
        let small = [
            ("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#.to_owned()),
            ("index.json", index(&images).to_string()),
            ("manifest.json", docker_manifest(&images).to_string()),
        ];
        for folder in ["blobs/", "blobs/sha256/"] {
            out.write_all(&header(folder, 0, b'5')).await.map_err(written("write the archive"))?;
        }
        for (name, text) in small {
            let entry = member(name, text.as_bytes());
            out.write_all(&entry).await.map_err(written("write the archive"))?;
        }
        for (digest, size) in blobs {
            let path = format!("blobs/sha256/{}", digest.hex());
            out.write_all(&header(&path, size, b'0')).await.map_err(written("write the archive"))?;
            let file = tokio::fs::File::open(self.0.store.blob_path(digest))
                .await
                .map_err(written("read a blob"))?;
            let mut file = tokio::io::BufReader::with_capacity(256 << 10, file);
            let copied =
                tokio::io::copy_buf(&mut file, &mut out).await.map_err(written("write the archive"))?;
            if copied != size {
                let source = io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("{digest} has {copied} bytes, not {size}"),
                );
                return Err(ExportError::Io { action: "read a blob", source });
            }
            out.write_all(&padding(size)).await.map_err(written("write the archive"))?;
        }
        out.write_all(&[0; 1024]).await.map_err(written("write the archive"))?;
        out.flush().await.map_err(written("write the archive"))
    }

    fn exported(&self, any: &str) -> Result<(Arc<Stored>, Vec<String>), ExportError> {
        let missing = || ExportError::NoSuchImage(any.to_owned());
        let image = self.resolve(any).ok_or_else(missing)?;
        let state = self.0.state();
        if let Ok(reference) = Reference::parse(any)
            && let Some(stored) = state.names.get(&reference.to_string())
        {
            return Ok((stored.clone(), vec![reference.to_string()]));
        }
        let names: Vec<String> = match image.repo_tags.is_empty() {
            true => image.repo_digests.clone(),
            false => image.repo_tags.clone(),
        };
        let stored = names.first().and_then(|name| state.names.get(name)).ok_or_else(missing)?;
        Ok((stored.clone(), names))
    }
}

fn index(images: &[(Arc<Stored>, Vec<String>)]) -> Value {
    let entry = |stored: &Stored, name: &String| {
        // What docker and containerd write: the tag here, the whole name there. A digest stands for itself.
        let tag = Reference::parse(name).ok().and_then(|reference| reference.tag().map(str::to_owned));
        json!({
            "mediaType": stored.descriptor.media_type,
            "digest": stored.descriptor.digest,
            "size": stored.descriptor.size,
            "annotations": {CONTAINERD_NAME: name, REF_NAME: tag.unwrap_or_else(|| name.clone())},
        })
    };
    let entries: Vec<Value> =
        images.iter().flat_map(|(stored, names)| names.iter().map(|name| entry(stored, name))).collect();
    json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})
}

fn docker_manifest(images: &[(Arc<Stored>, Vec<String>)]) -> Value {
    let path = |digest: Digest| format!("blobs/sha256/{}", digest.hex());
    let entries = images.iter().map(|(stored, names)| {
        let tags: Vec<&String> = names.iter().filter(|name| !name.contains('@')).collect();
        let layers: Vec<String> = stored.blobs.iter().skip(1).map(|blob| path(blob.digest)).collect();
        json!({"Config": path(stored.id.0), "RepoTags": tags, "Layers": layers})
    });
    Value::Array(entries.collect())
}

fn member(name: &str, content: &[u8]) -> Vec<u8> {
    let size = content.len() as u64;
    let mut out = header(name, size, b'0').to_vec();
    out.extend_from_slice(content);
    out.extend_from_slice(&padding(size));
    out
}

fn padding(size: u64) -> Vec<u8> {
    vec![0; usize::try_from(size.next_multiple_of(BLOCK) - size).unwrap_or(0)]
}

/// A ustar header with owner and time 0, so that the same images give the same archive.
fn header(path: &str, size: u64, kind: u8) -> [u8; 512] {
    let mut block = [0u8; 512];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, path.as_bytes());
    put(100, if kind == b'5' { b"0000755\0" } else { b"0000644\0" });
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    if size < 1 << 33 {
        put(124, format!("{size:011o}\0").as_bytes());
    } else {
        put(124, &[0x80]);
        put(128, &size.to_be_bytes());
    }
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, &[kind]);
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}
