//! Images that are there: their names, their ids, their removal.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bowline_cri_proto::v1;
use bowline_testkit::{BuiltImage, Layer, Registry};
use futures_util::future::join_all;

use super::case::{Case, case, same};
use crate::endpoint::ask;
use crate::node::{Found, Node, until};

pub(super) const CASES: &[Case] = &[
    case!("image/status-forms", "CT", status_forms).serial().quick(),
    case!("image/status-missing", "CK", status_missing).quick(),
    case!("image/user", "CK", user),
    case!("image/size", "K", size),
    case!("image/three-images", "C", three_images).serial(),
    case!("image/three-tags", "C", three_tags).serial(),
    case!("image/two-registries", "C", two_registries).serial(),
    case!("image/remove-by-id", "CK", remove_by_id).serial(),
    case!("image/remove-by-tag", "P", remove_by_tag),
    case!("image/remove-many", "C", remove_many).serial(),
    case!("image/same-id-everywhere", "CK", same_id_everywhere),
    case!("image/list-image-resolves", "T", list_image_resolves),
    case!("image/in-use-removal", "K", in_use_removal),
    case!("image/fs-info", "K", fs_info),
];

fn small(node: &Node, name: &str) -> BuiltImage {
    let layer = Layer::new().file("word", 0o644, node.unique(name));
    node.run.workshop.blank(&node.unique(name)).layer(layer).entrypoint(&["/none"]).build()
}

async fn get(node: &Node, reference: &str) -> Result<v1::Image> {
    node.image_status(reference).await?.with_context(|| format!("{reference} is not there"))
}

async fn listed(node: &Node, id: &str) -> Result<Option<v1::Image>> {
    Ok(node.list_images().await?.into_iter().find(|image| image.id == id))
}

async fn status_forms(node: Node) -> Result<()> {
    let built = small(&node, "forms");
    let workshop = &node.run.workshop;
    let mut forms = Vec::new();
    for tag in ["latest", "b", "a"] {
        forms.push(workshop.serve("status-forms", tag, &built));
    }
    let bare = forms[0].trim_end_matches(":latest").to_owned();
    for name in forms.clone() {
        node.pull(&name).await?;
    }
    let id = get(&node, &forms[0]).await?.id;
    forms.push(format!("{bare}@{}", built.digest()));
    forms.push(bare);
    forms.push(id.trim_start_matches("sha256:").get(..12).context("a short id")?.to_owned());
    forms.push(id.clone());
    let expected = get(&node, &id).await?;
    for form in &forms {
        same!(get(&node, form).await?, expected, "the status by {form}");
    }
    same!(listed(&node, &id).await?, Some(expected), "the list's entry");
    Ok(())
}

async fn status_missing(node: Node) -> Result<()> {
    for name in ["registry.example/no/such:image", &"5".repeat(64), &format!("sha256:{}", "4".repeat(64))] {
        ensure!(node.image_status(name).await?.is_none(), "{name} is there");
    }
    Ok(())
}

async fn user(node: Node) -> Result<()> {
    let forms = [
        ("1002", Some(1002), ""),
        ("someone", None, "someone"),
        ("1003:50", Some(1003), ""),
        ("someone:staff", None, "someone"),
        ("0", Some(0), ""),
    ];
    for (index, (user, uid, username)) in forms.into_iter().enumerate() {
        let built = node.run.workshop.blank(&node.unique("user")).layer(Layer::new()).user(user).build();
        let reference = node.pull_built(&format!("user{index}"), &built).await?;
        let status = get(&node, &reference).await?;
        same!(
            (status.uid.map(|uid| uid.value), status.username.as_str()),
            (uid, username),
            "uid and username of `{user}`"
        );
    }
    Ok(())
}

async fn size(node: Node) -> Result<()> {
    let built = node.run.workshop.blank(&node.unique("empty")).build();
    let reference = node.pull_built("empty", &built).await?;
    ensure!(get(&node, &reference).await?.size > 0, "the size of an image without layers is zero");
    ensure!(node.list_images().await?.iter().all(|image| image.size > 0), "a listed image has size zero");
    Ok(())
}

async fn three_images(node: Node) -> Result<()> {
    let mut ids = Vec::new();
    for name in ["one", "two", "three"] {
        let reference = node.run.workshop.serve(&format!("three-images/{name}"), "1", &small(&node, name));
        node.pull(&reference).await?;
        let image = get(&node, &reference).await?;
        same!(image.repo_tags, vec![reference], "tags");
        ids.push(image.id);
    }
    ids.sort();
    ids.dedup();
    same!(ids.len(), 3, "different ids");
    Ok(())
}

async fn three_tags(node: Node) -> Result<()> {
    let built = small(&node, "tags");
    let mut names: Vec<_> =
        ["1", "2", "3"].iter().map(|tag| node.run.workshop.serve("three-tags", tag, &built)).collect();
    for name in &names {
        node.pull(name).await?;
    }
    let id = get(&node, &names[0]).await?.id;
    let images: Vec<_> = node.list_images().await?.into_iter().filter(|image| image.id == id).collect();
    same!(images.len(), 1, "listed images");
    let mut tags = images[0].repo_tags.clone();
    tags.sort();
    names.sort();
    same!(tags, names, "tags");
    Ok(())
}

/// Pulls one content from our registry and from another one.
async fn from_two(node: &Node, other: &Registry, name: &str) -> Result<(String, Vec<String>)> {
    let built = small(node, name);
    let mut names = vec![node.run.workshop.serve(name, "1", &built), other.push(name, "1", &built)];
    let mut ids = Vec::new();
    for reference in &names {
        node.pull(reference).await?;
        ids.push(get(node, reference).await?.id);
    }
    same!(ids[0], ids[1], "the ids of one content");
    names.sort();
    Ok((ids.remove(0), names))
}

async fn two_registries(node: Node) -> Result<()> {
    let other = Registry::start();
    let (id, names) = from_two(&node, &other, "two-registries").await?;
    let mut tags = get(&node, &id).await?.repo_tags;
    tags.sort();
    same!(tags, names, "tags");
    Ok(())
}

async fn remove_by_id(node: Node) -> Result<()> {
    let other = Registry::start();
    let (id, names) = from_two(&node, &other, "remove-by-id").await?;
    node.remove_image(&id).await?;
    for name in names.iter().chain([&id]) {
        ensure!(node.image_status(name).await?.is_none(), "{name} is still there when the call returns");
    }
    ensure!(listed(&node, &id).await?.is_none(), "still listed when the call returns");
    node.remove_image(&id).await.context("the second removal")
}

async fn remove_by_tag(node: Node) -> Result<()> {
    let built = small(&node, "by-tag");
    let names: Vec<_> = ["1", "2"].iter().map(|tag| node.run.workshop.serve("by-tag", tag, &built)).collect();
    for name in &names {
        node.pull(name).await?;
    }
    let id = get(&node, &names[0]).await?.id;
    node.remove_image(&names[0]).await?;
    for name in names.iter().chain([&id]) {
        ensure!(node.image_status(name).await?.is_none(), "{name} is still there");
    }
    Ok(())
}

async fn remove_many(node: Node) -> Result<()> {
    let mut names = Vec::new();
    for index in 0..5 {
        let name = node.run.workshop.serve(&format!("many/{index}"), "1", &small(&node, "many"));
        node.pull(&name).await?;
        names.push(name);
    }
    let removals = names.iter().map(|name| {
        let node = node.clone();
        async move {
            node.remove_image(name).await?;
            ensure!(node.image_status(name).await?.is_none(), "{name} is seen after its removal");
            Ok(())
        }
    });
    join_all(removals).await.into_iter().collect::<Result<Vec<_>>>()?;
    node.remove_image(&"0".repeat(64)).await.context("64 zeros as an id")
}

async fn same_id_everywhere(node: Node) -> Result<()> {
    let reference = node.run.workshop.serve("same-id", "1", &node.run.workshop.image("same-id").build());
    let pulled = node.pull(&reference).await?;
    let image = get(&node, &reference).await?;
    same!(image.id, pulled, "Image.id and PullImage's answer");
    let pod = node.pod("same").run().await?;
    let container = pod.container("main").image(&reference).create().await?;
    same!(container.status().await?.image_id, pulled, "status.image_id");
    let own = node.own_containers().await?;
    same!(own.first().map(|own| own.image_id.as_str()), Some(pulled.as_str()), "image_id in the list");
    Ok(())
}

async fn list_image_resolves(node: Node) -> Result<()> {
    let pod = node.pod("resolves").run().await?;
    pod.container("main").create().await?;
    let id = get(&node, &node.run.image).await?.id;
    pod.container("by-id").image(&id).create().await?;
    for container in node.own_containers().await? {
        let name = container.image.context("no image in the list")?.image;
        same!(get(&node, &name).await?.id, container.image_id, "what `{name}` resolves to");
    }
    Ok(())
}

async fn in_use_removal(node: Node) -> Result<()> {
    let reference = node.pull_built("used", &node.run.workshop.image("used").build()).await?;
    let pod = node.pod("used").run().await?;
    let container = pod.container("main").image(&reference).start().await?;
    let before = container.status().await?;
    // Refusing it is allowed as well; the container must not notice either way.
    let _ = node.remove_image(&reference).await;
    container.exec(&["read", "/data/shipped"]).await?.is("read", "from the image")?;
    let after = container.status().await?;
    same!((after.state, after.image_id), (before.state, before.image_id), "state and image_id");
    Ok(())
}

async fn filesystems(node: &Node) -> Result<v1::ImageFsInfoResponse> {
    Ok(node.images().image_fs_info(ask(v1::ImageFsInfoRequest {})).await?.into_inner())
}

async fn fs_info(node: Node) -> Result<()> {
    let used = |info: &v1::ImageFsInfoResponse| {
        info.image_filesystems.first().and_then(|fs| fs.used_bytes.as_ref()).map_or(0, |bytes| bytes.value)
    };
    let info = filesystems(&node).await?;
    let first = info.image_filesystems.first().context("no file system")?;
    let mountpoint = first.fs_id.clone().context("no fs_id")?.mountpoint;
    ensure!(Path::new(&mountpoint).exists(), "the mount point {mountpoint} does not exist");
    ensure!(
        used(&info) > 0 && first.inodes_used.as_ref().is_some_and(|n| n.value > 0),
        "bytes or inodes are zero"
    );
    let age = i64::try_from(jiff::Timestamp::now().as_nanosecond())? - first.timestamp;
    ensure!(age.abs() < 120_000_000_000, "the timestamp is {} s old", age / 1_000_000_000);
    // Much bigger than what other cases come and go with meanwhile.
    let noise: Vec<u8> =
        (0u32..48 << 18).flat_map(|word| word.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let layer = Layer::new().file("noise", 0o644, noise);
    let built = node.run.workshop.blank("big").layer_as(layer, bowline_testkit::Compression::Plain).build();
    let before = used(&filesystems(&node).await?);
    let reference = node.pull_built("big", &built).await?;
    let risen = until("a rise after a pull", Duration::from_secs(25), async || {
        let now = used(&filesystems(&node).await?);
        Ok(if now > before + (24 << 20) {
            Found::Yes(now)
        } else {
            Found::Not(format!("{before} and then {now}"))
        })
    })
    .await?;
    node.remove_image(&reference).await?;
    until("a fall after a removal", Duration::from_secs(25), async || {
        let now = used(&filesystems(&node).await?);
        Ok(if now + (24 << 20) < risen {
            Found::Yes(())
        } else {
            Found::Not(format!("{risen} and then {now}"))
        })
    })
    .await
}
