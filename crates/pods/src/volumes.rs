//! Sources of mounts that are no paths of the host: the pod's /dev/shm, and images.
//!
//! A runtime spec knows only paths. The spec of a container names these sources by paths below a folder called after
//! the container's id, which no client can know before it asks; once the spec is compiled, they become what they stand
//! for. Nothing of the host is ever opened by such a path.

use std::collections::BTreeMap;
use std::ffi::CString;

use bowline_image::LayerName;
use bowline_launch_plan::{Source, Step};
use bowline_model::ContainerId;
use bowline_model::spec::ContainerSpec;
use bowline_plan::{Compiled, Descriptor};
use bowline_store::{ContainerRecord, ImageVolumeRecord};

use crate::PodError;
use crate::error::doing;
use crate::shared::Shared;

/// Where the pod's /dev/shm is for the spec of a container.
pub(crate) fn shm(id: &ContainerId) -> String {
    format!("/{id}/shm")
}

fn image_path(id: &ContainerId, mount: usize) -> String {
    format!("/{id}/images/{mount}")
}

/// Paths of the image volumes for the spec, by position of the mount.
pub(crate) fn image_paths(id: &ContainerId, volumes: &[ImageVolumeRecord]) -> BTreeMap<usize, String> {
    volumes.iter().map(|volume| (volume.mount, image_path(id, volume.mount))).collect()
}

/// Who holds the layers of an image volume.
fn owner(id: &ContainerId, mount: usize) -> String {
    format!("{id}/{mount}")
}

/// Finds the images that are volumes of a container, and keeps their layers. What was kept before a failure is the
/// caller's to give back, by [`release`].
pub(crate) fn hold(
    shared: &Shared,
    id: &ContainerId,
    spec: &ContainerSpec,
) -> Result<Vec<ImageVolumeRecord>, PodError> {
    let mut volumes = Vec::new();
    for (index, mount) in spec.mounts.iter().enumerate() {
        let Some(image) = &mount.image else { continue };
        // The kubelet looks for the first word.
        let failed = |field: &str, why: String| {
            PodError::State(format!("ImageVolumeMountFailed: mounts[{index}].{field}: {why}"))
        };
        let held = shared.images.hold(&owner(id, index), &image.image).map_err(|_| {
            failed("image", format!("the image `{}` is not there; pull it first", image.image))
        })?;
        let path = &mount.image_sub_path;
        let there = shared.images.holds_path(&held.layers, path);
        if !there.map_err(doing(format!("look for `{path}` in the image {}", image.image)))? {
            return Err(failed(
                "image_sub_path",
                format!("there is no `{path}` in the image {}", image.image),
            ));
        }
        volumes.push(ImageVolumeRecord {
            mount: index,
            id: held.image.id.to_string(),
            layers: held.layers.iter().map(ToString::to_string).collect(),
        });
    }
    Ok(volumes)
}

/// Takes the same use again after a restart.
pub(crate) fn hold_again(shared: &Shared, record: &ContainerRecord) {
    for volume in &record.image_volumes {
        let layers: Vec<LayerName> = volume.layers.iter().filter_map(|name| LayerName::parse(name)).collect();
        if let Err(error) = shared.images.hold_layers(&owner(&record.id, volume.mount), &layers) {
            tracing::error!(container = %record.id, error = %crate::chain(&error), "the layers of an image volume are gone");
        }
    }
}

/// Ends the use of all images by a container.
pub(crate) fn release(shared: &Shared, id: &ContainerId, spec: &ContainerSpec) {
    shared.images.release(&id.to_string());
    for (index, _) in spec.mounts.iter().enumerate().filter(|(_, mount)| mount.image.is_some()) {
        shared.images.release(&owner(id, index));
    }
}

/// Puts in what the paths stand for. `empty` is a folder that serves where an image has too few layers.
pub(crate) fn replace(
    compiled: &mut Compiled,
    record: &ContainerRecord,
    empty: &CString,
) -> Result<(), PodError> {
    put(compiled, &shm(&record.id), Source::Path { path: c"/shm".into(), recursive: false });
    for volume in &record.image_volumes {
        let name =
            |text: &str| CString::new(text).map_err(|error| PodError::failed("name an image volume", error));
        let mut lower: Vec<CString> =
            volume.layers.iter().rev().map(|layer| name(layer)).collect::<Result<_, _>>()?;
        // A layer by itself would be shown with its own label.
        if lower.is_empty() || (lower.len() == 1 && compiled.plan.mount_label.is_some()) {
            lower.push(empty.clone());
        }
        let asked = record.spec.mounts.get(volume.mount).map_or("", |mount| &mount.image_sub_path);
        let source = Source::Layers { lower, sub_path: name(asked)? };
        put(compiled, &image_path(&record.id, volume.mount), source);
    }
    Ok(())
}

/// Exchanges the descriptor of a path for another source.
fn put(compiled: &mut Compiled, stands_for: &str, source: Source) {
    let is_it = |descriptor: &Descriptor| matches!(descriptor, Descriptor::HostTree { path, .. } if path == stands_for);
    let Some(index) = compiled.descriptors.iter().position(is_it) else { return };
    compiled.descriptors.remove(index);
    let gone = index as u16;
    for step in &mut compiled.plan.steps {
        let Step::Mount { source: there, .. } = step else { continue };
        match there {
            Source::Tree { fd } if *fd == gone => *there = source.clone(),
            Source::Tree { fd } if *fd > gone => *fd -= 1,
            _ => {}
        }
    }
    for join in &mut compiled.plan.join_namespaces {
        if join.fd > gone {
            join.fd -= 1;
        }
    }
}
