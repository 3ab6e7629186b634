//! ImageStatus.

use std::collections::BTreeMap;

use bowline_cri_proto::v1;
use bowline_image::{Image, Images};
use serde_json::{Value, json};
use tonic::Status;

use crate::codes;
use crate::convert::image;

/// An image by tag, bare name, digest or id. One that is not there is no error: the answer has no image.
pub(crate) fn image_status(
    images: &Images,
    request: v1::ImageStatusRequest,
) -> Result<v1::ImageStatusResponse, Status> {
    let asked = image::reference("image", request.image).map_err(|refused| codes::of_refused(&refused))?;
    let Some(found) = images.resolve(&asked.image) else { return Ok(v1::ImageStatusResponse::default()) };
    let info = match request.verbose {
        true => BTreeMap::from([("info".to_owned(), info(&found).to_string())]),
        false => BTreeMap::new(),
    };
    Ok(v1::ImageStatusResponse { image: Some(image::to_cri(&found)), info })
}

/// What `crictl inspecti` prints.
fn info(image: &Image) -> Value {
    json!({
        "imageSpec": serde_json::from_slice::<Value>(&image.config_json).unwrap_or(Value::Null),
        "layers": image.layers.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}
