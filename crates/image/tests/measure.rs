//! How long pulls take. Not a test: `cargo test -p bowline-image --test measure -- --ignored --nocapture`, with TMPDIR on the
//! disk in question.

#![allow(clippy::unwrap_used)] // In a test, a panic is the report.

mod support;

use std::time::Instant;

use bowline_image::Images;
use bowline_testkit::{ImageBuilder, Layer, Registry};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn pulls() {
    let registry = Registry::start();
    let noise = support::noise(64 << 20);
    let half = |from: usize, length: usize| [&noise[from..from + length / 2], &vec![0; length / 2]].concat();
    let one = ImageBuilder::new().layer(Layer::new().file("f", 0o644, half(0, 64 << 20)));
    let mut eight = ImageBuilder::new();
    for n in 0..8 {
        eight = eight.layer(Layer::new().file("f", 0o644, half(n << 20, 8 << 20)));
    }
    let mut files = Layer::new();
    for n in 0..10_000 {
        if n % 100 == 0 {
            files = files.dir(&format!("d{}", n / 100), 0o755);
        }
        files = files.file(&format!("d{}/f{n}", n / 100), 0o644, &noise[n..n + 2048]);
    }
    let many = ImageBuilder::new().layer(files);
    let mut dirs = Vec::new();
    for (what, image) in
        [("one layer of 64 MiB", one), ("eight layers of 8 MiB", eight), ("10,000 files of 2 KiB", many)]
    {
        let name = registry.push("measure", "latest", &image.build());
        let mut times = Vec::new();
        for _ in 0..5 {
            // Kept to the end: ext4 passes over inodes freed in the last seconds one by one, 1 ms per new file after a big removal.
            dirs.push(tempfile::tempdir().unwrap());
            let dir = &dirs[dirs.len() - 1];
            let mut config = support::config_at(dir.path());
            config.unpacker = support::worker();
            let images = Images::open(config).await.unwrap();
            // Not the writes of the run before.
            rustix::fs::sync();
            let start = Instant::now();
            images.pull(&name, None).await.unwrap();
            times.push(start.elapsed());
            let flushed = dir.path().join("images/index.json.synced");
            while std::fs::read_to_string(&flushed).is_ok_and(|text| !text.contains("measure")) {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await; // between looks
            }
        }
        times.sort();
        println!("{what}: median {:?}, all {times:?}", times[2]);
    }
}
