//! ListImages.

use bowline_cri_proto::v1;
use bowline_image::Images;

use crate::convert::image;

/// All images, or the one that the filter names. An empty name means all (crictl sends it).
pub(crate) fn list_images(
    images: &Images,
    filter: Option<v1::ImageFilter>,
) -> impl Iterator<Item = v1::Image> + Send + use<> {
    let name = filter.and_then(|filter| filter.image).map(|spec| spec.image);
    images.list(name.as_deref()).into_iter().map(|found| image::to_cri(&found))
}
