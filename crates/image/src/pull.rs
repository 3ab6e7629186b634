//! The order of a pull. On disk the name comes last, so nothing before it needs undoing: what a failed pull leaves is garbage.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;

use crate::digest::{Digest, ImageId};
use crate::error::PullError;
use crate::flight::{Progress, Stage};
use crate::image::ConfigFile;
use crate::images::{Claim, Inner, Stored};
use crate::layer::{self, Order};
use crate::manifest::{self, Descriptor, DescriptorPlatform, Document, Manifest};
use crate::reference::Reference;
use crate::registry::{Auth, Session};

/// How many indexes may lie above a manifest.
const MAX_NESTING: usize = 3;

/// Brings `reference` into the store.
pub(crate) async fn pull(
    inner: &Arc<Inner>,
    reference: &Reference,
    auth: Option<&Auth>,
    progress: &Arc<Progress>,
) -> Result<ImageId, PullError> {
    let claim = inner.claim();
    let session = Session::new(&inner.config, &inner.trust, reference, auth)?;

    let (resolved, bytes, descriptor, manifest) = manifest_of(inner, &session, reference).await?;
    let (config_bytes, config) = config_of(inner, &session, &claim, reference, &manifest).await?;
    check_platform(inner, reference, &config)?;
    let orders = orders(reference, &manifest, &config)?;

    progress.bytes_total.store(orders.iter().map(|order| order.blob.size).sum(), Relaxed);
    progress.layers_total.store(orders.len(), Relaxed);
    progress.enter(Stage::Layers);
    let layers = layer::obtain_all(inner, &session, &claim, orders, progress).await?;

    progress.enter(Stage::Commit);
    let stored = Stored::new(descriptor, &manifest, config_bytes.to_vec().into(), config, layers);
    let names = [reference.to_string(), reference.with_digest(resolved).to_string()];
    commit(&claim, stored, bytes, config_bytes, names.to_vec()).await
}

/// What the reference stands for here: the digest it resolved to, and the manifest for our platform.
async fn manifest_of(
    inner: &Inner,
    session: &Session,
    reference: &Reference,
) -> Result<(Digest, Bytes, Descriptor, Manifest), PullError> {
    let shown = reference.to_string();
    let first = session.manifest(reference.digest(), None).await?;
    let resolved = first.digest;
    let mut fetched = first;
    for _ in 0..=MAX_NESTING {
        match manifest::parse(&shown, &fetched.bytes, fetched.media_type.as_deref())? {
            Document::Manifest(manifest) => {
                let descriptor = Descriptor {
                    media_type: manifest.media_type.to_owned(),
                    digest: fetched.digest,
                    size: fetched.bytes.len() as u64,
                    platform: None,
                    annotations: None,
                };
                return Ok((resolved, fetched.bytes, descriptor, *manifest));
            }
            Document::Index(entries) => {
                let chosen = manifest::choose(&shown, &entries, &inner.config.platform)?;
                fetched = session.manifest(Some(chosen.digest), Some(chosen)).await?;
            }
        }
    }
    Err(PullError::BadManifest {
        reference: shown,
        what: "the index",
        reason: format!("indexes are nested deeper than {MAX_NESTING}"),
    })
}

async fn config_of(
    inner: &Inner,
    session: &Session,
    claim: &Claim,
    reference: &Reference,
    manifest: &Manifest,
) -> Result<(Bytes, ConfigFile), PullError> {
    let digest = manifest.config.digest;
    let kept = match claim.find_blob(digest) {
        true => tokio::fs::read(inner.store.blob_path(digest))
            .await
            .ok()
            .filter(|bytes| Digest::of(bytes) == digest),
        false => None,
    };
    let bytes = match kept {
        Some(bytes) => Bytes::from(bytes),
        None => session.small_blob(&manifest.config, manifest::MAX_CONFIG, "config").await?,
    };
    let config = serde_json::from_slice(&bytes).map_err(|error| PullError::BadManifest {
        reference: reference.to_string(),
        what: "the config",
        reason: error.to_string(),
    })?;
    Ok((bytes, config))
}

/// An image that names another platform would only fail later, with "exec format error".
fn check_platform(inner: &Inner, reference: &Reference, config: &ConfigFile) -> Result<(), PullError> {
    let (Some(os), Some(architecture)) = (config.os.as_deref(), config.architecture.as_deref()) else {
        return Ok(());
    };
    if os.is_empty() || architecture.is_empty() {
        return Ok(());
    }
    // Not the variant: single manifests carry it too unreliably to refuse an image for it.
    let offer =
        DescriptorPlatform { os: os.to_owned(), architecture: architecture.to_owned(), variant: None };
    let wanted = &inner.config.platform;
    if manifest::rank(&offer, wanted).is_some() {
        return Ok(());
    }
    Err(PullError::NoPlatform {
        reference: reference.to_string(),
        wanted: format!("{}/{}", wanted.os, wanted.architecture),
        offered: format!("{os}/{architecture}"),
    })
}

/// Pairs layers with their diff ids, bottom first.
pub(crate) fn orders(
    reference: &Reference,
    manifest: &Manifest,
    config: &ConfigFile,
) -> Result<Vec<Order>, PullError> {
    let diff_ids = config.diff_ids();
    if diff_ids.len() != manifest.layers.len() {
        return Err(PullError::BadManifest {
            reference: reference.to_string(),
            what: "the config",
            reason: format!("it names {} layers, the manifest {}", diff_ids.len(), manifest.layers.len()),
        });
    }
    let mut parents = None;
    let pairs = manifest.layers.iter().zip(diff_ids);
    Ok(pairs
        .map(|(blob, &diff_id)| {
            let chain_id = diff_id.chain(parents);
            let bottom = parents.is_none();
            parents = Some(chain_id);
            Order { blob: blob.clone(), diff_id, chain_id, bottom }
        })
        .collect())
}

/// Writes manifest and config, then the names; the flush to disk follows in the background.
pub(crate) async fn commit(
    claim: &Claim,
    stored: Stored,
    manifest: Bytes,
    config: Bytes,
    names: Vec<String>,
) -> Result<ImageId, PullError> {
    let ticket = (*claim).clone();
    let work = tokio::task::spawn_blocking(move || {
        let id = stored.id;
        let (inner, failed) =
            (&ticket.inner, |action: &'static str| move |error| PullError::io(action, error));
        {
            let _turn = inner.commit_turn();
            if !ticket.live() {
                return Err(PullError::Internal("the pull was cancelled".to_owned()));
            }
            for (digest, bytes) in [(stored.descriptor.digest, &manifest), (id.0, &config)] {
                if !ticket.find_blob(digest) {
                    inner.store.write_blob(digest, bytes).map_err(failed("write a blob"))?;
                    ticket.add_blob(digest, bytes.len() as u64);
                }
            }
        }
        let stored = Arc::new(stored);
        let name_it = |all: &mut std::collections::BTreeMap<String, Arc<Stored>>| {
            if ticket.live() {
                all.extend(names.into_iter().map(|name| (name, stored.clone())));
            }
        };
        inner.rename(name_it).map_err(failed("write the image index"))?;
        Ok(id)
    });
    let id = work.await.map_err(|error| PullError::Internal(format!("the commit died: {error}")))??;
    tokio::spawn(claim.inner.clone().flush());
    Ok(id)
}
