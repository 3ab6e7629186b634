//! Import: an archive is spooled, its table of contents read, and each image then takes the way of a pull with the archive in the
//! registry's place.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

use super::members::{Members, Span};
use super::{CONTAINERD_NAME, ImportedImage};
use crate::digest::{Digest, Hasher};
use crate::error::{ImportError, PullError};
use crate::flight::Progress;
use crate::image::ConfigFile;
use crate::images::{Images, Inner, Stored};
use crate::layer::{self, Source};
use crate::manifest::{self, Compression, DOCKER_MANIFEST, Descriptor, Document, Manifest};
use crate::pull;
use crate::reference::Reference;
use crate::store::{REF_NAME, Workplace};

const MAX_ARCHIVE: u64 = 64 << 30;
const CHUNK: u64 = 1 << 20;
const MAX_IMAGES: usize = 1000;

/// An image found in an archive.
struct Found {
    names: Vec<Reference>,
    manifest_bytes: Bytes,
    descriptor: Descriptor,
    manifest: Manifest,
    config_bytes: Bytes,
    config: ConfigFile,
    /// Where the layers lie, by digest.
    layers: BTreeMap<Digest, Span>,
}

impl Images {
    /// Takes in all images of an archive: an OCI layout or what `docker save` writes, as tar, gzip or zstd. `name_override` names
    /// the image of an archive that holds one.
    pub async fn import(
        &self,
        archive: impl AsyncRead + Send + Unpin,
        name_override: Option<&str>,
    ) -> Result<Vec<ImportedImage>, ImportError> {
        let named = name_override.map(|name| {
            Reference::parse(name).map_err(|reason| PullError::BadReference {
                reference: name.to_owned(),
                reason: reason.to_owned(),
            })
        });
        let named = named.transpose()?;
        let inner = self.0.clone();
        let place = Arc::new(spool(&inner, archive).await?);
        let work = {
            let (inner, place) = (inner.clone(), place.clone());
            tokio::task::spawn_blocking(move || {
                let plain = place.tree.join("plain");
                let members = Members::open(&place.blob, &plain, MAX_ARCHIVE)?;
                let found = find_images(&inner, &members, named)?;
                Ok::<_, ImportError>((Arc::new(members), found))
            })
        };
        let joined = work.await.map_err(|error| ImportError::Io {
            action: "read the archive",
            source: io::Error::other(error),
        })?;
        let (members, found) = joined?;
        let mut imported = Vec::new();
        for image in found {
            imported.push(take(&inner, &members, image).await?);
        }
        Ok(imported)
    }
}

async fn spool(inner: &Inner, archive: impl AsyncRead + Send + Unpin) -> Result<Workplace, ImportError> {
    let failed = |action| move |source| ImportError::Io { action, source };
    let place = inner.store.workplace().map_err(failed("make a temporary file"))?;
    let mut file = tokio::fs::File::create_new(&place.blob).await.map_err(failed("make a temporary file"))?;
    let size = tokio::io::copy(&mut archive.take(MAX_ARCHIVE + 1), &mut file).await;
    let size = size.map_err(failed("read the archive"))?;
    file.flush().await.map_err(failed("write a temporary file"))?;
    if size > MAX_ARCHIVE {
        return Err(ImportError::BadArchive(format!("it is larger than {MAX_ARCHIVE} bytes")));
    }
    Ok(place)
}

fn find_images(
    inner: &Inner,
    members: &Members,
    named: Option<Reference>,
) -> Result<Vec<Found>, ImportError> {
    let mut found = if members.find("index.json").is_some() {
        from_layout(inner, members)?
    } else if members.find("manifest.json").is_some() {
        from_docker(members)?
    } else {
        return Err(ImportError::BadArchive("it has neither index.json nor manifest.json".to_owned()));
    };
    if let Some(name) = named {
        let [image] = found.as_mut_slice() else {
            let text = format!("it holds {} images, so one name cannot be theirs", found.len());
            return Err(ImportError::BadArchive(text));
        };
        image.names = vec![name];
    }
    for image in &mut found {
        if image.names.is_empty() {
            let anonymous =
                Reference::parse("localhost/imported").map_err(|e| ImportError::BadArchive(e.to_owned()))?;
            image.names = vec![anonymous.with_digest(image.descriptor.digest)];
        }
    }
    Ok(found)
}

#[derive(Deserialize)]
struct LayoutIndex {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

fn from_layout(inner: &Inner, members: &Members) -> Result<Vec<Found>, ImportError> {
    let bad = |text: String| ImportError::BadArchive(text);
    let index: LayoutIndex = serde_json::from_slice(&members.read("index.json")?)
        .map_err(|error| bad(format!("index.json: {error}")))?;
    if index.manifests.len() > MAX_IMAGES {
        return Err(bad(format!("it has {} images, the limit is {MAX_IMAGES}", index.manifests.len())));
    }
    let mut found: Vec<Found> = Vec::new();
    for entry in &index.manifests {
        let note =
            |key: &str| entry.annotations.as_ref().and_then(|notes| notes.get(key)).map(String::as_str);
        // A bare tag is no name: `latest` would become docker.io/library/latest.
        let full =
            note(CONTAINERD_NAME).or_else(|| note(REF_NAME).filter(|name| name.contains(['/', ':', '@'])));
        let name = full.and_then(|name| Reference::parse(name).ok());
        let Some((descriptor, bytes, manifest)) = manifest_below(inner, members, entry)? else { continue };
        if let Some(same) = found.iter_mut().find(|other| other.descriptor.digest == descriptor.digest) {
            same.names.extend(name);
            continue;
        }
        let config_bytes = blob(members, &manifest.config)?;
        let config =
            serde_json::from_slice(&config_bytes).map_err(|error| bad(format!("a config: {error}")))?;
        let mut layers = BTreeMap::new();
        for layer in &manifest.layers {
            let path = format!("blobs/sha256/{}", layer.digest.hex());
            let span =
                members.find(&path).ok_or_else(|| bad(format!("layer {} is missing", layer.digest)))?;
            layers.insert(layer.digest, span);
        }
        let names = name.into_iter().collect();
        found.push(Found {
            names,
            manifest_bytes: bytes,
            descriptor,
            manifest,
            config_bytes,
            config,
            layers,
        });
    }
    Ok(found)
}

/// The manifest that an entry of index.json stands for on this machine. `None`: an attestation or another platform's.
fn manifest_below(
    inner: &Inner,
    members: &Members,
    entry: &Descriptor,
) -> Result<Option<(Descriptor, Bytes, Manifest)>, ImportError> {
    if let Some(platform) = &entry.platform
        && manifest::rank(platform, &inner.config.platform).is_none()
    {
        return Ok(None);
    }
    let mut descriptor = entry.clone();
    for _ in 0..4 {
        let bytes = blob(members, &descriptor)?;
        match manifest::parse("archive", &bytes, Some(&descriptor.media_type))? {
            Document::Manifest(manifest) => {
                let media_type = manifest.media_type.to_owned();
                let descriptor = Descriptor { media_type, annotations: None, platform: None, ..descriptor };
                return Ok(Some((descriptor, bytes, *manifest)));
            }
            Document::Index(entries) => {
                descriptor = manifest::choose("archive", &entries, &inner.config.platform)?.clone();
            }
        }
    }
    Err(ImportError::BadArchive("its indexes are nested too deeply".to_owned()))
}

fn blob(members: &Members, descriptor: &Descriptor) -> Result<Bytes, ImportError> {
    let bytes = members.read(&format!("blobs/sha256/{}", descriptor.digest.hex()))?;
    if Digest::of(&bytes) != descriptor.digest {
        return Err(ImportError::BadArchive(format!("blob {} does not match its digest", descriptor.digest)));
    }
    Ok(bytes.into())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

fn from_docker(members: &Members) -> Result<Vec<Found>, ImportError> {
    let bad = |text: String| ImportError::BadArchive(text);
    let list: Vec<DockerImage> = serde_json::from_slice(&members.read("manifest.json")?)
        .map_err(|error| bad(format!("manifest.json: {error}")))?;
    if list.len() > MAX_IMAGES {
        return Err(bad(format!("it has {} images, the limit is {MAX_IMAGES}", list.len())));
    }
    let mut found = Vec::new();
    for image in list {
        if image.layers.len() > manifest::MAX_LAYERS {
            return Err(bad(format!("an image has {} layers", image.layers.len())));
        }
        let config_bytes: Bytes = members.read(&image.config)?.into();
        let config: ConfigFile = serde_json::from_slice(&config_bytes)
            .map_err(|error| bad(format!("`{}`: {error}", image.config)))?;
        let mut layers = BTreeMap::new();
        let mut descriptors = Vec::new();
        for path in &image.layers {
            let span = members.find(path).ok_or_else(|| bad(format!("layer `{path}` is missing")))?;
            let (digest, media_type) = weigh(members, span)?;
            layers.insert(digest, span);
            descriptors.push(json!({"mediaType": media_type, "digest": digest, "size": span.size}));
        }
        let text = json!({
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": {
                "mediaType": "application/vnd.docker.container.image.v1+json",
                "digest": Digest::of(&config_bytes),
                "size": config_bytes.len(),
            },
            "layers": descriptors,
        });
        let manifest_bytes = Bytes::from(text.to_string());
        let Document::Manifest(manifest) = manifest::parse("archive", &manifest_bytes, None)? else {
            return Err(bad("internal: a manifest became an index".to_owned()));
        };
        let descriptor = Descriptor {
            media_type: DOCKER_MANIFEST.to_owned(),
            digest: Digest::of(&manifest_bytes),
            size: manifest_bytes.len() as u64,
            platform: None,
            annotations: None,
        };
        let tags = image.repo_tags.unwrap_or_default();
        let names = tags.iter().filter_map(|tag| Reference::parse(tag).ok()).collect();
        found.push(Found {
            names,
            manifest_bytes,
            descriptor,
            manifest: *manifest,
            config_bytes,
            config,
            layers,
        });
    }
    Ok(found)
}

/// Digest and media type of a layer that an archive names only by its path.
fn weigh(members: &Members, span: Span) -> Result<(Digest, &'static str), ImportError> {
    let mut hasher = Hasher::new();
    let mut head = Vec::new();
    let mut buffer = vec![0u8; usize::try_from(CHUNK).unwrap_or(1)];
    let mut at = 0;
    while at < span.size {
        let want = usize::try_from((span.size - at).min(CHUNK)).unwrap_or(1);
        let read = members.file.read_exact_at(&mut buffer[..want], span.offset + at);
        read.map_err(|source| ImportError::Io { action: "read the archive", source })?;
        if at == 0 {
            head = buffer[..want.min(4)].to_vec();
        }
        hasher.update(&buffer[..want]);
        at += want as u64;
    }
    let media_type = match crate::unpack::detect(&head) {
        Compression::Zstd => "application/vnd.docker.image.rootfs.diff.tar.zstd",
        Compression::Gzip => "application/vnd.docker.image.rootfs.diff.tar.gzip",
        Compression::Plain | Compression::Any => "application/vnd.docker.image.rootfs.diff.tar",
    };
    Ok((hasher.finish(), media_type))
}

/// Layers come out of the archive's file.
struct FromArchive<'a> {
    members: &'a Arc<Members>,
    layers: &'a BTreeMap<Digest, Span>,
}

impl Source for FromArchive<'_> {
    async fn stream(
        &self,
        blob: &Descriptor,
        to: mpsc::Sender<Bytes>,
        progress: &Progress,
    ) -> Result<(), PullError> {
        let failed = |error| PullError::io("read the archive", error);
        let span = self.layers.get(&blob.digest).copied();
        let span =
            span.ok_or_else(|| PullError::Internal(format!("layer {} was not looked up", blob.digest)))?;
        let mut at = 0;
        while at < span.size {
            let (members, want, from) = (self.members.clone(), (span.size - at).min(CHUNK), span.offset + at);
            let read = tokio::task::spawn_blocking(move || {
                let mut bytes = vec![0u8; usize::try_from(want).unwrap_or(0)];
                members.file.read_exact_at(&mut bytes, from).map(|()| Bytes::from(bytes))
            });
            let bytes = read.await.map_err(io::Error::other).and_then(|bytes| bytes).map_err(failed)?;
            at += bytes.len() as u64;
            progress.bytes_done.fetch_add(bytes.len() as u64, Relaxed);
            if to.send(bytes).await.is_err() {
                break;
            }
        }
        Ok(())
    }
}

async fn take(
    inner: &Arc<Inner>,
    members: &Arc<Members>,
    found: Found,
) -> Result<ImportedImage, ImportError> {
    let Some(first) = found.names.first() else {
        return Err(ImportError::BadArchive("an image without a name".to_owned()));
    };
    let claim = inner.claim();
    let orders = pull::orders(first, &found.manifest, &found.config)?;
    let progress = Progress::new(first.to_string());
    let source = FromArchive { members, layers: &found.layers };
    let layers = layer::obtain_all(inner, &source, &claim, orders, &progress).await?;
    let config_json = found.config_bytes.to_vec().into();
    let stored = Stored::new(found.descriptor, &found.manifest, config_json, found.config, layers);
    let names: Vec<String> = found.names.iter().map(Reference::to_string).collect();
    let id = pull::commit(&claim, stored, found.manifest_bytes, found.config_bytes, names.clone()).await?;
    Ok(ImportedImage { id, names })
}
