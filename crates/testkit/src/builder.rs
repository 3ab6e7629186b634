//! Images in memory.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::layer::{Compression, Layer, sha256};

/// Which family of media types an image uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MediaTypes {
    /// `application/vnd.oci..`
    Oci,
    /// `application/vnd.docker..`
    Docker,
}

/// An image being described. The defaults make a Linux image for this machine with gzip layers and OCI types.
#[derive(Clone)]
pub struct ImageBuilder {
    layers: Vec<(Layer, Compression)>,
    types: MediaTypes,
    platform: (String, String, Option<String>),
    config: serde_json::Map<String, Value>,
    /// Text for `edit`ed configs and the like.
    diff_ids: Option<Vec<String>>,
    annotations: BTreeMap<String, String>,
}

/// An image with all its bytes.
#[derive(Clone, Debug)]
pub struct BuiltImage {
    /// The manifest or index that a tag points to.
    pub manifest: Vec<u8>,
    /// Its media type.
    pub media_type: String,
    /// Every blob, by digest; for an index the manifests below it are in `manifests`.
    pub blobs: BTreeMap<String, Vec<u8>>,
    /// Manifests below an index: digest -> (media type, bytes).
    pub manifests: BTreeMap<String, (String, Vec<u8>)>,
    /// The config's digest, which is the image id (empty for an index).
    pub id: String,
    /// Layer blobs, bottom first (empty for an index).
    pub layers: Vec<String>,
    platform: (String, String, Option<String>),
}

impl BuiltImage {
    /// The digest of `manifest`.
    pub fn digest(&self) -> String {
        sha256(&self.manifest)
    }
}

/// GOARCH of this machine.
fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl Default for ImageBuilder {
    fn default() -> ImageBuilder {
        ImageBuilder::new()
    }
}

impl ImageBuilder {
    /// An image without layers.
    pub fn new() -> ImageBuilder {
        ImageBuilder {
            layers: Vec::new(),
            types: MediaTypes::Oci,
            platform: ("linux".to_owned(), host_architecture().to_owned(), None),
            config: serde_json::Map::new(),
            diff_ids: None,
            annotations: BTreeMap::new(),
        }
    }

    /// Adds a layer on top, gzipped.
    pub fn layer(self, layer: Layer) -> ImageBuilder {
        self.layer_as(layer, Compression::Gzip)
    }

    /// Adds a layer on top.
    pub fn layer_as(mut self, layer: Layer, compression: Compression) -> ImageBuilder {
        self.layers.push((layer, compression));
        self
    }

    /// Chooses the media types.
    pub fn types(mut self, types: MediaTypes) -> ImageBuilder {
        self.types = types;
        self
    }

    /// What it is made for.
    pub fn platform(mut self, os: &str, architecture: &str, variant: Option<&str>) -> ImageBuilder {
        self.platform = (os.to_owned(), architecture.to_owned(), variant.map(str::to_owned));
        self
    }

    /// `user[:group]`.
    pub fn user(self, user: &str) -> ImageBuilder {
        self.set("User", json!(user))
    }

    /// `NAME=value` items.
    pub fn env(self, env: &[&str]) -> ImageBuilder {
        self.set("Env", json!(env))
    }

    /// The program.
    pub fn entrypoint(self, words: &[&str]) -> ImageBuilder {
        self.set("Entrypoint", json!(words))
    }

    /// Its default arguments.
    pub fn cmd(self, words: &[&str]) -> ImageBuilder {
        self.set("Cmd", json!(words))
    }

    /// The working folder.
    pub fn working_dir(self, path: &str) -> ImageBuilder {
        self.set("WorkingDir", json!(path))
    }

    /// The signal that asks it to end.
    pub fn stop_signal(self, signal: &str) -> ImageBuilder {
        self.set("StopSignal", json!(signal))
    }

    /// Paths that want a volume.
    pub fn volumes(self, paths: &[&str]) -> ImageBuilder {
        let volumes: serde_json::Map<String, Value> =
            paths.iter().map(|p| ((*p).to_owned(), json!({}))).collect();
        self.set("Volumes", Value::Object(volumes))
    }

    /// Labels.
    pub fn labels(self, labels: &[(&str, &str)]) -> ImageBuilder {
        let labels: BTreeMap<_, _> = labels.iter().copied().collect();
        self.set("Labels", json!(labels))
    }

    /// An annotation of the manifest.
    pub fn annotation(mut self, key: &str, value: &str) -> ImageBuilder {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Any field of the config's process part.
    pub fn set(mut self, key: &str, value: Value) -> ImageBuilder {
        self.config.insert(key.to_owned(), value);
        self
    }

    /// Lies about the layers' content.
    pub fn claimed_diff_ids(mut self, diff_ids: &[&str]) -> ImageBuilder {
        self.diff_ids = Some(diff_ids.iter().map(|id| (*id).to_owned()).collect());
        self
    }

    /// Writes everything down.
    pub fn build(&self) -> BuiltImage {
        let oci = self.types == MediaTypes::Oci;
        let mut blobs = BTreeMap::new();
        let mut layers = Vec::new();
        let mut descriptors = Vec::new();
        for (layer, compression) in &self.layers {
            let blob = layer.blob(*compression);
            let media_type = match (oci, compression) {
                (true, Compression::Plain) => "application/vnd.oci.image.layer.v1.tar",
                (true, Compression::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
                (true, Compression::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
                (false, Compression::Plain) => "application/vnd.docker.image.rootfs.diff.tar",
                (false, _) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            };
            let digest = sha256(&blob);
            descriptors.push(json!({"mediaType": media_type, "digest": digest, "size": blob.len()}));
            layers.push(digest.clone());
            blobs.insert(digest, blob);
        }
        let diff_ids = self.diff_ids.clone();
        let diff_ids =
            diff_ids.unwrap_or_else(|| self.layers.iter().map(|(layer, _)| layer.diff_id()).collect());
        let mut config = json!({
            "os": self.platform.0,
            "architecture": self.platform.1,
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "created": "2001-09-09T01:46:40Z",
        });
        if let Some(variant) = &self.platform.2 {
            config["variant"] = json!(variant);
        }
        let config = config.to_string().into_bytes();
        let id = sha256(&config);
        let (media_type, config_type) = if oci {
            ("application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.config.v1+json")
        } else {
            (
                "application/vnd.docker.distribution.manifest.v2+json",
                "application/vnd.docker.container.image.v1+json",
            )
        };
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": {"mediaType": config_type, "digest": id, "size": config.len()},
            "layers": descriptors,
        });
        if !self.annotations.is_empty() {
            manifest["annotations"] = json!(self.annotations);
        }
        blobs.insert(id.clone(), config);
        BuiltImage {
            manifest: manifest.to_string().into_bytes(),
            media_type: media_type.to_owned(),
            blobs,
            manifests: BTreeMap::new(),
            id,
            layers,
            platform: self.platform.clone(),
        }
    }
}

/// An index over images of different platforms.
pub fn index_of(images: &[BuiltImage], types: MediaTypes) -> BuiltImage {
    let media_type = match types {
        MediaTypes::Oci => "application/vnd.oci.image.index.v1+json",
        MediaTypes::Docker => "application/vnd.docker.distribution.manifest.list.v2+json",
    };
    let entries: Vec<Value> = images
        .iter()
        .map(|image| {
            let (os, architecture, variant) = &image.platform;
            let mut platform = json!({"os": os, "architecture": architecture});
            if let Some(variant) = variant {
                platform["variant"] = json!(variant);
            }
            json!({
                "mediaType": image.media_type, "digest": image.digest(), "size": image.manifest.len(), "platform": platform,
            })
        })
        .collect();
    let manifest = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": entries});
    BuiltImage {
        manifest: manifest.to_string().into_bytes(),
        media_type: media_type.to_owned(),
        blobs: images.iter().flat_map(|image| image.blobs.clone()).collect(),
        manifests: images
            .iter()
            .map(|image| (image.digest(), (image.media_type.clone(), image.manifest.clone())))
            .collect(),
        id: String::new(),
        layers: Vec::new(),
        platform: (String::new(), String::new(), None),
    }
}

/// What `buildah from scratch`, `buildah add .. archive.tar /` and `buildah config --annotation` make of a checkpoint's archive:
/// its files as the only layer. The annotation is CRI-O's.
pub fn checkpoint_image(archive: Vec<u8>, name: &str) -> ImageBuilder {
    let layer = Layer::new().raw(&archive).without_end();
    ImageBuilder::new().layer(layer).annotation("io.kubernetes.cri-o.annotations.checkpoint.name", name)
}

/// The applets that [`busybox`] offers.
const APPLETS: &[&str] = &[
    "awk", "cat", "chmod", "chown", "cp", "cut", "date", "dd", "df", "echo", "env", "false", "find", "grep",
    "head", "hostname", "httpd", "id", "ifconfig", "ip", "kill", "ln", "ls", "mkdir", "mknod", "mount", "mv",
    "nc", "nslookup", "ping", "printf", "ps", "pwd", "readlink", "rm", "sed", "seq", "sh", "sleep", "sort",
    "stat", "stty", "sync", "tail", "tee", "test", "timeout", "top", "touch", "tr", "true", "tty", "umount",
    "uname", "vi", "wc", "wget", "which", "whoami", "xargs", "yes",
];

/// A small, complete system around the machine's static busybox; `None` if there is none at /bin/busybox.
pub fn busybox() -> Option<ImageBuilder> {
    let program = std::fs::read("/bin/busybox").ok()?;
    let mut layer = Layer::new().dir("bin", 0o755).file("bin/busybox", 0o755, program);
    for applet in APPLETS {
        layer = layer.hardlink(&format!("bin/{applet}"), "bin/busybox");
    }
    layer = layer
        .dir("dev", 0o755)
        .dir("etc", 0o755)
        .file(
            "etc/passwd",
            0o644,
            "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\n\
             www:x:1000:1000:www:/home:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
        )
        .file("etc/group", 0o644, "root:x:0:\ndaemon:x:1:\nstaff:x:50:www\nwww:x:1000:\nnogroup:x:65534:\n")
        .dir("home", 0o755)
        .dir("proc", 0o555)
        .dir("root", 0o700)
        .dir("sys", 0o555)
        .dir("tmp", 0o1777)
        .dir("usr", 0o755)
        .dir("usr/bin", 0o755)
        .symlink("usr/bin/env", "../../bin/env")
        .dir("var", 0o755);
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    Some(ImageBuilder::new().layer(layer).env(&[path]).cmd(&["sh"]))
}
