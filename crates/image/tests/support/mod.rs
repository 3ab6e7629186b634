//! What the tests of this crate share.
#![allow(dead_code, clippy::unwrap_used)] // Each test program uses a part; a test may panic.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bowline_image::{Image, Images, ImagesConfig, Unpacker};

/// A store in a folder that goes away.
pub struct Node {
    pub dir: tempfile::TempDir,
    pub images: Images,
    pub config: ImagesConfig,
}

pub fn scratch() -> tempfile::TempDir {
    // On memory where possible: syncfs of a busy disk would dominate the tests.
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// The worker program, which cargo builds beside the tests.
pub fn worker() -> Unpacker {
    let exe = std::env::current_exe().unwrap();
    let program = exe.parent().unwrap().parent().unwrap().join("examples/unpack-worker");
    assert!(program.exists(), "{} is not built", program.display());
    Unpacker::Process { program, args: vec!["unpack".to_owned()] }
}

pub fn config_at(dir: &Path) -> ImagesConfig {
    let mut config = ImagesConfig::new(dir.join("images"), Unpacker::InProcess);
    config.registry_config_dirs = vec![dir.join("certs.d")];
    config.stall_timeout = Duration::from_secs(5);
    config
}

impl Node {
    pub async fn new() -> Node {
        Node::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut ImagesConfig)) -> Node {
        let dir = scratch();
        let mut config = config_at(dir.path());
        change(&mut config);
        let images = Images::open(config.clone()).await.unwrap();
        images.collect().await;
        Node { dir, images, config }
    }

    /// Ends the daemon and starts it again.
    pub async fn restart(self) -> Node {
        let Node { dir, images, config } = self;
        drop(images);
        // The last background work may hold the store for another moment.
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match Images::open(config.clone()).await {
                Ok(images) => return Node { dir, images, config },
                Err(error) if Instant::now() > deadline => panic!("{error}"),
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }

    pub async fn pull(&self, name: &str) -> std::sync::Arc<Image> {
        let id = self.images.pull(name, None).await.unwrap_or_else(|error| panic!("pull {name}: {error:?}"));
        self.images.resolve(&id.to_string()).expect("a pulled image resolves")
    }

    /// The folder of the image's n-th layer from the bottom.
    pub fn layer(&self, image: &Image, n: usize) -> PathBuf {
        self.images.layers_dir().join(image.layers[n].as_str())
    }

    /// What lies in the store: names of layers, blobs, and work in progress.
    pub fn content(&self) -> Vec<String> {
        let root = self.config.root.clone();
        let mut all = Vec::new();
        for folder in ["layers", "blobs/sha256", "tmp"] {
            for entry in std::fs::read_dir(root.join(folder)).unwrap().flatten() {
                all.push(format!("{folder}/{}", entry.file_name().to_string_lossy()));
            }
        }
        all.sort();
        all
    }

    /// Waits until all layers and blobs are recorded as durable.
    pub async fn wait_until_flushed(&self) {
        let deadline = Instant::now() + Duration::from_secs(15);
        loop {
            let text = std::fs::read_to_string(self.config.root.join("durable.json")).unwrap_or_default();
            let index = std::fs::read(self.config.root.join("index.json")).unwrap_or_default();
            let synced = std::fs::read(self.config.root.join("index.json.synced")).unwrap_or_default();
            let names = self.content();
            let mut parts = names.iter().filter_map(|name| name.rsplit('/').next());
            if index == synced && parts.all(|part| text.contains(part.trim_end_matches(".json"))) {
                return;
            }
            assert!(Instant::now() < deadline, "not flushed: {text}");
            tokio::time::sleep(Duration::from_millis(5)).await; // between looks
        }
    }

    /// Waits until nothing but what names refer to is there.
    pub async fn wait_until_empty(&self) {
        let deadline = Instant::now() + Duration::from_secs(15);
        while !self.content().is_empty() || !self.images.pull_progress().is_empty() {
            assert!(Instant::now() < deadline, "left behind: {:?}", self.content());
            tokio::time::sleep(Duration::from_millis(5)).await; // between looks
        }
    }
}

/// `type mode uid:gid path [-> target | =content | major:minor] [mtime]` of everything below `root`, sorted.
pub fn listing(root: &Path) -> Vec<String> {
    fn walk(root: &Path, at: &Path, out: &mut Vec<String>) {
        for entry in std::fs::read_dir(at).unwrap().flatten() {
            let path = entry.path();
            let stat = std::fs::symlink_metadata(&path).unwrap();
            let shown = path.strip_prefix(root).unwrap().display().to_string();
            let kind = stat.file_type();
            let detail = if kind.is_symlink() {
                format!(" -> {}", std::fs::read_link(&path).unwrap().display())
            } else if kind.is_file() && stat.len() < 100 {
                format!(" ={}", String::from_utf8_lossy(&std::fs::read(&path).unwrap()))
            } else if kind.is_char_device() || kind.is_block_device() {
                format!(" {}:{}", stat.rdev() >> 8, stat.rdev() & 0xff)
            } else {
                String::new()
            };
            let letter = match () {
                () if kind.is_dir() => 'd',
                () if kind.is_symlink() => 'l',
                () if kind.is_char_device() => 'c',
                () if kind.is_block_device() => 'b',
                () if kind.is_fifo() => 'p',
                () => '-',
            };
            let mode = stat.permissions().mode() & 0o7777;
            out.push(format!("{letter} {mode:04o} {}:{} {shown}{detail}", stat.uid(), stat.gid()));
            if kind.is_dir() {
                walk(root, &path, out);
            }
        }
    }
    let mut out = Vec::new();
    walk(root, root, &mut out);
    out.sort_by_key(|line| line.splitn(4, ' ').nth(3).map(str::to_owned));
    out
}

/// An extended attribute.
pub fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0u8; 4096];
    let length = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(length);
    Some(value)
}

/// Bytes that do not compress, the same on each run.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..length).map(|_| next()).collect()
}
