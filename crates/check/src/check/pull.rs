//! Pulling images.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bowline_cri_proto::v1;
use bowline_testkit::{AuthMode, BuiltImage, Compression, Fault, Layer, MediaTypes, Registry, index_of};
use futures_util::future::join_all;
use tonic::Code;

use super::case::{Case, case, same};
use crate::endpoint::within;
use crate::images::PROGRAM;
use crate::node::{Node, image, refused};

pub(super) const CASES: &[Case] = &[
    case!("pull/tag", "C", tag).serial().quick(),
    case!("pull/bare-name", "C", bare_name).serial(),
    case!("pull/digest", "C", digest).serial(),
    case!("pull/sandbox-config", "C", sandbox_config),
    case!("pull/deadline", "C", deadline),
    case!("pull/cancel-retry", "K", cancel_retry),
    case!("pull/moved-tag", "K", moved_tag),
    case!("pull/errors", "K", errors),
    case!("pull/auth", "K", auth),
    case!("pull/formats", "K", formats),
    case!("pull/tree", "K", tree),
    case!("pull/sixty-layers", "K", sixty_layers),
    case!("pull/merged", "S", merged),
    case!("pull/handler", "K", handler),
];

/// A small image of the case's own.
fn small(node: &Node, name: &str) -> BuiltImage {
    let layer = Layer::new().file("word", 0o644, node.unique(name));
    node.run.workshop.blank(&node.unique(name)).layer(layer).entrypoint(&["/none"]).build()
}

async fn status_of(node: &Node, reference: &str) -> Result<v1::Image> {
    node.image_status(reference).await?.with_context(|| format!("{reference} is not there"))
}

async fn tag(node: Node) -> Result<()> {
    let image = small(&node, "tag");
    let name = node.run.workshop.serve("tag", "one", &image);
    let given = node.pull(&name).await?;
    ensure!(!given.is_empty(), "an empty image_ref");
    let status = status_of(&node, &name).await?;
    same!(status.repo_tags, vec![name.clone()], "repo_tags");
    let (repository, _) = name.rsplit_once(':').context("a tag")?;
    same!(status.repo_digests, vec![format!("{repository}@{}", image.digest())], "repo_digests");
    Ok(())
}

async fn bare_name(node: Node) -> Result<()> {
    let name = node.run.workshop.serve("bare", "latest", &small(&node, "bare"));
    let bare = name.trim_end_matches(":latest");
    node.pull(bare).await?;
    same!(status_of(&node, bare).await?.repo_tags, vec![name.clone()], "repo_tags by the bare name");
    same!(status_of(&node, &name).await?.repo_tags, vec![name.clone()], "repo_tags by the full name");
    Ok(())
}

async fn digest(node: Node) -> Result<()> {
    let single = small(&node, "single");
    let index = index_of(&[small(&node, "indexed")], MediaTypes::Oci);
    for image in [single, index] {
        let name = node.run.workshop.serve("digest", "one", &image);
        let (repository, _) = name.rsplit_once(':').context("a tag")?;
        let reference = format!("{repository}@{}", image.digest());
        node.pull(&reference).await?;
        let status = status_of(&node, &reference).await?;
        same!(status.repo_tags.len(), 0, "tags");
        same!(status.repo_digests, vec![reference.clone()], "repo_digests");
        node.remove_image(&reference).await?;
    }
    Ok(())
}

async fn sandbox_config(node: Node) -> Result<()> {
    for config in [None, Some(v1::PodSandboxConfig::default())] {
        let name = node.run.workshop.serve("config", "1", &small(&node, "config"));
        let request = v1::PullImageRequest { image: Some(image(&name)), sandbox_config: config, auth: None };
        node.pull_with(request).await?;
        node.remove_image(&name).await?;
    }
    Ok(())
}

async fn deadline(node: Node) -> Result<()> {
    let name = node.run.workshop.serve("deadline/late", "1", &small(&node, "late"));
    let part = node.run.workshop.repository("deadline/late");
    node.run.workshop.registry().fault(&part, Fault::Delay(Duration::from_secs(2)));
    let request = v1::PullImageRequest { image: Some(image(&name)), ..Default::default() };
    let answer = node.images().pull_image(within(request, Duration::from_millis(500))).await;
    // The client's own clock may be first; it says the same in its way.
    refused(answer, &[Code::DeadlineExceeded, Code::Cancelled], "a pull past its deadline")?;
    ensure!(node.image_status(&name).await?.is_none(), "the image is there nevertheless");
    Ok(())
}

async fn cancel_retry(node: Node) -> Result<()> {
    let layer = Layer::new().file("big", 0o644, vec![7u8; 4 << 20]);
    let built = node.run.workshop.blank(&node.unique("cancel")).layer_as(layer, Compression::Plain).build();
    let name = node.run.workshop.serve("cancel/retry", "1", &built);
    let part = built.layers[0].clone();
    node.run.workshop.registry().fault(&part, Fault::HangAfter(1 << 20, 1));
    let request = v1::PullImageRequest { image: Some(image(&name)), ..Default::default() };
    let call = node.images();
    let cut =
        tokio::time::timeout(Duration::from_secs(1), async move { call.clone().pull_image(request).await })
            .await;
    ensure!(cut.is_err(), "the pull was not cut off: {cut:?}");
    ensure!(node.image_status(&name).await?.is_none(), "the half pulled image is there");
    let retry = crate::patience::timeout(Duration::from_secs(30), node.pull(&name))
        .await
        .context("the retry hangs")?;
    retry.context("the retry")?;
    status_of(&node, &name).await?;
    Ok(())
}

async fn moved_tag(node: Node) -> Result<()> {
    let first = node.pull(&node.run.workshop.serve("moved", "1", &small(&node, "first"))).await?;
    let name = node.run.workshop.serve("moved", "1", &small(&node, "second"));
    let second = node.pull(&name).await?;
    ensure!(first != second, "the old image again");
    same!(status_of(&node, &name).await?.id, second, "the tag's image");
    let _ = node.remove_image(&first).await;
    Ok(())
}

async fn errors(node: Node) -> Result<()> {
    let registry = Registry::start();
    let serve = |name: &str| registry.push(name, "1", &small(&node, name));
    let closed =
        format!("127.0.0.1:{}/closed:1", std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port());
    let failing = serve("failing");
    registry.fault("failing", Fault::Status(503, 1000));
    for name in [&closed, &failing] {
        let status = refused(node.pull(name).await, &[Code::Unknown], &format!("a pull of {name}"))?;
        ensure!(
            status.message().starts_with("RegistryUnavailable"),
            "the text for {name} is {}",
            status.message()
        );
    }
    let unknown = serve("known").replace(":1", ":2");
    refused(node.pull(&unknown).await, &[], "an unknown tag")?;
    let bad = format!("{}@sha256:{}", serve("known").trim_end_matches(":1"), "0".repeat(64));
    refused(node.pull(&bad).await, &[], "an unknown digest")?;
    let image = small(&node, "broken");
    let broken = registry.push("broken", "1", &image);
    registry.fault(&image.layers[0], Fault::Corrupt);
    refused(node.pull(&broken).await, &[], "a broken layer")?;
    for name in [closed, failing, unknown, bad, broken] {
        ensure!(node.image_status(&name).await?.is_none(), "{name} is there nevertheless");
    }
    Ok(())
}

async fn auth(node: Node) -> Result<()> {
    let basic = AuthMode::Basic { user: "someone".to_owned(), password: "secret".to_owned() };
    let registry = Registry::builder().auth(basic).start();
    let name = registry.push("private", "1", &small(&node, "private"));
    let with = |auth: v1::AuthConfig| v1::PullImageRequest {
        image: Some(image(&name)),
        auth: Some(auth),
        sandbox_config: None,
    };
    let pair = |user: &str, password: &str| v1::AuthConfig {
        username: user.to_owned(),
        password: password.to_owned(),
        ..Default::default()
    };
    let encoded = v1::AuthConfig { auth: "c29tZW9uZTpzZWNyZXQ=".to_owned(), ..Default::default() };
    let at =
        |auth: v1::AuthConfig, server: &str| v1::AuthConfig { server_address: server.to_owned(), ..auth };
    refused(node.pull(&name).await, &[], "a pull without credentials")?;
    refused(node.pull_with(with(pair("someone", "wrong"))).await, &[], "a wrong password")?;
    let elsewhere = with(at(pair("someone", "secret"), "registry.example"));
    refused(node.pull_with(elsewhere).await, &[], "credentials for another host")?;
    for (what, auth) in [
        ("a password", pair("someone", "secret")),
        ("base64", encoded),
        ("this host", at(pair("someone", "secret"), &registry.url())),
    ] {
        node.pull_with(with(auth)).await.with_context(|| format!("with {what}"))?;
        node.remove_image(&name).await?;
    }
    bearer(&node).await
}

/// Identity tokens are exchanged, registry tokens are shown as they are.
async fn bearer(node: &Node) -> Result<()> {
    let mode = AuthMode::Bearer {
        user: "someone".to_owned(),
        password: "secret".to_owned(),
        identity_token: "refresh-me".to_owned(),
        anonymous: false,
    };
    let registry = Registry::builder().auth(mode).start();
    let name = registry.push("tokens", "1", &small(node, "tokens"));
    let identity = v1::AuthConfig { identity_token: "refresh-me".to_owned(), ..Default::default() };
    let wrong = v1::AuthConfig { identity_token: "stale".to_owned(), ..Default::default() };
    let with =
        |auth| v1::PullImageRequest { image: Some(image(&name)), auth: Some(auth), sandbox_config: None };
    refused(node.pull_with(with(wrong)).await, &[], "a wrong identity token")?;
    node.pull_with(with(identity)).await.context("with an identity token")?;
    Ok(())
}

async fn formats(node: Node) -> Result<()> {
    let workshop = &node.run.workshop;
    let other = workshop.blank("other").platform("linux", "s390x", None).layer(Layer::new()).build();
    let kinds = [
        ("oci-gzip", MediaTypes::Oci, Compression::Gzip),
        ("oci-zstd", MediaTypes::Oci, Compression::Zstd),
        ("oci-plain", MediaTypes::Oci, Compression::Plain),
        ("docker-gzip", MediaTypes::Docker, Compression::Gzip),
    ];
    let pod = node.pod("formats").run().await?;
    for (name, types, compression) in kinds {
        let builder = workshop.blank(&node.unique(name)).types(types).entrypoint(&[PROGRAM]);
        let extra = Layer::new().file("kind", 0o644, name);
        let built = builder.layer(workshop.base()).layer_as(extra, compression).build();
        let indexed = index_of(&[other.clone(), built.clone()], types);
        for (form, image) in [("manifest", &built), ("index", &indexed)] {
            let reference = workshop.serve(&format!("formats/{name}"), form, image);
            node.pull(&reference).await.with_context(|| format!("{name} as {form}"))?;
            let words = ["read", "/kind"];
            let report =
                pod.container(&format!("{name}-{form}")).image(&reference).cmd(&words).report().await?;
            report.is("read", name)?;
        }
    }
    Ok(())
}

async fn tree(node: Node) -> Result<()> {
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(130));
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let lower = Layer::new()
        .dir("gone", 0o755)
        .file("gone/file", 0o644, "x")
        .dir("opaque", 0o755)
        .file("opaque/old", 0o644, "x")
        .file("removed", 0o644, "x");
    let upper = Layer::new()
        .whiteout("removed")
        .whiteout("gone")
        .opaque("opaque")
        .file("opaque/new", 0o644, "y")
        .owner(1000, 1001)
        .file("owned", 0o644, "z")
        .hardlink("linked", "owned")
        .owner(0, 0)
        .file("special", 0o6755, "s")
        .xattr("security.capability", &capability)
        .file("capable", 0o755, "c")
        .dir(&"d".repeat(120), 0o755)
        .file(&long, 0o600, "long");
    let built = node.run.workshop.image("tree").layer(lower).layer(upper).entrypoint(&[PROGRAM]).build();
    let reference = node.pull_built("tree", &built).await?;
    let long = format!("/{long}");
    let words = [
        "stat",
        "/owned",
        ";",
        "stat",
        "/linked",
        ";",
        "stat",
        "/special",
        ";",
        "list",
        "/opaque",
        ";",
        "list",
        "/",
        ";",
        "xattr",
        "/capable",
        "security.capability",
        ";",
        "stat",
        &long,
    ];
    let report =
        node.pod("tree").run().await?.container("main").image(&reference).cmd(&words).report().await?;
    report.is("stat./owned", "file 0644 1000 1001 1 2 0x0")?;
    report.is("stat./linked", "file 0644 1000 1001 1 2 0x0")?;
    report.is("stat./special", "file 6755 0 0 1 1 0x0")?;
    report.is("list./opaque", "new")?;
    let top: Vec<_> = report.get("list./")?.split(' ').collect();
    ensure!(!top.contains(&"gone") && !top.contains(&"removed"), "a whiteout was not honoured: {top:?}");
    let hex: String = capability.iter().map(|byte| format!("{byte:02x}")).collect();
    report.is("xattr.security.capability", &hex)?;
    report.is(&format!("stat.{long}"), "file 0600 0 0 4 1 0x0")
}

/// Older kernels take the names of all layers in one page, and the stack is as deep as the file system allows.
async fn sixty_layers(node: Node) -> Result<()> {
    let mut image = node.run.workshop.image("sixty");
    for number in 1..60 {
        let layer = Layer::new().file("last", 0o644, number.to_string());
        image = image.layer(layer.file(&format!("layer-{number}"), 0o644, number.to_string()));
    }
    let reference = node.pull_built("sixty", &image.entrypoint(&[PROGRAM]).build()).await?;
    let words = ["read", "/last", "top", ";", "read", "/layer-1", "bottom", ";", "write", "/layer-30", "x"];
    let spec = node.pod("sixty").run().await?.container("main").image(&reference).cmd(&words);
    let report = spec.report().await?;
    report.is("read.top", "59")?;
    report.is("read.bottom", "1")?;
    report.worked("write")
}

async fn merged(node: Node) -> Result<()> {
    let built = small(&node, "merged");
    let name = node.run.workshop.serve("merged", "1", &built);
    let registry = node.run.workshop.registry();
    registry.fault(&built.layers[0], Fault::Delay(Duration::from_millis(500)));
    let pulls = join_all((0..10).map(|_| node.pull(&name))).await;
    pulls.into_iter().collect::<Result<Vec<_>, _>>()?;
    same!(registry.count("GET", &built.layers[0]), 1, "requests for the layer");
    same!(registry.count("GET", &built.id), 1, "requests for the config");
    Ok(())
}

async fn handler(node: Node) -> Result<()> {
    let name = node.run.workshop.serve("handler", "1", &small(&node, "handler"));
    let spec = v1::ImageSpec { runtime_handler: "no-such-handler".to_owned(), ..image(&name) };
    let request = v1::PullImageRequest { image: Some(spec), ..Default::default() };
    refused(node.pull_with(request).await, &[], "an unknown runtime_handler")?;
    ensure!(node.image_status(&name).await?.is_none(), "the image is there nevertheless");
    Ok(())
}
