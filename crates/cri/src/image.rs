//! The route table of ImageService.

use bowline_cri_proto::v1;
use bowline_cri_proto::v1::image_service_server::ImageService;
use bowline_image::Images;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use crate::answer::answer;
use crate::batches::batches;
use crate::codes;
use crate::convert::image;
use crate::image_fs_info::image_fs_info;
use crate::image_status::image_status;
use crate::list_images::list_images;
use crate::pull_image::pull_image;

/// The calls of ImageService.
pub struct ImageCalls {
    pub(crate) images: Images,
}

#[tonic::async_trait]
impl ImageService for ImageCalls {
    async fn list_images(
        &self,
        request: Request<v1::ListImagesRequest>,
    ) -> Result<Response<v1::ListImagesResponse>, Status> {
        answer("ListImages", async {
            let images = list_images(&self.images, request.into_inner().filter).collect();
            Ok(v1::ListImagesResponse { images })
        })
        .await
    }

    async fn stream_images(
        &self,
        request: Request<v1::StreamImagesRequest>,
    ) -> Result<Response<BoxStream<v1::StreamImagesResponse>>, Status> {
        answer("StreamImages", async {
            let found = list_images(&self.images, request.into_inner().filter);
            Ok(batches(found, |images| v1::StreamImagesResponse { images }))
        })
        .await
    }

    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Result<Response<v1::ImageStatusResponse>, Status> {
        answer("ImageStatus", async { image_status(&self.images, request.into_inner()) }).await
    }

    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> Result<Response<v1::PullImageResponse>, Status> {
        answer("PullImage", pull_image(&self.images, request)).await
    }

    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Result<Response<v1::RemoveImageResponse>, Status> {
        answer("RemoveImage", async {
            let asked = image::reference("image", request.into_inner().image);
            let asked = asked.map_err(|refused| codes::of_refused(&refused))?;
            self.images.remove(&asked.image).await.map_err(|error| codes::of_remove(&error))?;
            Ok(v1::RemoveImageResponse {})
        })
        .await
    }

    async fn image_fs_info(
        &self,
        _: Request<v1::ImageFsInfoRequest>,
    ) -> Result<Response<v1::ImageFsInfoResponse>, Status> {
        answer("ImageFsInfo", async { Ok(image_fs_info(&self.images)) }).await
    }
}
