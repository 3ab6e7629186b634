//! What a running pull relies on before its image has a name.

use std::sync::Arc;

use super::Inner;
use crate::digest::{Digest, LayerName};
use crate::store::LayerMeta;

/// Keeps what a pull has gathered from being collected; ends with it.
pub(crate) struct Claim(Ticket);

impl Claim {
    /// The claim of this number, which is among the state's.
    pub(super) fn new(inner: Arc<Inner>, id: u64) -> Claim {
        Claim(Ticket { inner, id })
    }
}

/// A claim as blocking work sees it, which may outlive the pull by a moment: it must not commit anything once the claim has ended.
#[derive(Clone)]
pub(crate) struct Ticket {
    pub(crate) inner: Arc<Inner>,
    id: u64,
}

impl std::ops::Deref for Claim {
    type Target = Ticket;
    fn deref(&self) -> &Ticket {
        &self.0
    }
}

impl Ticket {
    /// Whether the pull still runs. Ask while holding the commit turn: the sweep after a cancelled pull takes it too.
    pub(crate) fn live(&self) -> bool {
        self.inner.state().claims.contains_key(&self.id)
    }

    /// The layer's folder, if it is there; claimed then.
    pub(crate) fn find_layer(&self, diff_id: Digest, chain_id: Digest, bottom: bool) -> Option<LayerName> {
        let mut state = self.inner.state();
        let name = state.find_layer(diff_id, chain_id, bottom)?;
        state.claims.get_mut(&self.id)?.layers.insert(name.clone());
        Some(name)
    }

    /// Whether a blob is there; claimed then.
    pub(crate) fn find_blob(&self, digest: Digest) -> bool {
        let mut state = self.inner.state();
        let there = state.blobs.contains_key(&digest);
        if there && let Some(claimed) = state.claims.get_mut(&self.id) {
            claimed.blobs.insert(digest);
        }
        there
    }

    /// Counts a layer that has just been moved into place. The caller holds the commit turn.
    pub(crate) fn add_layer(&self, name: &LayerName, meta: LayerMeta) {
        let mut state = self.inner.state();
        let (bytes, inodes) = meta.cost();
        state.bytes += bytes;
        state.inodes += inodes;
        state.old.remove(name);
        state.layers.insert(name.clone(), meta);
        if let Some(claimed) = state.claims.get_mut(&self.id) {
            claimed.layers.insert(name.clone());
        }
    }

    /// The same for a blob.
    pub(crate) fn add_blob(&self, digest: Digest, size: u64) {
        let mut state = self.inner.state();
        if state.blobs.insert(digest, size).is_none() {
            state.bytes += size;
            state.inodes += 1;
        }
        if let Some(claimed) = state.claims.get_mut(&self.id) {
            claimed.blobs.insert(digest);
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.inner.state().claims.remove(&self.0.id);
    }
}
