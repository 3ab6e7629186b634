//! Images as volumes.

use anyhow::{Context as _, Result, ensure};
use bowline_cri_proto::v1;
use bowline_testkit::{Compression, Layer};
use tonic::Code;

use super::case::{Case, case, same};
use crate::container::CtrSpec;
use crate::images::PROGRAM;
use crate::node::{Node, image, refused};

pub(super) const CASES: &[Case] = &[
    case!("image-volume/content", "C", content).quick(),
    case!("image-volume/status", "CK", status),
    case!("image-volume/writable-refused", "C", writable_refused),
    case!("image-volume/sub-path", "CK", sub_path),
    case!("image-volume/life", "K", life),
];

impl CtrSpec {
    /// A mount of an image at /vol.
    fn image_volume(self, reference: &str, sub_path: &str) -> CtrSpec {
        let mount = v1::Mount {
            container_path: "/vol".to_owned(),
            readonly: true,
            image: Some(image(reference)),
            image_sub_path: sub_path.to_owned(),
            ..Default::default()
        };
        self.edit(|config| config.mounts.push(mount))
    }
}

/// An image of two layers, the second of which changes and hides things of the first.
async fn layered(node: &Node, name: &str) -> Result<String> {
    let upper = Layer::new()
        .file("data/more", 0o644, "from the second layer\n")
        .file("etc/plain", 0o644, "changed\n")
        .whiteout("data/shipped")
        .symlink("way", "data");
    let built = node.run.workshop.image(name).layer_as(upper, Compression::Gzip).build();
    node.pull_built(name, &built).await
}

async fn content(node: Node) -> Result<()> {
    let reference = layered(&node, "content").await?;
    let pod = node.pod("content").run().await?;
    let words = [
        "read",
        "/vol/data/more",
        ";",
        "read",
        "/vol/etc/plain",
        "changed",
        ";",
        "read",
        "/vol/data/shipped",
        "hidden",
        ";",
        "write",
        "/vol/data/no",
        "x",
        ";",
        "mkdir",
        "/vol/no",
    ];
    let report = pod.container("reader").cmd(&words).image_volume(&reference, "").report().await?;
    report.is("read", "from the second layer")?;
    report.is("read.changed", "changed")?;
    ensure!(report.find("read.hidden").is_none(), "a file is seen that the second layer hides");
    report.failed("write", &["EROFS"])?;
    report.failed("mkdir", &["EROFS"])?;
    let program = format!("/vol{PROGRAM}");
    let runs = pod.container("runs").image_volume(&reference, "");
    let runs = runs.edit(|config| config.command = vec![program, "read".into(), "/vol/data/more".into()]);
    runs.report().await.context("a program of the image")?.is("read", "from the second layer")?;
    // Of one layer: no overlay at all in some runtimes.
    let single = node.pull_built("single", &node.run.workshop.image("single").build()).await?;
    let words = ["read", "/vol/data/shipped", ";", "write", "/vol/data/no", "x"];
    let report = pod.container("single").cmd(&words).image_volume(&single, "").report().await?;
    report.is("read", "from the image")?;
    report.failed("write", &["EROFS"])
}

async fn status(node: Node) -> Result<()> {
    let built = node.run.workshop.image("status").build();
    let reference = node.run.workshop.serve("image-volume-status", "1", &built);
    let pulled = node.pull(&reference).await?;
    let pod = node.pod("status").run().await?;
    let container = pod.container("main").image_volume(&reference, "data").create().await?;
    let id = node.image_status(&reference).await?.context("the image is not listed")?.id;
    let mounts = container.status().await?.mounts;
    let shown = mounts.first().context("no mount in the status")?;
    let image = shown.image.clone().context("no image in the mount")?;
    same!(image.image, id, "mount.image.image and Image.id");
    same!(image.image_ref, pulled, "mount.image.image_ref and PullImage's answer");
    same!((shown.container_path.as_str(), shown.readonly), ("/vol", true), "path and readonly");
    same!(shown.image_sub_path, "data", "image_sub_path");
    Ok(())
}

async fn writable_refused(node: Node) -> Result<()> {
    let pod = node.pod("writable").run().await?;
    let spec = pod.container("main").image_volume(&node.run.image, "");
    let spec = spec.edit(|config| config.mounts.iter_mut().for_each(|mount| mount.readonly = false));
    let status = refused(spec.try_create().await, &[], "a writable image volume")?;
    ensure!(status.code() != Code::Unknown, "the code is Unknown: {}", status.message());
    Ok(())
}

async fn sub_path(node: Node) -> Result<()> {
    let reference = layered(&node, "parts").await?;
    let pod = node.pod("parts").run().await?;
    let words = ["read", "/vol/more", ";", "list", "/vol"];
    for (name, part) in [("folder", "data"), ("symlink", "way")] {
        let report = pod.container(name).cmd(&words).image_volume(&reference, part).report().await?;
        report.is("read", "from the second layer").with_context(|| name.to_owned())?;
        report.is("list./vol", "more")?;
    }
    for (what, part) in [("an absent", "data/shipped"), ("an absolute", "/data"), ("a dot-dot", "a/../data")]
    {
        let spec = pod.container("refused").image_volume(&reference, part);
        let status = refused(spec.try_create().await, &[], &format!("{what} path"))?;
        let text = status.message();
        ensure!(text.starts_with("ImageVolumeMountFailed"), "{what} path: the text is {text}");
    }
    let spec = pod.container("refused").image_volume("localhost/not/pulled:1", "");
    let status = refused(spec.try_create().await, &[], "an image that was never pulled")?;
    ensure!(status.message().starts_with("ImageVolumeMountFailed"), "the text is {}", status.message());
    Ok(())
}

async fn life(node: Node) -> Result<()> {
    let reference = layered(&node, "life").await?;
    let pod = node.pod("life").run().await?;
    let running = pod.container("running").image_volume(&reference, "data").start().await?;
    let created = pod.container("created").cmd(&["read", "/vol/more"]).image_volume(&reference, "data");
    let created = created.create().await?;
    // Refusing it is allowed as well; neither container must notice.
    let _ = node.remove_image(&reference).await;
    running.exec(&["read", "/vol/more"]).await?.is("read", "from the second layer")?;
    created.start().await.context("started after its volume's image was removed")?;
    created.exited().await?;
    created.output()?.is("read", "from the second layer")?;
    running.stop(0).await?;
    running.remove().await?;
    Ok(())
}
