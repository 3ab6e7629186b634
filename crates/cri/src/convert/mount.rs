//! Mounts, both ways.

use bowline_cri_proto::v1;
use bowline_model::spec::{ImageRef, Mount, Propagation};

use super::{Refused, check, invalid};

/// Options that a mount may ask for (KEP-5855).
const OPTIONS: [&str; 3] = ["noexec", "nodev", "nosuid"];

/// One mount of a container.
pub(crate) fn mount(field: &str, mut asked: v1::Mount) -> Result<Mount, Refused> {
    check::absolute(&format!("{field}.container_path"), &asked.container_path)?;
    let propagation = match check::known(&format!("{field}.propagation"), asked.propagation)? {
        v1::MountPropagation::PropagationPrivate => Propagation::Private,
        v1::MountPropagation::PropagationHostToContainer => Propagation::HostToContainer,
        v1::MountPropagation::PropagationBidirectional => Propagation::Bidirectional,
    };
    if asked.recursive_read_only {
        let field = format!("{field}.recursive_read_only");
        if !asked.readonly {
            return Err(invalid(field, "needs readonly beside it"));
        }
        if propagation != Propagation::Private {
            return Err(invalid(
                field,
                "needs propagation PRIVATE: mounts that arrive later would be writable",
            ));
        }
    }
    for option in &asked.mount_options {
        if !OPTIONS.contains(&option.as_str()) {
            let reason = format!("`{}` is none of {}", check::brief(option), OPTIONS.join(", "));
            return Err(invalid(format!("{field}.mount_options"), reason));
        }
    }
    if asked.uid_mappings.is_empty() != asked.gid_mappings.is_empty() {
        let reason = "uid_mappings and gid_mappings go together; give both or none";
        return Err(invalid(format!("{field}.uid_mappings"), reason));
    }
    let mappings = |maps: &[v1::IdMapping]| maps.iter().map(super::namespaces::id_mapping).collect();
    let image = match asked.image.is_some() {
        true => Some(image_volume(field, &mut asked)?),
        false if !asked.image_sub_path.is_empty() => {
            return Err(invalid(format!("{field}.image_sub_path"), "needs an image beside it"));
        }
        false => {
            check::absolute(&format!("{field}.host_path"), &asked.host_path)?;
            None
        }
    };
    Ok(Mount {
        container_path: asked.container_path,
        host_path: asked.host_path,
        readonly: asked.readonly,
        recursive_read_only: asked.recursive_read_only,
        selinux_relabel: asked.selinux_relabel,
        propagation,
        uid_mappings: mappings(&asked.uid_mappings),
        gid_mappings: mappings(&asked.gid_mappings),
        image,
        image_sub_path: asked.image_sub_path,
        options: asked.mount_options,
    })
}

/// The image of an image volume. What the runtime says of it in a status is no part of what is asked for.
fn image_volume(field: &str, asked: &mut v1::Mount) -> Result<ImageRef, Refused> {
    if !asked.readonly {
        let reason = "an image volume cannot be written to; set readonly";
        return Err(invalid(format!("{field}.readonly"), reason));
    }
    if !asked.host_path.is_empty() {
        return Err(invalid(format!("{field}.host_path"), "must be empty when an image is mounted"));
    }
    let sub_path = format!("{field}.image_sub_path");
    if let Err(Refused::Invalid { field, reason }) = check::below(&sub_path, &asked.image_sub_path) {
        return Err(Refused::NoVolume { field, reason });
    }
    super::image::reference(&format!("{field}.image"), asked.image.take())
}

/// The mount as it was asked for.
pub(crate) fn echo(mount: &Mount) -> v1::Mount {
    let mappings = |maps: &[bowline_model::spec::IdMapping]| {
        let mapping = |map: &bowline_model::spec::IdMapping| v1::IdMapping {
            host_id: map.host_id,
            container_id: map.container_id,
            length: map.length,
        };
        maps.iter().map(mapping).collect()
    };
    let propagation = match mount.propagation {
        Propagation::Private => v1::MountPropagation::PropagationPrivate,
        Propagation::HostToContainer => v1::MountPropagation::PropagationHostToContainer,
        Propagation::Bidirectional => v1::MountPropagation::PropagationBidirectional,
    };
    v1::Mount {
        container_path: mount.container_path.clone(),
        host_path: mount.host_path.clone(),
        readonly: mount.readonly,
        selinux_relabel: mount.selinux_relabel,
        propagation: propagation.into(),
        uid_mappings: mappings(&mount.uid_mappings),
        gid_mappings: mappings(&mount.gid_mappings),
        recursive_read_only: mount.recursive_read_only,
        image: mount.image.as_ref().map(super::image::echo),
        image_sub_path: mount.image_sub_path.clone(),
        mount_options: mount.options.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> v1::Mount {
        v1::Mount { container_path: "/c".into(), host_path: "/h".into(), ..Default::default() }
    }

    #[test]
    fn a_status_repeats_the_request() {
        for asked in [
            plain(),
            v1::Mount { readonly: true, recursive_read_only: true, ..plain() },
            v1::Mount { propagation: 2, selinux_relabel: true, ..plain() },
            v1::Mount { propagation: 1, mount_options: vec!["noexec".into(), "nodev".into()], ..plain() },
        ] {
            assert_eq!(echo(&mount("m", asked.clone()).unwrap()), asked);
        }
    }

    #[test]
    fn what_cannot_be_is_named() {
        let path = |container: &str, host: &str| v1::Mount {
            container_path: container.into(),
            host_path: host.into(),
            ..Default::default()
        };
        for (bad, named) in [
            (path("c", "/h"), "m.container_path"),
            (path("", "/h"), "m.container_path"),
            (path("/c", "h"), "m.host_path"),
            (path("/c", ""), "m.host_path"),
            (path("/c\0", "/h"), "m.container_path"),
            (v1::Mount { propagation: 3, ..plain() }, "m.propagation"),
            (v1::Mount { recursive_read_only: true, ..plain() }, "m.recursive_read_only"),
            (
                v1::Mount { recursive_read_only: true, readonly: true, propagation: 1, ..plain() },
                "m.recursive_read_only",
            ),
            (
                v1::Mount { recursive_read_only: true, readonly: true, propagation: 2, ..plain() },
                "m.recursive_read_only",
            ),
            (v1::Mount { mount_options: vec!["suid".into()], ..plain() }, "m.mount_options"),
            (v1::Mount { image_sub_path: "a".into(), ..plain() }, "m.image_sub_path"),
            (v1::Mount { uid_mappings: vec![v1::IdMapping::default()], ..plain() }, "m.uid_mappings"),
        ] {
            match mount("m", bad) {
                Err(Refused::Invalid { field, .. }) => assert_eq!(field, named),
                other => panic!("{named}: {other:?}"),
            }
        }
    }

    #[test]
    fn image_volumes_are_read_only_and_stay_inside() {
        let image = |readonly, host: &str, sub_path: &str| v1::Mount {
            container_path: "/c".into(),
            host_path: host.into(),
            image: Some(v1::ImageSpec { image: "a".into(), ..Default::default() }),
            image_sub_path: sub_path.into(),
            readonly,
            ..Default::default()
        };
        for good in ["", "a", "a/b"] {
            let asked = image(true, "", good);
            assert_eq!(echo(&mount("m", asked.clone()).unwrap()), asked);
        }
        assert!(matches!(mount("m", image(false, "", "")), Err(Refused::Invalid { .. })));
        assert!(matches!(mount("m", image(true, "/h", "")), Err(Refused::Invalid { .. })));
        for sub_path in ["/a", "../a", "a/../../b"] {
            let refused = mount("m", image(true, "", sub_path)).unwrap_err();
            assert!(refused.to_string().starts_with("ImageVolumeMountFailed: "), "{refused}");
        }
    }
}
