//! ImageFsInfo.

use bowline_cri_proto::v1;
use bowline_image::Images;

use crate::convert::stats;

/// What images take, from running counters: kubelet and crictl open the image service with this call. Containers'
/// writable layers lie on the same file system, which the kubelet assumes when it is told of no other.
pub(crate) fn image_fs_info(images: &Images) -> v1::ImageFsInfoResponse {
    let usage = stats::images(&images.fs_info());
    v1::ImageFsInfoResponse { image_filesystems: vec![usage], container_filesystems: Vec::new() }
}
