//! The images as readers see them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Stored;
use crate::digest::{Digest, ImageId};
use crate::image::Image;
use crate::reference::Reference;

/// What readers see. Replaced as a whole.
#[derive(Default)]
pub(super) struct Snapshot {
    pub(super) images: BTreeMap<ImageId, Arc<Image>>,
    names: BTreeMap<String, ImageId>,
}

pub(super) enum Match {
    None,
    One(ImageId),
    Many,
}

impl Snapshot {
    /// Full names go first, so that a tag named like an id's beginning means the tag.
    pub(super) fn find(&self, any: &str) -> Match {
        if let Some(id) = Digest::parse(any).or_else(|| Digest::parse_hex(any)).map(ImageId)
            && self.images.contains_key(&id)
        {
            return Match::One(id);
        }
        if let Ok(reference) = Reference::parse(any)
            && let Some(id) = self.names.get(&reference.to_string())
        {
            return Match::One(*id);
        }
        let hex = any.strip_prefix("sha256:").unwrap_or(any);
        if hex.is_empty() || hex.len() > 64 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Match::None;
        }
        let mut fitting = self.images.keys().filter(|id| id.0.hex().starts_with(hex));
        match (fitting.next(), fitting.next()) {
            (Some(id), None) => Match::One(*id),
            (None, _) => Match::None,
            (Some(_), Some(_)) => Match::Many,
        }
    }
}

pub(super) fn snapshot(names: &BTreeMap<String, Arc<Stored>>, pinned: &[String]) -> Snapshot {
    let mut images: BTreeMap<ImageId, Image> = BTreeMap::new();
    for (name, stored) in names {
        let image = images.entry(stored.id).or_insert_with(|| Image {
            id: stored.id,
            repo_tags: Vec::new(),
            repo_digests: Vec::new(),
            size: stored.size(),
            config: stored.config.clone(),
            config_json: stored.config_json.clone(),
            layers: stored.layers.clone(),
            annotations: stored.annotations.clone(),
            pinned: false,
        });
        image.annotations.retain(|key, value| stored.annotations.get(key) == Some(value));
        let list = if name.contains('@') { &mut image.repo_digests } else { &mut image.repo_tags };
        list.push(name.clone());
        image.pinned |= pinned.iter().any(|pattern| fits(pattern, name));
    }
    Snapshot {
        images: images.into_iter().map(|(id, image)| (id, Arc::new(image))).collect(),
        names: names.iter().map(|(name, stored)| (name.clone(), stored.id)).collect(),
    }
}

/// Whether a name fits a pattern of literal parts and `*`. A pattern without `*` may be a short name.
fn fits(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else {
        return pattern == name || Reference::parse(pattern).is_ok_and(|full| full.to_string() == name);
    };
    let Some(mut left) = name.strip_prefix(first) else { return false };
    let mut parts = rest.split('*').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return left.ends_with(part);
        }
        let Some(at) = left.find(part) else { return false };
        left = &left[at + part.len()..];
    }
    left.is_empty()
}
