//! What all cases of a run share: the connection, the images, the scratch folder.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};
use bowline_cri_proto::v1;

use crate::endpoint::{self, Images, Runtime, ask};
use crate::images::{Workshop, find_helper};
use crate::node::image;

/// What all cases of a run share.
pub(crate) struct Run {
    pub(crate) runtime: Runtime,
    pub(crate) images: Images,
    pub(crate) endpoint: String,
    pub(crate) workshop: Workshop,
    /// The reference of the image that most cases use; it has been pulled.
    pub(crate) image: String,
    pub(crate) handler: String,
    pub(crate) name: String,
    pub(crate) scratch: PathBuf,
    pub(crate) status: v1::StatusResponse,
    pub(crate) restart: Option<String>,
    /// Where NRI plugins connect.
    pub(crate) nri_socket: Option<PathBuf>,
}

/// What a run needs to be told.
pub(crate) struct Setup<'a> {
    pub(crate) endpoint: &'a str,
    pub(crate) image_endpoint: Option<&'a str>,
    pub(crate) handler: &'a str,
    /// Where the common images come from, if not from us.
    pub(crate) images: Option<String>,
    pub(crate) registry_listen: SocketAddr,
    pub(crate) helper: Option<&'a Path>,
    pub(crate) restart: Option<String>,
    pub(crate) nri_socket: Option<PathBuf>,
}

impl Run {
    /// Connects, starts the registry and pulls the common image.
    pub(crate) async fn open(setup: Setup<'_>) -> Result<Run> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let helper = find_helper(setup.helper)?;
        let channel = endpoint::connect(setup.endpoint).await?;
        let image_channel = endpoint::connect(setup.image_endpoint.unwrap_or(setup.endpoint)).await?;
        // Hosts boot, and process ids come again; leftovers of an older run must not look like ours.
        let seconds = jiff::Timestamp::now().as_second() & 0xfffff;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{:x}{seconds:05x}{count}", std::process::id());
        let scratch = std::env::temp_dir().join(format!("bowline-check-{name}"));
        std::fs::create_dir_all(&scratch).with_context(|| format!("could not make {}", scratch.display()))?;
        let workshop = Workshop::open(&helper, setup.registry_listen, setup.images, &name)?;
        let (mut runtime, mut images) = (endpoint::runtime(channel), endpoint::images(image_channel));
        let status =
            runtime.status(ask(v1::StatusRequest { verbose: false })).await.context("Status")?.into_inner();
        let main = workshop.main();
        let request = v1::PullImageRequest { image: Some(image(&main)), ..Default::default() };
        images.pull_image(ask(request)).await.with_context(|| format!("could not pull {main}"))?;
        Ok(Run {
            runtime,
            images,
            endpoint: setup.endpoint.to_owned(),
            workshop,
            image: main,
            handler: setup.handler.to_owned(),
            name,
            scratch,
            status,
            restart: setup.restart,
            nri_socket: setup.nri_socket,
        })
    }

    /// Takes away what all cases shared.
    pub(crate) async fn close(&self) {
        if !self.workshop.elsewhere() {
            let request = v1::RemoveImageRequest { image: Some(image(&self.image)) };
            let _ = self.images.clone().remove_image(ask(request)).await;
        }
        let _ = std::fs::remove_dir_all(&self.scratch);
    }
}
