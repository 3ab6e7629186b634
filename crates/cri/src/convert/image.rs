//! Images, both ways.

use bowline_cri_proto::v1;
use bowline_image::{Auth, Image};
use bowline_model::spec::ImageRef;

use super::{Refused, check, invalid, pod};

/// An image by whatever name.
pub(crate) fn reference(field: &str, asked: Option<v1::ImageSpec>) -> Result<ImageRef, Refused> {
    let asked = asked.unwrap_or_default();
    let field_image = format!("{field}.image");
    if asked.image.is_empty() {
        return Err(invalid(field_image, "must not be empty"));
    }
    check::name(&field_image, &asked.image)?;
    pod::handler(&format!("{field}.runtime_handler"), &asked.runtime_handler)?;
    Ok(ImageRef {
        image: asked.image,
        user_specified: asked.user_specified_image,
        annotations: asked.annotations,
        runtime_handler: asked.runtime_handler,
    })
}

/// The image as it was asked for.
pub(crate) fn echo(image: &ImageRef) -> v1::ImageSpec {
    v1::ImageSpec {
        image: image.image.clone(),
        annotations: image.annotations.clone(),
        user_specified_image: image.user_specified.clone(),
        runtime_handler: image.runtime_handler.clone(),
        image_ref: String::new(),
    }
}

/// An image of the store. The same whatever name it was asked for by, `spec` included.
pub(crate) fn to_cri(image: &Image) -> v1::Image {
    let (uid, username) = user(&image.config.user);
    let id = image.id.to_string();
    v1::Image {
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        // Clients take size 0 for "no such image".
        size: image.size.max(1),
        uid: uid.map(|value| v1::Int64Value { value }),
        username,
        spec: Some(v1::ImageSpec {
            image: id.clone(),
            annotations: image.annotations.clone(),
            ..Default::default()
        }),
        pinned: image.pinned,
        id,
    }
}

/// USER without its group: a number or a name, never both. Neither means root to the kubelet.
fn user(user: &str) -> (Option<i64>, String) {
    let name = user.split(':').next().unwrap_or_default();
    match name.parse::<u32>() {
        Ok(uid) => (Some(i64::from(uid)), String::new()),
        Err(_) => (None, name.to_owned()),
    }
}

/// Credentials of a pull.
pub(crate) fn auth(asked: v1::AuthConfig) -> Auth {
    Auth {
        username: asked.username,
        password: asked.password,
        auth: asked.auth,
        server_address: asked.server_address,
        identity_token: asked.identity_token,
        registry_token: asked.registry_token,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_a_number_or_a_name() {
        for (text, uid, name) in [
            ("", None, ""),
            ("0", Some(0), ""),
            ("1000:1000", Some(1000), ""),
            ("1000:staff", Some(1000), ""),
            ("web", None, "web"),
            ("web:0", None, "web"),
            (":5", None, ""),
        ] {
            assert_eq!(user(text), (uid, name.to_owned()), "{text}");
        }
    }

    #[test]
    fn an_image_needs_a_name() {
        assert!(reference("image", None).is_err());
        let kata = v1::ImageSpec { image: "a".into(), runtime_handler: "kata".into(), ..Default::default() };
        assert_eq!(
            reference("image", Some(kata)),
            Err(invalid("image.runtime_handler", "there is no runtime handler `kata`"))
        );
    }
}
