//! What the store keeps, gives back, and survives.

#![allow(clippy::unwrap_used)] // In a test, a panic is the report.

mod support;

use bowline_image::{ExportError, HoldError, ImportError, RemoveError};
use bowline_testkit::{Fault, ImageBuilder, Layer, Registry, docker_archive, oci_archive};
use support::Node;

fn image(word: &str) -> ImageBuilder {
    ImageBuilder::new().layer(Layer::new().file("word", 0o644, word)).env(&[&format!("WORD={word}")])
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_by_any_name_removes_all_names_and_gives_the_space_back() {
    let registry = Registry::start();
    let other = Registry::start();
    let built = image("gone").build();
    let names = [
        registry.push("a", "one", &built),
        registry.push("b", "two", &built),
        other.push("c", "three", &built),
    ];
    let node = Node::new().await;
    let empty = node.images.fs_info();
    for by in [names[0].clone(), built.id.clone(), format!("{}/b@{}", registry.host(), built.digest())] {
        for name in &names {
            node.pull(name).await;
        }
        let full = node.images.fs_info();
        assert!(full.used_bytes > empty.used_bytes && full.inodes_used > empty.inodes_used);
        assert!(full.mountpoint.is_dir());
        assert_eq!(node.images.list(None)[0].repo_tags.len(), 3);
        node.images.remove(&by).await.unwrap();
        assert!(node.images.list(None).is_empty(), "removed by {by}");
        let after = node.images.fs_info();
        assert_eq!((after.used_bytes, after.inodes_used), (empty.used_bytes, empty.inodes_used));
        node.wait_until_empty().await;
    }
    node.images.remove("never/heard:of").await.unwrap();
    node.images.remove(&"0".repeat(64)).await.unwrap();
    node.images.remove("sha256:").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ambiguous_id_is_not_removed() {
    let registry = Registry::start();
    let node = Node::new().await;
    let mut firsts = std::collections::BTreeMap::new();
    for n in 0..17 {
        let name = registry.push("many", &format!("t{n}"), &image(&n.to_string()).build());
        let hex = node.pull(&name).await.id.0.hex();
        *firsts.entry(hex[..1].to_owned()).or_insert(0) += 1;
    }
    let (first, _) = firsts.iter().find(|(_, count)| **count > 1).unwrap();
    assert!(node.images.resolve(first).is_none());
    assert!(matches!(node.images.remove(first).await, Err(RemoveError::Ambiguous(_))));
    assert_eq!(node.images.list(None).len(), 17);
    let ids: Vec<_> = node.images.list(None).iter().map(|image| image.id).collect();
    assert!(ids.is_sorted());
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_outlive_their_image_while_a_container_holds_them() {
    let registry = Registry::start();
    let name = registry.push("held", "latest", &image("held").build());
    let node = Node::new().await;
    node.pull(&name).await;
    let held = node.images.hold("container-1", &name).unwrap();
    node.images.hold("container-1", &name).expect("the same again is fine");
    node.images.remove(&name).await.unwrap();
    assert!(matches!(node.images.hold("container-2", &name), Err(HoldError::NoSuchImage(_))));
    let read = |node: &Node| node.images.read_file_in_layers(&held.layers, "word", 10);
    assert_eq!(read(&node).unwrap(), Some(b"held".to_vec()));

    // After a restart nothing goes before the containers have spoken.
    let node = node.restart().await;
    let second = registry.push("second", "latest", &image("second").build());
    node.pull(&second).await;
    node.images.remove(&second).await.unwrap();
    assert_eq!(read(&node).unwrap(), Some(b"held".to_vec()));
    node.images.hold_layers("container-1", &held.layers).unwrap();
    node.images.collect().await;
    assert_eq!(read(&node).unwrap(), Some(b"held".to_vec()));

    node.images.release("container-1");
    node.images.collect().await;
    node.wait_until_empty().await;
    assert!(matches!(node.images.hold_layers("container-1", &held.layers), Err(HoldError::NoSuchLayer(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_changes_nothing() {
    let registry = Registry::start();
    let node = Node::new().await;
    for n in 0..3 {
        node.pull(&registry.push("kept", &format!("v{n}"), &image(&n.to_string()).build())).await;
    }
    let see = |node: &Node| {
        let usage = node.images.fs_info();
        (format!("{:?}", node.images.list(None)), usage.used_bytes, usage.inodes_used)
    };
    let before = see(&node);
    let node = node.restart().await;
    assert_eq!(see(&node), before);
    let text = std::fs::read_to_string(node.config.root.join("index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 6);
    assert!(node.config.root.join("oci-layout").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_leaves_is_swept_at_the_next_start() {
    let registry = Registry::start();
    let name = registry.push("kept", "latest", &image("kept").build());
    let node = Node::new().await;
    let pulled = node.pull(&name).await;
    // What is written after the answer is not a crash's.
    node.wait_until_flushed().await;
    let clean = node.content();
    let root = node.config.root.clone();
    let nowhere = "ab".repeat(12);
    // Every state that docs/design/image-store.md says a crash can leave.
    std::fs::create_dir_all(root.join("tmp/7.tree/deep/er")).unwrap();
    std::fs::write(root.join("tmp/7.blob"), "half").unwrap();
    std::fs::write(root.join("tmp/8.file"), "{").unwrap();
    std::fs::create_dir_all(root.join(format!("layers/{nowhere}/etc"))).unwrap();
    std::fs::write(root.join(format!("layers/{}.json", "cd".repeat(12))), "{}").unwrap();
    std::fs::write(root.join("blobs/sha256/stray"), "x").unwrap();
    let node = node.restart().await;
    assert_eq!(node.content(), clean);
    assert_eq!(node.images.list(None).len(), 1);

    // Damage costs the damaged image its name, and the next pull repairs it.
    for damage in [format!("layers/{}.json", pulled.layers[0]), format!("blobs/sha256/{}", pulled.id.0.hex())]
    {
        std::fs::remove_file(root.join(&damage)).unwrap();
    }
    let node = node.restart().await;
    assert!(node.images.list(None).is_empty());
    node.images.collect().await;
    assert_eq!(node.pull(&name).await.id, pulled.id);
    assert_eq!(node.content(), clean);

    // A torn index costs what came since the last flush; without that, the names.
    node.wait_until_flushed().await;
    std::fs::write(root.join("index.json"), "not json").unwrap();
    let node = node.restart().await;
    assert_eq!(node.images.list(None).len(), 1);
    std::fs::write(root.join("index.json"), "not json").unwrap();
    std::fs::remove_file(root.join("index.json.synced")).unwrap();
    let node = node.restart().await;
    assert!(node.images.list(None).is_empty());
    assert!(root.join("index.json.bad").exists());
    node.images.collect().await;
    node.wait_until_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_flushed_does_not_survive_another_boot() {
    let registry = Registry::start();
    let (one, two) = (image("flushed").build(), image("torn").build());
    let node = Node::new().await;
    let flushed = node.pull(&registry.push("flushed", "latest", &one)).await;
    node.wait_until_flushed().await;
    let durable = node.config.root.join("durable.json");
    let record = std::fs::read_to_string(&durable).unwrap();
    let torn_name = registry.push("torn", "latest", &two);
    let torn = node.pull(&torn_name).await;
    node.wait_until_flushed().await;
    // The machine stops before the second flush: the record is the first one's, of another boot; a blob has holes.
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    std::fs::write(&durable, record.replace(boot.trim(), "another boot")).unwrap();
    let hole = node.config.root.join("blobs/sha256").join(two.layers[0].trim_start_matches("sha256:"));
    std::fs::write(&hole, "").unwrap();
    let node = node.restart().await;
    let ids: Vec<_> = node.images.list(None).iter().map(|image| image.id).collect();
    assert_eq!(ids, [flushed.id]);
    assert!(!node.layer(&torn, 0).exists() && !hole.exists());
    assert_eq!(node.pull(&torn_name).await.id, torn.id);
    let node = node.restart().await;
    assert_eq!(node.images.list(None).len(), 2, "the daemon's own end costs nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_is_refused() {
    let node = Node::new().await;
    let error = bowline_image::Images::open(node.config.clone()).await.err().unwrap();
    assert!(matches!(error, bowline_image::OpenError::InUse(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_pull_leaves_nothing() {
    let registry = Registry::start();
    let small = Layer::new().file("small", 0o644, "s");
    let noise = support::noise(3_000_000);
    let built = ImageBuilder::new().layer(small).layer(Layer::new().file("big", 0o644, noise)).build();
    let name = registry.push("slow", "latest", &built);
    registry.fault(&built.layers[1], Fault::HangAfter(1_500_000, 1));
    for unpacker in [bowline_image::Unpacker::InProcess, support::worker()] {
        registry.heal();
        registry.fault(&built.layers[1], Fault::HangAfter(1_500_000, 1));
        let node = Node::with(|config| {
            config.unpacker = unpacker;
            config.stall_timeout = std::time::Duration::from_secs(60);
        })
        .await;
        let (one, other) = (node.images.clone(), node.images.clone());
        let (first, second) = (name.clone(), name.clone());
        let one = tokio::spawn(async move { one.pull(&first, None).await });
        let other = tokio::spawn(async move { other.pull(&second, None).await });
        loop {
            let progress = node.images.pull_progress();
            if progress.iter().any(|pull| pull.layers_done == 1 && pull.bytes_done > 1_000_000) {
                assert_eq!(progress.len(), 1);
                assert_eq!(progress[0].layers_total, 2);
                assert!(progress[0].bytes_total > progress[0].bytes_done);
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(2)).await; // between looks
        }
        one.abort();
        let _ = one.await;
        assert_eq!(node.images.pull_progress().len(), 1, "somebody still waits");
        other.abort();
        let _ = other.await;
        node.wait_until_empty().await;
        assert!(node.images.list(None).is_empty());
        assert_eq!(node.pull(&name).await.id.to_string(), built.id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pins_match_names_and_patterns() {
    let registry = Registry::start();
    let host = registry.host();
    let node =
        Node::with(|config| config.pinned = vec![format!("{host}/pause:*"), format!("{host}/exact")]).await;
    for (repository, tag, pinned) in [
        ("pause", "3.9", true),
        ("exact", "latest", true),
        ("exact", "other", false),
        ("app", "latest", false),
    ] {
        let name = registry.push(repository, tag, &image(&format!("{repository}{tag}")).build());
        assert_eq!(node.pull(&name).await.pinned, pinned, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_imports_elsewhere() {
    let registry = Registry::start();
    let (one, two) = (image("one").build(), image("two").build());
    let names = [registry.push("one", "v1", &one), registry.push("two", "v2", &two)];
    let node = Node::new().await;
    for name in &names {
        node.pull(name).await;
    }
    let mut archive = Vec::new();
    node.images.export(&names, &mut archive).await.unwrap();
    let mut again = Vec::new();
    node.images.export(&names, &mut again).await.unwrap();
    assert_eq!(archive, again, "the same images give the same archive");

    let elsewhere = Node::new().await;
    let imported = elsewhere.images.import(archive.as_slice(), None).await.unwrap();
    assert_eq!(imported.len(), 2);
    for (built, name) in [(&one, &names[0]), (&two, &names[1])] {
        let image = elsewhere.images.resolve(name).unwrap();
        assert_eq!(image.id.to_string(), built.id);
        assert_eq!(image.repo_tags, std::slice::from_ref(name));
        let word = elsewhere.images.read_file_in_layers(&image.layers, "/word", 100).unwrap().unwrap();
        assert_eq!(image.config.env, [format!("WORD={}", String::from_utf8(word).unwrap())]);
    }
    let error = node.images.export(&["nothing:here".to_owned()], Vec::new()).await.unwrap_err();
    assert!(matches!(error, ExportError::NoSuchImage(_)));
    for name in &names {
        elsewhere.images.remove(name).await.unwrap();
    }
    elsewhere.wait_until_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_of_both_kinds_and_compressions_are_imported() {
    let built = image("packed").build();
    let layer = Layer::new().file("word", 0o644, "packed");
    let config = built.blobs[&built.id].clone();
    let oci = oci_archive(&[("example.test/packed:1", &built)]);
    let docker = docker_archive(&["example.test/packed:1"], &config, &[layer]);
    let gzip = |bytes: &[u8]| Layer::new().raw(bytes).without_end().blob(bowline_testkit::Compression::Gzip);
    for archive in [oci.clone(), docker.clone(), gzip(&oci), gzip(&docker)] {
        let node = Node::new().await;
        let imported = node.images.import(archive.as_slice(), None).await.unwrap();
        assert_eq!(imported[0].names, ["example.test/packed:1"]);
        assert_eq!(imported[0].id.to_string(), built.id);
        let image = node.images.resolve("example.test/packed:1").unwrap();
        assert_eq!(node.images.read_file_in_layers(&image.layers, "word", 10).unwrap().unwrap(), b"packed");
        let mut out = Vec::new();
        node.images.export(std::slice::from_ref(&built.id), &mut out).await.unwrap();
        let renamed = node.images.import(out.as_slice(), Some("other.test/name:2")).await.unwrap();
        assert_eq!(renamed[0].names, ["other.test/name:2"]);
        assert_eq!(node.images.list(None)[0].repo_tags, ["example.test/packed:1", "other.test/name:2"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_archive_leaves_nothing() {
    let node = Node::new().await;
    let built = image("broken").build();
    let mut flipped = oci_archive(&[("example.test/broken:1", &built)]);
    let layer = &built.blobs[&built.layers[0]];
    let at = flipped.windows(layer.len()).position(|window| window == layer.as_slice()).unwrap();
    flipped[at + layer.len() / 2] ^= 1;
    let cases = [
        flipped,
        Layer::new().file("hello", 0o644, "x").tar(),
        b"not an archive at all".repeat(100),
        Vec::new(),
    ];
    for archive in cases {
        let error = node.images.import(archive.as_slice(), None).await.unwrap_err();
        assert!(matches!(error, ImportError::BadArchive(_) | ImportError::Image(_)), "{error:?}");
        node.images.collect().await;
        node.wait_until_empty().await;
    }
}
