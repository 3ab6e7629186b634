//! Manifests, indexes and the choice of a platform. Reads what registries send; refuses what could be read in two ways.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::Platform;
use crate::digest::Digest;
use crate::error::PullError;

pub(crate) const MAX_MANIFEST: u64 = 4 << 20;
pub(crate) const MAX_CONFIG: u64 = 8 << 20;
pub(crate) const MAX_LAYERS: usize = 200;
pub(crate) const MAX_LAYER_BLOB: u64 = 32 << 30;
const MAX_INDEX_ENTRIES: usize = 1000;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// What we ask for, best first.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<DescriptorPlatform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) annotations: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct DescriptorPlatform {
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) variant: Option<String>,
}

/// A platform manifest that has been checked: a config, and at most 200 layers, each of a kind we unpack.
#[derive(Clone, Debug)]
pub(crate) struct Manifest {
    pub(crate) media_type: &'static str,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
    /// Docker's manifests have none.
    pub(crate) annotations: BTreeMap<String, String>,
}

/// What stood behind a manifest URL.
pub(crate) enum Document {
    Manifest(Box<Manifest>),
    Index(Vec<Descriptor>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    schema_version: u64,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

/// Reads a document. `said` is the media type that its descriptor or the HTTP answer gave, if any.
///
/// A document that is both manifest and index, or whose own media type contradicts its content or its descriptor, is refused:
/// GHSA-5j5w-g665-5m35, two readers must not see two images behind one digest.
pub(crate) fn parse(reference: &str, bytes: &[u8], said: Option<&str>) -> Result<Document, PullError> {
    let bad = |reason: String| PullError::BadManifest {
        reference: reference.to_owned(),
        what: "the manifest",
        reason,
    };
    let raw: Raw = serde_json::from_slice(bytes).map_err(|error| bad(error.to_string()))?;
    if raw.schema_version == 1 {
        return Err(bad(
            "it has schema version 1, which registries stopped serving in 2019; push the image again".into(),
        ));
    }
    if raw.schema_version != 2 {
        return Err(bad(format!("it has schema version {}", raw.schema_version)));
    }
    let own = raw.media_type.as_deref().filter(|t| !t.is_empty());
    let known = |t: &&str| [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX].contains(t);
    let said = said.map(|t| t.split(';').next().unwrap_or(t).trim()).filter(known);
    if let (Some(own), Some(said)) = (own, said)
        && own != said
    {
        return Err(bad(format!("it calls itself {own}, but was announced as {said}")));
    }
    let kind = own.or(said);
    match (raw.config, raw.layers, raw.manifests) {
        (Some(config), layers, None) => {
            let media_type = match kind {
                None | Some(OCI_MANIFEST) => OCI_MANIFEST,
                Some(DOCKER_MANIFEST) => DOCKER_MANIFEST,
                Some(other) => return Err(bad(format!("a manifest cannot be of type {other}"))),
            };
            let layers = layers.unwrap_or_default();
            check_layers(reference, &config, &layers)?;
            let annotations = raw.annotations.filter(|_| media_type == OCI_MANIFEST).unwrap_or_default();
            Ok(Document::Manifest(Box::new(Manifest { media_type, config, layers, annotations })))
        }
        (None, None, Some(entries)) => {
            if !matches!(kind, None | Some(OCI_INDEX) | Some(DOCKER_INDEX)) {
                return Err(bad(format!("an index cannot be of type {}", kind.unwrap_or_default())));
            }
            if entries.len() > MAX_INDEX_ENTRIES {
                return Err(PullError::TooLarge {
                    what: format!("the index of `{reference}`"),
                    reason: format!("{} entries, the limit is {MAX_INDEX_ENTRIES}", entries.len()),
                });
            }
            Ok(Document::Index(entries))
        }
        (None, None, None) => Err(bad("it has neither config nor manifests".into())),
        _ => Err(bad("it is both a manifest and an index".into())),
    }
}

fn check_layers(reference: &str, config: &Descriptor, layers: &[Descriptor]) -> Result<(), PullError> {
    let too_large = |what: String, reason: String| Err(PullError::TooLarge { what, reason });
    if layers.len() > MAX_LAYERS {
        return too_large(
            format!("`{reference}`"),
            format!("{} layers, the limit is {MAX_LAYERS}", layers.len()),
        );
    }
    if config.size > MAX_CONFIG {
        return too_large(
            format!("the config of `{reference}`"),
            format!("{} bytes, the limit is {MAX_CONFIG}", config.size),
        );
    }
    for layer in layers {
        if layer.size > MAX_LAYER_BLOB {
            return too_large(
                format!("layer {}", layer.digest),
                format!("{} bytes, the limit is {MAX_LAYER_BLOB}", layer.size),
            );
        }
        if Compression::of_media_type(&layer.media_type).is_none() {
            return Err(PullError::BadManifest {
                reference: reference.to_owned(),
                what: "the manifest",
                reason: format!(
                    "layer {} is of type `{}`, which is no image layer",
                    layer.digest, layer.media_type
                ),
            });
        }
    }
    Ok(())
}

/// What a layer's media type says of its compression. The magic of the stream decides; this must not contradict it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Compression {
    /// The media type says nothing reliable (docker's `.tar.gzip` is also found on plain tars).
    Any,
    Plain,
    Gzip,
    Zstd,
}

impl Compression {
    pub(crate) fn of_media_type(media_type: &str) -> Option<Compression> {
        // Foreign ("nondistributable") layers are taken from the registry like others; their `urls` are never followed.
        match media_type {
            "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar" => Some(Compression::Plain),
            "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip" => Some(Compression::Gzip),
            "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Some(Compression::Zstd),
            "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Some(Compression::Any),
            _ => None,
        }
    }
}

/// The entry of an index that suits `wanted` best; among equals the first.
pub(crate) fn choose<'a>(
    reference: &str,
    entries: &'a [Descriptor],
    wanted: &Platform,
) -> Result<&'a Descriptor, PullError> {
    let mut best: Option<(u32, &Descriptor)> = None;
    for entry in entries {
        let rank = match &entry.platform {
            // An index of one entry without a platform means that entry; rank below anything that says it fits.
            None if is_manifest_like(entry) => Some(u32::MAX),
            None => None,
            Some(offer) => rank(offer, wanted),
        };
        if let Some(rank) = rank
            && best.is_none_or(|(least, _)| rank < least)
        {
            best = Some((rank, entry));
        }
    }
    best.map(|(_, entry)| entry).ok_or_else(|| PullError::NoPlatform {
        reference: reference.to_owned(),
        wanted: show(&wanted.os, &wanted.architecture, wanted.variant.as_deref()),
        offered: offers(entries),
    })
}

fn is_manifest_like(entry: &Descriptor) -> bool {
    matches!(entry.media_type.as_str(), OCI_MANIFEST | DOCKER_MANIFEST | OCI_INDEX | DOCKER_INDEX | "")
}

fn offers(entries: &[Descriptor]) -> String {
    let mut shown: Vec<String> = entries
        .iter()
        .filter_map(|entry| entry.platform.as_ref())
        .filter(|offer| offer.os != "unknown")
        .map(|offer| show(&offer.os, &offer.architecture, offer.variant.as_deref()))
        .take(20)
        .collect();
    shown.sort();
    shown.dedup();
    if shown.is_empty() { "nothing".to_owned() } else { shown.join(", ") }
}

fn show(os: &str, architecture: &str, variant: Option<&str>) -> String {
    match variant {
        Some(variant) if !variant.is_empty() => format!("{os}/{architecture}/{variant}"),
        _ => format!("{os}/{architecture}"),
    }
}

/// How well `offer` suits `wanted`: 0 is best, `None` does not run.
pub(crate) fn rank(offer: &DescriptorPlatform, wanted: &Platform) -> Option<u32> {
    if offer.os != wanted.os {
        return None;
    }
    let level = |variant: Option<&str>, default: u32| match variant {
        None | Some("") => Some(default),
        Some(text) => text.strip_prefix('v')?.parse::<u32>().ok(),
    };
    // 64-bit machines run their 32-bit kin; anything native is better.
    const KIN: u32 = 1000;
    let arm_kin = (wanted.architecture == "arm64", offer.architecture.as_str());
    let (penalty, ours, theirs) = match (wanted.architecture.as_str(), offer.architecture.as_str()) {
        ("amd64", "amd64") => (0, level(wanted.variant.as_deref(), 1)?, level(offer.variant.as_deref(), 1)?),
        ("arm64", "arm64") => (0, level(wanted.variant.as_deref(), 8)?, level(offer.variant.as_deref(), 8)?),
        ("arm", "arm") => (0, level(wanted.variant.as_deref(), 7)?, level(offer.variant.as_deref(), 7)?),
        ("amd64", "386") => return Some(KIN),
        _ if arm_kin == (true, "arm") => (KIN, 8, level(offer.variant.as_deref(), 7)?),
        (ours, theirs) if ours == theirs => (0, 0, 0),
        _ => return None,
    };
    (theirs <= ours).then(|| penalty + (ours - theirs))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(text: &str, n: u8) -> Descriptor {
        let mut parts = text.split('/').map(str::to_owned);
        let platform = DescriptorPlatform {
            os: parts.next().unwrap_or_default(),
            architecture: parts.next().unwrap_or_default(),
            variant: parts.next(),
        };
        let platform = (!text.is_empty()).then_some(platform);
        let digest = Digest::of(&[n]);
        Descriptor { media_type: OCI_MANIFEST.into(), digest, size: 1, platform, annotations: None }
    }

    fn check(wanted: &str, offers: &[&str], expect: Option<usize>) {
        let mut parts = wanted.split('/').map(str::to_owned);
        let wanted = Platform {
            os: parts.next().unwrap(),
            architecture: parts.next().unwrap(),
            variant: parts.next(),
        };
        let entries: Vec<_> = offers.iter().enumerate().map(|(n, text)| offer(text, n as u8)).collect();
        let got = choose("x", &entries, &wanted).ok().map(|d| d.digest);
        assert_eq!(got, expect.map(|n| entries[n].digest), "{wanted:?} of {offers:?}");
    }

    #[test]
    fn the_best_platform_that_runs_is_chosen() {
        check("linux/amd64/v3", &["linux/arm64", "linux/amd64"], Some(1));
        check(
            "linux/amd64/v3",
            &["linux/amd64", "linux/amd64/v2", "linux/amd64/v3", "linux/amd64/v4"],
            Some(2),
        );
        check("linux/amd64/v1", &["linux/amd64/v2"], None);
        check("linux/amd64", &["windows/amd64", "unknown/unknown", "linux/386"], Some(2));
        check("linux/arm64/v8", &["linux/arm/v6", "linux/arm/v7", "linux/arm64"], Some(2));
        check("linux/arm64/v8", &["linux/arm/v6", "linux/arm/v7"], Some(1));
        check("linux/arm/v6", &["linux/arm/v7", "linux/arm/v5"], Some(1));
        check("linux/amd64", &["", "linux/amd64"], Some(1));
        check("linux/amd64", &[""], Some(0));
        check("linux/s390x", &["linux/amd64", "linux/s390x"], Some(1));
    }

    #[test]
    fn a_document_with_two_meanings_is_refused() {
        let config = r#"{"mediaType":"x","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":2}"#;
        for (text, said) in [
            (format!(r#"{{"schemaVersion":2,"config":{config},"layers":[],"manifests":[]}}"#), None),
            (
                format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","config":{config},"layers":[]}}"#),
                None,
            ),
            (
                format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{config}}}"#),
                Some(DOCKER_MANIFEST),
            ),
            (r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(), None),
            (r#"{"schemaVersion":2}"#.to_owned(), None),
        ] {
            assert!(
                matches!(parse("x", text.as_bytes(), said), Err(PullError::BadManifest { .. })),
                "{text}"
            );
        }
        let good = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[]}}"#);
        assert!(matches!(parse("x", good.as_bytes(), Some("text/plain")), Ok(Document::Manifest(_))));
    }
}
