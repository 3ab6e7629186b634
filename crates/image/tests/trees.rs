//! What the unpacker makes of archives, well-formed and not.

#![allow(clippy::unwrap_used)] // In a test, a panic is the report.

mod support;

use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use bowline_image::{PullError, Unpacker};
use bowline_testkit::{Compression, ImageBuilder, Layer, Registry};
use support::{Node, listing, worker, xattr};

/// Pulls an image of these layers, bottom first, in both unpack modes, and gives the listing of the top one.
async fn unpack(layers: &[Layer]) -> Result<Vec<String>, PullError> {
    let mut seen: Option<Result<Vec<String>, PullError>> = None;
    for unpacker in [Unpacker::InProcess, worker()] {
        let (node, outcome) = pull(layers, unpacker).await;
        let outcome = outcome.map(|image| listing(&node.layer(&image, layers.len() - 1)));
        if outcome.is_err() {
            node.wait_until_empty().await;
        }
        if let Some(before) = &seen {
            assert_eq!(format!("{before:?}"), format!("{outcome:?}"), "both modes do the same");
        }
        seen = Some(outcome);
    }
    seen.unwrap()
}

async fn pull(
    layers: &[Layer],
    unpacker: Unpacker,
) -> (Node, Result<std::sync::Arc<bowline_image::Image>, PullError>) {
    let registry = Registry::start();
    let mut builder = ImageBuilder::new();
    for layer in layers {
        builder = builder.layer_as(layer.clone(), Compression::Plain);
    }
    let name = registry.push("tree", "latest", &builder.build());
    let node = Node::with(|config| config.unpacker = unpacker).await;
    let outcome = node.images.pull(&name, None).await;
    let outcome = outcome.map(|id| node.images.resolve(&id.to_string()).unwrap());
    (node, outcome)
}

async fn check(layers: &[Layer], expect: &[&str]) {
    assert_eq!(unpack(layers).await.unwrap(), expect);
}

async fn refused(layer: Layer, why: &str) {
    match unpack(&[layer]).await {
        Err(PullError::CorruptLayer { reason, .. } | PullError::TooLarge { reason, .. }) => {
            assert!(reason.contains(why), "`{reason}` does not say `{why}`");
        }
        other => panic!("{why}: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kinds_owners_and_modes_arrive() {
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(120));
    let layer = Layer::new()
        .dir("./", 0o711)
        .dir("a", 0o750)
        .owner(1000, 4_294_967_294)
        .file("a/file", 0o4755, "x")
        .hardlink("a/link", "a/file")
        .symlink("a/sym", "/etc/passwd")
        .char_device("null", 0o666, 1, 3)
        .block_device("disk", 0o660, 8, 1)
        .fifo("pipe", 0o600)
        .owner(0, 0)
        .dir(&"d".repeat(120), 0o755)
        .file(&long, 0o644, "long")
        .gnu_long(b'L', "gnu-long-name")
        .gnu_long(b'K', "gnu-long-target")
        .symlink("ignored", "ignored")
        .file("/abs", 0o644, "a")
        .entry(b'7', "contiguous", 0o644, "", b"c", (0, 0));
    let (dir, file) = (format!("d 0755 0:0 {}", "d".repeat(120)), format!("- 0644 0:0 {long} =long"));
    check(
        &[layer],
        &[
            "d 0750 0:0 a",
            "- 4755 1000:4294967294 a/file =x",
            "- 4755 1000:4294967294 a/link =x",
            "l 0777 1000:4294967294 a/sym -> /etc/passwd",
            "- 0644 0:0 abs =a",
            "- 0644 0:0 contiguous =c",
            &dir,
            &file,
            "b 0660 1000:4294967294 disk 8:1",
            "l 0777 0:0 gnu-long-name -> gnu-long-target",
            "c 0666 1000:4294967294 null 1:3",
            "p 0600 1000:4294967294 pipe",
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn times_and_attributes_arrive() {
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let layer = Layer::new()
        .pax("mtime", b"1234567890.123456789")
        .dir("d", 0o755)
        .pax("mtime", b"-1.5")
        .file("d/old", 0o644, "")
        .xattr("security.capability", &capability)
        .xattr("user.note", b"hi")
        .xattr("trusted.overlay.redirect", b"/etc")
        .xattr("user.overlay.opaque", b"y")
        .owner(7, 7)
        .file("d/ping", 0o755, "p");
    for unpacker in [Unpacker::InProcess, worker()] {
        let (node, image) = pull(std::slice::from_ref(&layer), unpacker).await;
        let tree = node.layer(&image.unwrap(), 0);
        let stat = tree.join("d").metadata().unwrap();
        assert_eq!((stat.mtime(), stat.mtime_nsec()), (1_234_567_890, 123_456_789));
        let stat = tree.join("d/old").metadata().unwrap();
        assert_eq!((stat.mtime(), stat.mtime_nsec()), (-2, 500_000_000));
        let ping = tree.join("d/ping");
        assert_eq!(
            xattr(&ping, "security.capability").as_deref(),
            Some(&capability[..]),
            "chown comes first"
        );
        assert_eq!(xattr(&ping, "user.note").as_deref(), Some(&b"hi"[..]));
        assert_eq!(xattr(&ping, "trusted.overlay.redirect"), None);
        assert_eq!(xattr(&ping, "user.overlay.opaque"), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whiteouts_and_opaque_folders_take_overlay_s_form() {
    let below = Layer::new().dir("a", 0o755).file("a/x", 0o644, "x").dir("b", 0o755).file("b/y", 0o644, "y");
    let above = Layer::new()
        .dir("a", 0o755)
        .whiteout("a/x")
        .dir("b", 0o755)
        .opaque("b")
        .file("b/z", 0o644, "z")
        .whiteout("c")
        .dir("c", 0o755)
        .file("d", 0o644, "d")
        .whiteout("d")
        .file(".wh..wh.plnk", 0o644, "aufs");
    let expect = [
        "d 0755 0:0 a",
        "c 0000 0:0 a/x 0:0",
        "d 0755 0:0 b",
        "- 0644 0:0 b/z =z",
        "d 0755 0:0 c",
        "- 0644 0:0 d =d",
    ];
    check(&[below.clone(), above.clone()], &expect).await;
    let (node, image) = pull(&[below, above], worker()).await;
    let image = image.unwrap();
    let tree = node.layer(&image, 1);
    assert_eq!(xattr(&tree.join("b"), "trusted.overlay.opaque").as_deref(), Some(&b"y"[..]));
    assert_eq!(
        xattr(&tree.join("c"), "trusted.overlay.opaque").as_deref(),
        Some(&b"y"[..]),
        "hidden, then new"
    );
    assert_eq!(xattr(&tree.join("a"), "trusted.overlay.opaque"), None);
    let read = |path: &str| node.images.read_file_in_layers(&image.layers, path, 10).unwrap();
    assert_eq!((read("a/x"), read("b/y"), read("b/z")), (None, None, Some(b"z".to_vec())));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_later_entry_wins() {
    let layer = Layer::new()
        .file("a", 0o644, "first")
        .file("a", 0o600, "second")
        .dir("b", 0o755)
        .dir("b/c", 0o755)
        .file("b/c/d", 0o644, "gone")
        .file("b", 0o644, "now a file")
        .file("e", 0o644, "now a folder")
        .dir("e", 0o700)
        .file("e/f", 0o644, "")
        .symlink("g", "e")
        .file("g", 0o644, "not through the link")
        .dir("h", 0o700)
        .file("h/i", 0o644, "")
        .dir("h", 0o711)
        .hardlink("e/f", "a");
    check(
        &[layer],
        &[
            "- 0600 0:0 a =second",
            "- 0644 0:0 b =now a file",
            "d 0700 0:0 e",
            "- 0600 0:0 e/f =second",
            "- 0644 0:0 g =not through the link",
            "d 0711 0:0 h",
            "- 0644 0:0 h/i =",
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn symlinked_folders_of_the_layer_lead_on_inside_it() {
    let layer = Layer::new()
        .dir("usr", 0o755)
        .dir("usr/lib", 0o755)
        .symlink("lib", "usr/lib")
        .symlink("abs", "/usr/lib")
        .symlink("up", "../../../../usr")
        .file("lib/one", 0o644, "1")
        .file("abs/two", 0o644, "2")
        .file("up/lib/three", 0o644, "3")
        .hardlink("four", "lib/one");
    check(
        &[layer],
        &[
            "l 0777 0:0 abs -> /usr/lib",
            "- 0644 0:0 four =1",
            "l 0777 0:0 lib -> usr/lib",
            "l 0777 0:0 up -> ../../../../usr",
            "d 0755 0:0 usr",
            "d 0755 0:0 usr/lib",
            "- 0644 0:0 usr/lib/one =1",
            "- 0644 0:0 usr/lib/three =3",
            "- 0644 0:0 usr/lib/two =2",
        ],
    )
    .await;
    refused(Layer::new().symlink("a", "b").symlink("b", "a").file("a/x", 0o644, ""), "too many symlinks")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_layer_implies_comes_from_below() {
    let below = Layer::new()
        .owner(5, 6)
        .dir("tmp", 0o1777)
        .file("tool", 0o4755, "tool")
        .dir("etc", 0o700)
        .symlink("ln", "tool");
    let middle = Layer::new().dir("var", 0o700).opaque("etc");
    let above = Layer::new()
        .file("tmp/x", 0o644, "x")
        .file("new/y", 0o644, "y")
        .hardlink("copy", "tool")
        .hardlink("again", "tool")
        .hardlink("ln2", "ln")
        .whiteout("etc/gone");
    let layers = [below, middle, above.clone()];
    check(
        &layers,
        &[
            "- 4755 5:6 again =tool",
            "- 4755 5:6 copy =tool",
            "d 0700 5:6 etc",
            "c 0000 0:0 etc/gone 0:0",
            "l 0777 0:0 ln2 -> tool",
            "d 0755 0:0 new",
            "- 0644 0:0 new/y =y",
            "d 1777 5:6 tmp",
            "- 0644 0:0 tmp/x =x",
        ],
    )
    .await;
    let (node, image) = pull(&layers, worker()).await;
    let tree = node.layer(&image.unwrap(), 2);
    assert_eq!(tree.join("copy").metadata().unwrap().ino(), tree.join("again").metadata().unwrap().ino());
    refused(Layer::new().hardlink("a", "nowhere"), "is nowhere").await;

    // A folder that is a symlink below: the entries go where it leads, as they would with the layers mounted.
    let merged = Layer::new()
        .dir("usr", 0o755)
        .owner(3, 3)
        .dir("usr/lib", 0o750)
        .owner(0, 0)
        .symlink("lib", "usr/lib")
        .symlink("deep", "/lib/more");
    let into = Layer::new()
        .file("lib/one", 0o644, "1")
        .file("deep/two", 0o644, "2")
        .whiteout("lib/sub/gone")
        .hardlink("lib/three", "lib/one");
    check(
        &[merged, into],
        &[
            "d 0755 0:0 usr",
            "d 0750 3:3 usr/lib",
            "d 0755 0:0 usr/lib/more",
            "- 0644 0:0 usr/lib/more/two =2",
            "- 0644 0:0 usr/lib/one =1",
            "d 0755 0:0 usr/lib/sub",
            "c 0000 0:0 usr/lib/sub/gone 0:0",
            "- 0644 0:0 usr/lib/three =1",
        ],
    )
    .await;

    // The same archive on other parents is another folder.
    let registry = Registry::start();
    let leaning = Layer::new().file("tmp/x", 0o644, "x");
    let on = |mode| ImageBuilder::new().layer(Layer::new().dir("tmp", mode)).layer(leaning.clone()).build();
    let (one, two) =
        (registry.push("one", "latest", &on(0o1777)), registry.push("two", "latest", &on(0o700)));
    let node = Node::new().await;
    let (one, two) = (node.pull(&one).await, node.pull(&two).await);
    assert_ne!(one.layers[1], two.layers[1]);
    assert_eq!(listing(&node.layer(&one, 1))[0], "d 1777 0:0 tmp");
    assert_eq!(listing(&node.layer(&two, 1))[0], "d 0700 0:0 tmp");
    let bottom = registry.push("three", "latest", &ImageBuilder::new().layer(leaning).build());
    let bottom = node.pull(&bottom).await;
    assert_eq!(listing(&node.layer(&bottom, 0))[0], "d 0755 0:0 tmp");
    let (node, before) = (node, 3);
    let node = node.restart().await;
    assert_eq!(node.images.list(None).len(), before, "all three survive a restart");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_escapes() {
    for layer in [
        Layer::new().file("../x", 0o644, ""),
        Layer::new().file("a/../../x", 0o644, ""),
        Layer::new().hardlink("x", "../../etc/passwd"),
        Layer::new().dir("a", 0o755).whiteout("a/.."),
    ] {
        refused(layer, "").await;
    }
    let outside = support::scratch();
    std::fs::write(outside.path().join("victim"), "untouched").unwrap();
    let target = outside.path().to_str().unwrap();
    let before = outside.path().metadata().unwrap().mode();
    let layer = Layer::new()
        .symlink("out", target)
        .file("out/victim", 0o666, "overwritten")
        .symlink("direct", &format!("{target}/victim"))
        .file("direct", 0o666, "overwritten")
        .symlink("d", target)
        .dir("d", 0o777)
        .hardlink("stolen", &format!("{target}/victim"));
    let tree = unpack(&[layer]).await.unwrap();
    assert!(tree.iter().any(|line| line.contains("overwritten")), "{tree:?}");
    assert_eq!(std::fs::read_to_string(outside.path().join("victim")).unwrap(), "untouched");
    assert_eq!(outside.path().metadata().unwrap().mode(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn ambiguous_and_broken_archives_are_refused() {
    let file = || Layer::new().file("f", 0o644, "content");
    let cut = |length: usize| Layer::new().raw(&file().tar()[..length]).without_end();
    let mut bad_sum = file().tar();
    bad_sum[0] ^= 1;
    let global = |record: &[u8]| {
        let size = record.len();
        Layer::new().entry(b'g', "g", 0o644, "", record, (0, 0)).file(&size.to_string(), 0o644, "")
    };
    let many = (0..65).fold(Layer::new(), |layer, n| layer.xattr(&format!("user.{n}"), b"v"));
    for (layer, why) in [
        (Layer::new().pax("size", b"9").file("f", 0o644, "content"), "in the header and"),
        (Layer::new().pax("size", b"-1").file("f", 0o644, ""), "no number"),
        (Layer::new().entry(b'5', "d", 0o755, "", b"data", (0, 0)), "without content"),
        (Layer::new().entry(b'1', "l", 0o755, "f", b"data", (0, 0)), "without content"),
        (Layer::new().gnu_long(b'L', "a").pax("path", b"b").file("c", 0o644, ""), "by GNU and by PAX"),
        (Layer::new().gnu_long(b'L', "a").gnu_long(b'L', "b").file("c", 0o644, ""), "given twice"),
        (global(b"10 path=x\n"), "global"),
        (Layer::new().entry(b'x', "p", 0o644, "", b"99 path=x\n", (0, 0)).file("f", 0o644, ""), "malformed"),
        (Layer::new().entry(b'S', "s", 0o644, "", b"", (0, 0)), "sparse"),
        (Layer::new().pax("GNU.sparse.major", b"1").file("s", 0o644, ""), "sparse"),
        (Layer::new().entry(b'V', "v", 0o644, "", b"", (0, 0)), "not supported"),
        (Layer::new().owner(4_294_967_295, 0).file("f", 0o644, ""), "reserved"),
        (Layer::new().owner(4_294_967_296, 0).file("f", 0o644, ""), "32 bits"),
        (Layer::new().pax("uid", b"99999999999").file("f", 0o644, ""), "32 bits"),
        (Layer::new().pax("path", b"a\0b").file("f", 0o644, ""), "zero byte"),
        (Layer::new().pax("path", "x/".repeat(3000).as_bytes()).file("f", 0o644, ""), "the limit is"),
        (Layer::new().pax("path", "x/".repeat(300).as_bytes()).file("f", 0o644, ""), "deeper"),
        (Layer::new().pax("path", "x".repeat(300).as_bytes()).file("f", 0o644, ""), "component"),
        (many.file("f", 0o644, ""), "attributes"),
        (Layer::new().hardlink("f", "f"), "to itself"),
        (Layer::new().dir("d", 0o755).hardlink("l", "d"), "to a folder"),
        (Layer::new().file(".", 0o644, "x"), "must be a folder"),
        (Layer::new().symlink("s", ""), "without a target"),
        (Layer::new().raw(&bad_sum).without_end(), "checksum"),
        (cut(100), "within a header"),
        (cut(515), "within an entry"),
    ] {
        refused(layer, why).await;
    }
    // A global header that only comments is fine, and so is an archive without its end mark.
    check(&[global(b"13 comment=x\n").without_end()], &["- 0644 0:0 13 ="]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_streams_are_refused() {
    let registry = Registry::start();
    let node = Node::with(|config| config.unpacker = worker()).await;
    let layer = Layer::new().file("f", 0o644, support::noise(300_000));
    for compression in [Compression::Gzip, Compression::Zstd] {
        let mut blob = layer.blob(compression);
        blob.truncate(blob.len() / 2);
        let digest = registry.put_blob(&blob);
        let image = ImageBuilder::new().layer_as(layer.clone(), compression).build();
        let old = &image.layers[0];
        let text = String::from_utf8(image.manifest.clone()).unwrap().replace(old.as_str(), &digest);
        let mut manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
        manifest["layers"][0]["size"] = blob.len().into();
        registry.push("cut", "whole", &image);
        registry.put_manifest("cut", "latest", &image.media_type, manifest.to_string().as_bytes());
        let error = node.images.pull(&format!("{}/cut:latest", registry.host()), None).await.unwrap_err();
        assert!(matches!(error, PullError::CorruptLayer { .. }), "{error:?}");
        node.wait_until_empty().await;
    }
    // gzip announced, zstd sent.
    let image = ImageBuilder::new().layer_as(layer.clone(), Compression::Zstd).build();
    let text = String::from_utf8(image.manifest.clone()).unwrap().replace("tar+zstd", "tar+gzip");
    registry.push("lie", "true", &image);
    registry.put_manifest("lie", "latest", &image.media_type, text.as_bytes());
    let error = node.images.pull(&format!("{}/lie:latest", registry.host()), None).await.unwrap_err();
    assert!(
        matches!(&error, PullError::CorruptLayer { reason, .. } if reason.contains("media type")),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_is_one_pull_s_error() {
    let registry = Registry::start();
    let name = registry.push(
        "app",
        "latest",
        &ImageBuilder::new().layer(Layer::new().file("f", 0o644, "x")).build(),
    );
    for program in ["/bin/false", "/nonexistent/program"] {
        let unpacker = Unpacker::Process { program: program.into(), args: Vec::new() };
        let node = Node::with(|config| config.unpacker = unpacker).await;
        let error = node.images.pull(&name, None).await.unwrap_err();
        assert!(matches!(error, PullError::Io { .. }), "{error:?}");
        node.wait_until_empty().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn big_files_and_lookups_through_symlinks() {
    let big = support::noise(5_000_000);
    let below = Layer::new()
        .dir("etc", 0o755)
        .symlink("etc/passwd", "../run/../data/passwd")
        .dir("data", 0o755)
        .file("data/passwd", 0o644, "old");
    let above = Layer::new()
        .dir("data", 0o755)
        .file("data/passwd", 0o644, "new")
        .dir("run", 0o755)
        .file("big", 0o644, &big)
        .symlink("loop", "loop")
        .symlink("d", "/data");
    let (node, image) = pull(&[below, above], worker()).await;
    let image = image.unwrap();
    let file = std::fs::File::open(node.layer(&image, 1).join("big")).unwrap();
    let mut read = vec![0; big.len()];
    file.read_exact_at(&mut read, 0).unwrap();
    assert!(read == big);
    let read = |path: &str, limit| node.images.read_file_in_layers(&image.layers, path, limit);
    assert_eq!(read("/etc/passwd", 10).unwrap(), Some(b"new".to_vec()));
    assert_eq!(read("d/passwd", 3).unwrap(), Some(b"new".to_vec()));
    assert!(read("/etc/passwd", 2).is_err(), "larger than the limit");
    assert_eq!(read("/etc", 10).unwrap(), None);
    assert_eq!(read("/etc/passwd/x", 10).unwrap(), None);
    assert_eq!(read("../../../etc/passwd", 10).unwrap(), Some(b"new".to_vec()));
    assert!(read("loop", 10).is_err());
}
