//! Containers' uses of layers.

use std::sync::Arc;

use crate::digest::LayerName;
use crate::error::HoldError;
use crate::image::Image;
use crate::images::{Images, State};

/// An image whose layers stay until the owner releases them, whatever happens to the image.
#[derive(Clone, Debug)]
pub struct HeldImage {
    /// The image, as it was when the hold was taken.
    pub image: Arc<Image>,
    /// Its layer folders, bottom first.
    pub layers: Vec<LayerName>,
}

impl Images {
    /// Takes a use of the image's layers for `owner`. Asked again for the same image, it says the same.
    pub fn hold(&self, owner: &str, any: &str) -> Result<HeldImage, HoldError> {
        let missing = || HoldError::NoSuchImage(any.to_owned());
        let image = self.0.image(any).ok_or_else(missing)?;
        let mut state = self.0.state();
        // The image may have been removed since it was looked up; then its layers may be on their way out.
        if !state.names.values().any(|stored| stored.id == image.id) {
            return Err(missing());
        }
        state.take(owner, &image.layers)?;
        let layers = image.layers.clone();
        Ok(HeldImage { image, layers })
    }

    /// Takes the same use again after a restart, from the container's record.
    pub fn hold_layers(&self, owner: &str, layers: &[LayerName]) -> Result<(), HoldError> {
        self.0.state().take(owner, layers)
    }

    /// Ends a use. Call [`Images::collect`] afterwards to give the space back.
    pub fn release(&self, owner: &str) {
        self.0.state().holds.remove(owner);
    }
}

impl State {
    fn take(&mut self, owner: &str, layers: &[LayerName]) -> Result<(), HoldError> {
        if let Some(held) = self.holds.get(owner) {
            return if held == layers { Ok(()) } else { Err(HoldError::OwnerTaken(owner.to_owned())) };
        }
        if let Some(gone) = layers.iter().find(|name| !self.layers.contains_key(name)) {
            return Err(HoldError::NoSuchLayer(gone.clone()));
        }
        self.holds.insert(owner.to_owned(), layers.to_vec());
        Ok(())
    }
}
