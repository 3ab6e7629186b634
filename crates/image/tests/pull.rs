//! A pull over real HTTP, from the name to the tree.

#![allow(clippy::unwrap_used)] // In a test, a panic is the report.

mod support;

use bowline_image::PullError;
use bowline_testkit::{Compression, ImageBuilder, Layer, MediaTypes, Registry, busybox, index_of};
use support::{Node, listing, worker};

fn base() -> Layer {
    Layer::new().dir("etc", 0o755).file("etc/motd", 0o644, "hello").dir("tmp", 0o1777)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_arrives_as_it_was_built() {
    let registry = Registry::start();
    let image = ImageBuilder::new()
        .layer(base())
        .layer_as(Layer::new().dir("etc", 0o755).whiteout("etc/motd"), Compression::Zstd)
        .user("1000:50")
        .env(&["A=b"])
        .entrypoint(&["/bin/x"])
        .cmd(&["y"])
        .working_dir("/w")
        .stop_signal("SIGUSR1")
        .volumes(&["/data"])
        .labels(&[("k", "v")])
        .build();
    let name = registry.push("team/app", "v1", &image);
    for unpacker in [bowline_image::Unpacker::InProcess, worker()] {
        let node = Node::with(|config| config.unpacker = unpacker.clone()).await;
        let pulled = node.pull(&name).await;
        assert_eq!(pulled.id.to_string(), image.id);
        assert_eq!(pulled.repo_tags, std::slice::from_ref(&name));
        assert_eq!(pulled.repo_digests, [format!("{}/team/app@{}", registry.host(), image.digest())]);
        assert!(pulled.size > 0);
        assert_eq!(pulled.config.user, "1000:50");
        assert_eq!(pulled.config.env, ["A=b"]);
        assert_eq!(pulled.config.entrypoint, ["/bin/x"]);
        assert_eq!(pulled.config.volumes, ["/data"]);
        assert_eq!(pulled.config.stop_signal.as_deref(), Some("SIGUSR1"));
        assert_eq!(
            listing(&node.layer(&pulled, 0)),
            ["d 0755 0:0 etc", "- 0644 0:0 etc/motd =hello", "d 1777 0:0 tmp"]
        );
        assert_eq!(listing(&node.layer(&pulled, 1)), ["d 0755 0:0 etc", "c 0000 0:0 etc/motd 0:0"]);
        assert_eq!(node.images.read_file_in_layers(&pulled.layers, "/etc/motd", 10).unwrap(), None);
        assert_eq!(
            node.images.read_file_in_layers(&pulled.layers[..1], "etc/motd", 10).unwrap(),
            Some(b"hello".to_vec())
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn busybox_is_complete() {
    let Some(busybox) = busybox() else { return };
    let registry = Registry::start();
    let name = registry.push("busybox", "latest", &busybox.build());
    let node = Node::with(|config| config.unpacker = worker()).await;
    let image = node.pull(&name).await;
    let tree = node.layer(&image, 0);
    let (one, other) = (tree.join("bin/busybox"), tree.join("bin/sh"));
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!(one.metadata().unwrap().ino(), other.metadata().unwrap().ino());
    let passwd = node.images.read_file_in_layers(&image.layers, "/etc/passwd", 1 << 20).unwrap().unwrap();
    assert!(passwd.starts_with(b"root:"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_reference_finds_the_same_image() {
    let registry = Registry::start();
    let host = registry.host();
    let image = ImageBuilder::new().layer(base()).build();
    registry.push("app", "latest", &image);
    registry.push("app", "two", &image);
    let node = Node::new().await;
    let pulled = node.pull(&format!("{host}/app")).await;
    node.pull(&format!("{host}/app:two")).await;
    let digest = format!("{host}/app@{}", image.digest());
    node.pull(&digest).await;
    let hex = image.id.trim_start_matches("sha256:");
    for any in [
        &format!("{host}/app"),
        &format!("{host}/app:latest"),
        &format!("{host}/app:two"),
        &digest,
        &image.id,
        &hex.to_owned(),
        &hex[..12].to_owned(),
        &format!("sha256:{}", &hex[..5]),
    ] {
        let found = node.images.resolve(any).unwrap_or_else(|| panic!("{any} finds nothing"));
        assert_eq!(found.id, pulled.id);
        assert_eq!(found.repo_tags, [format!("{host}/app:latest"), format!("{host}/app:two")]);
        assert_eq!(found.repo_digests, std::slice::from_ref(&digest));
        assert_eq!(node.images.list(Some(any)).len(), 1);
    }
    assert_eq!(node.images.list(None).len(), 1);
    assert_eq!(node.images.list(Some("")).len(), 1);
    assert!(node.images.resolve(&"0".repeat(64)).is_none());
    assert!(node.images.resolve("").is_none());
    assert_eq!(registry.count("GET", "/blobs/"), 2, "{:?}", registry.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_by_digest_gives_no_tag_and_keeps_the_index_digest() {
    let registry = Registry::start();
    let here = ImageBuilder::new().layer(base()).build();
    let there = ImageBuilder::new().platform("linux", "s390x", None).build();
    for types in [MediaTypes::Oci, MediaTypes::Docker] {
        let index = index_of(&[there.clone(), here.clone()], types);
        registry.push("multi", "latest", &index);
        let node = Node::new().await;
        let name = format!("{}/multi@{}", registry.host(), index.digest());
        let pulled = node.pull(&name).await;
        assert_eq!(pulled.id.to_string(), here.id);
        assert!(pulled.repo_tags.is_empty());
        assert_eq!(pulled.repo_digests, [name]);
    }
    let index = index_of(&[there], MediaTypes::Oci);
    let name = registry.push("multi", "foreign", &index);
    let node = Node::new().await;
    let error = node.images.pull(&name, None).await.unwrap_err();
    assert!(matches!(&error, PullError::NoPlatform { offered, .. } if offered == "linux/s390x"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_formats_of_a_layer_give_the_same_image_content() {
    let registry = Registry::start();
    let node = Node::new().await;
    for types in [MediaTypes::Oci, MediaTypes::Docker] {
        for compression in [Compression::Plain, Compression::Gzip, Compression::Zstd] {
            let image = ImageBuilder::new().types(types).layer_as(base(), compression).build();
            let name = registry.push("formats", &format!("{types:?}-{compression:?}"), &image);
            let pulled = node.pull(&name).await;
            assert_eq!(listing(&node.layer(&pulled, 0)).len(), 3);
        }
    }
    assert_eq!(node.images.list(None).len(), 1, "the config is the same, so is the image");
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_pulls_at_once_are_one() {
    let registry = Registry::start();
    let mut builder = ImageBuilder::new();
    for n in 0..8 {
        builder = builder.layer(Layer::new().file(&format!("f{n}"), 0o644, vec![n; 100_000]));
    }
    let image = builder.build();
    let name = registry.push("many", "latest", &image);
    let node = Node::new().await;
    let pulls = (0..10).map(|_| node.images.pull(&name, None));
    for outcome in futures_util::future::join_all(pulls).await {
        assert_eq!(outcome.unwrap().to_string(), image.id);
    }
    for digest in image.blobs.keys() {
        assert_eq!(registry.count("GET", digest), 1, "{digest}");
    }
    assert_eq!(registry.count("GET", "/manifests/latest"), 1);
    assert!(node.images.pull_progress().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_share_layers_fetch_them_once() {
    let registry = Registry::start();
    let shared = Layer::new().file("shared", 0o644, vec![7; 200_000]);
    let one = ImageBuilder::new().layer(shared.clone()).layer(Layer::new().file("one", 0o644, "1")).build();
    let two = ImageBuilder::new().layer(shared).layer(Layer::new().file("two", 0o644, "2")).build();
    let (a, b) = (registry.push("one", "latest", &one), registry.push("two", "latest", &two));
    let node = Node::new().await;
    let (a, b) = tokio::join!(node.images.pull(&a, None), node.images.pull(&b, None));
    assert_ne!(a.unwrap(), b.unwrap());
    assert_eq!(registry.count("GET", &one.layers[0]), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moved_tag_is_resolved_anew_and_the_old_image_keeps_its_digest() {
    let registry = Registry::start();
    let old = ImageBuilder::new().layer(base()).build();
    let new = ImageBuilder::new().layer(base()).env(&["NEW=1"]).build();
    let name = registry.push("moving", "latest", &old);
    let node = Node::new().await;
    let first = node.pull(&name).await;
    registry.push("moving", "latest", &new);
    let second = node.pull(&name).await;
    assert_ne!(first.id, second.id);
    assert_eq!(second.repo_tags, std::slice::from_ref(&name));
    let first = node.images.resolve(&first.id.to_string()).unwrap();
    assert!(first.repo_tags.is_empty());
    assert_eq!(first.repo_digests.len(), 1);
}

/// Manifests may share a config, and with it the image's id: what one of them says must not be said of the others.
#[tokio::test(flavor = "multi_thread")]
async fn an_annotation_counts_if_every_manifest_of_the_image_has_it() {
    let registry = Registry::start();
    let plain = ImageBuilder::new().layer(base());
    let said = plain.clone().annotation("both", "1").annotation("one", "1");
    let first = registry.push("said", "1", &said.build());
    let node = Node::new().await;
    let image = node.pull(&first).await;
    assert_eq!(image.annotations.get("one").map(String::as_str), Some("1"));
    let other =
        registry.push("other", "1", &plain.clone().annotation("both", "1").annotation("one", "2").build());
    let both = node.pull(&other).await;
    assert_eq!(both.id, image.id);
    assert_eq!(both.annotations.keys().collect::<Vec<_>>(), ["both"]);
    let bare = registry.push("plain", "1", &plain.types(MediaTypes::Docker).annotation("both", "1").build());
    assert!(node.pull(&bare).await.annotations.is_empty(), "docker's manifests have no annotations");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_layers_has_a_size() {
    let registry = Registry::start();
    let name = registry.push("empty", "latest", &ImageBuilder::new().build());
    let node = Node::new().await;
    assert!(node.pull(&name).await.size > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_layers_and_repeated_layers_work() {
    let registry = Registry::start();
    let mut builder = ImageBuilder::new();
    for n in 0..60 {
        let content = format!("{}", n % 20);
        builder = builder.layer(Layer::new().file("f", 0o644, content));
    }
    let name = registry.push("deep", "latest", &builder.build());
    let node = Node::with(|config| config.unpacker = worker()).await;
    let image = node.pull(&name).await;
    assert_eq!(image.layers.len(), 60);
    assert_eq!(image.layers[0], image.layers[20]);
    let names: Vec<&str> = image.layers.iter().map(|name| name.as_str()).collect();
    assert!(names.join(":").len() < 4096);
}
