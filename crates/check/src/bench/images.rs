//! How long images take to come.

use std::time::Instant;

use anyhow::{Context as _, Result};
use bowline_testkit::{BuiltImage, Layer};

use super::figures::Figures;
use crate::node::Node;

/// How often each is pulled.
const ROUNDS: usize = 3;

/// Three shapes: one big layer, eight middling ones, many small files.
pub(super) async fn measure(nodes: &[Node], figures: &mut Figures) -> Result<()> {
    type Shape = fn() -> Vec<Layer>;
    let shapes: [(&str, Shape); 3] = [
        ("pull 1 x 64 MiB", || vec![Layer::new().file("data", 0o644, noise(64 << 20, 1))]),
        ("pull 8 x 8 MiB", || {
            (0..8)
                .map(|index| Layer::new().file(&format!("data{index}"), 0o644, noise(8 << 20, index + 2)))
                .collect()
        }),
        ("pull 10,000 files", || vec![small_files()]),
    ];
    for (name, shape) in shapes {
        let layers = shape();
        let mut served = Vec::new();
        for node in nodes {
            let built = image(node, name, &layers);
            let repository =
                name.to_ascii_lowercase().replace(|letter: char| !letter.is_ascii_alphanumeric(), "");
            served.push(node.run.workshop.serve(&repository, "1", &built));
        }
        for _ in 0..ROUNDS {
            for (node, reference) in nodes.iter().zip(&served) {
                let start = Instant::now();
                node.pull(reference).await.with_context(|| format!("{name} at {}", node.run.endpoint))?;
                figures.span(name, &node.run.endpoint, start.elapsed());
                node.remove_image(reference).await?;
            }
        }
    }
    Ok(())
}

fn image(node: &Node, name: &str, layers: &[Layer]) -> BuiltImage {
    let blank = node.run.workshop.blank(name).entrypoint(&["/none"]);
    layers.iter().fold(blank, |image, layer| image.layer(layer.clone())).build()
}

/// Bytes of which about half the bits surprise a compressor, as in real layers.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&(state & 0x0f0f_0f0f_0f0f_0f0f).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn small_files() -> Layer {
    let content = noise(2048 + 10_000, 99);
    let mut layer = Layer::new();
    for folder in 0..100 {
        layer = layer.dir(&format!("d{folder}"), 0o755);
        for file in 0..100 {
            let at = folder * 100 + file;
            layer = layer.file(&format!("d{folder}/f{file}"), 0o644, &content[at..at + 2048]);
        }
    }
    layer
}
