//! ListImages.

use bowline_cri_proto::v1;
use bowline_image::Images;

use crate::convert::image;

/// All images, or the one that the filter names. An empty name means all (crictl sends it).
pub(crate) fn list_images(images: &Images, filter: Option<v1::ImageFilter>) -> v1::ListImagesResponse {
    let name = filter.and_then(|filter| filter.image).map(|spec| spec.image);
    let images = images.list(name.as_deref()).iter().map(|found| image::to_cri(found)).collect();
    v1::ListImagesResponse { images }
}
