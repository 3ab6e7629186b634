//! Garbage: what no name, container or running pull refers to.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::digest::{Digest, LayerName};
use crate::images::{Inner, State};
use crate::store::Trash;

impl Inner {
    /// Takes garbage out of sight and out of the counters before it returns; deletes it in the background.
    pub(crate) async fn sweep(self: &Arc<Self>) {
        let inner = self.clone();
        let swept = tokio::task::spawn_blocking(move || {
            let _turn = inner.commit_turn();
            let (layers, blobs) = inner.state().take_garbage(inner.recovered());
            let mut trash = Trash::default();
            for name in &layers {
                inner.store.trash_layer(name, &mut trash);
            }
            for digest in blobs {
                inner.store.trash_blob(digest, &mut trash);
            }
            trash
        });
        if let Ok(trash) = swept.await {
            tokio::task::spawn_blocking(move || trash.empty());
        }
    }
}

impl State {
    /// Forgets what nobody refers to, and names it. Until all containers have been replayed, layers of an earlier life stay.
    fn take_garbage(&mut self, recovered: bool) -> (Vec<LayerName>, Vec<Digest>) {
        let mut layers: BTreeSet<&LayerName> = self.holds.values().flatten().collect();
        let mut blobs: BTreeSet<Digest> = BTreeSet::new();
        for stored in self.names.values() {
            layers.extend(&stored.layers);
            blobs.insert(stored.descriptor.digest);
            blobs.extend(stored.blobs.iter().map(|blob| blob.digest));
        }
        for claimed in self.claims.values() {
            layers.extend(&claimed.layers);
            blobs.extend(&claimed.blobs);
        }
        if !recovered {
            layers.extend(&self.old);
        }
        let dead_layers: Vec<_> = self.layers.keys().filter(|name| !layers.contains(name)).cloned().collect();
        let dead_blobs: Vec<_> =
            self.blobs.keys().filter(|digest| !blobs.contains(digest)).copied().collect();
        for name in &dead_layers {
            if let Some(meta) = self.layers.remove(name) {
                let (bytes, inodes) = meta.cost();
                self.bytes = self.bytes.saturating_sub(bytes);
                self.inodes = self.inodes.saturating_sub(inodes);
            }
            self.old.remove(name);
        }
        for digest in &dead_blobs {
            if let Some(size) = self.blobs.remove(digest) {
                self.bytes = self.bytes.saturating_sub(size);
                self.inodes = self.inodes.saturating_sub(1);
            }
        }
        (dead_layers, dead_blobs)
    }
}
