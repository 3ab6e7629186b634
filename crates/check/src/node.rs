//! One case's view of the endpoint: the clients, names of its own, and the ledger of what it made.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bowline_cri_proto::v1;
use futures_util::stream::{self, StreamExt as _};
use tonic::{Code, Status};

use crate::endpoint::{Images, Runtime, ask, within};
use crate::host;
use crate::run::Run;

/// The namespace of all our pods.
pub(crate) const NAMESPACE: &str = "bowline-check";
/// The label that says which case of which run a pod or container belongs to.
pub(crate) const LABEL: &str = "check.case";

/// The reason why a case was not tried.
#[derive(Debug)]
pub(crate) struct Skip(pub(crate) String);

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

/// Leaves the case: the host or the endpoint says that it lacks this.
pub(crate) fn skip<T>(reason: impl Into<String>) -> Result<T> {
    Err(Skip(reason.into()).into())
}

/// What a case made.
#[derive(Default)]
struct Ledger {
    pods: RefCell<Vec<String>>,
    containers: RefCell<Vec<String>>,
    images: RefCell<Vec<String>>,
    mounts: RefCell<Vec<PathBuf>>,
    count: Cell<u32>,
}

/// The node under test, as one case sees it.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) run: Rc<Run>,
    case: Rc<str>,
    ledger: Rc<Ledger>,
}

impl Node {
    /// A view for a case, with an empty ledger.
    pub(crate) fn new(run: Rc<Run>, case: &str) -> Node {
        Node { run, case: case.replace('/', "-").into(), ledger: Rc::default() }
    }

    /// A client of the runtime service.
    pub(crate) fn runtime(&self) -> Runtime {
        self.run.runtime.clone()
    }

    /// A client of the image service.
    pub(crate) fn images(&self) -> Images {
        self.run.images.clone()
    }

    /// What marks our pods, containers and processes.
    pub(crate) fn mark(&self) -> String {
        format!("{}-{}", self.run.name, self.case)
    }

    /// A word that no one else uses.
    pub(crate) fn unique(&self, word: &str) -> String {
        let count = self.ledger.count.get() + 1;
        self.ledger.count.set(count);
        format!("{word}-{}-{count}", self.mark())
    }

    /// A folder of the case's own, for logs, volumes and profiles.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.run.scratch.join(&*self.case)
    }

    /// A folder in the scratch folder, made.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.scratch().join(name);
        std::fs::create_dir_all(&path).with_context(|| format!("could not make {}", path.display()))?;
        Ok(path)
    }

    /// A tmpfs at a folder, shared with whoever asks for it; it goes with the case.
    pub(crate) fn shared_tmpfs(&self, name: &str) -> Result<PathBuf> {
        use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
        let path = self.folder(name)?;
        mount("tmpfs", &path, "tmpfs", MountFlags::empty(), None)
            .with_context(|| format!("could not mount at {}", path.display()))?;
        self.ledger.mounts.borrow_mut().push(path.clone());
        mount_change(&path, MountPropagationFlags::SHARED).context("could not share a mount")?;
        Ok(path)
    }

    /// A plain tmpfs at a path; it goes with the case.
    pub(crate) fn tmpfs(&self, path: &Path) -> Result<()> {
        use rustix::mount::{MountFlags, mount};
        std::fs::create_dir_all(path)?;
        mount("tmpfs", path, "tmpfs", MountFlags::empty(), None)
            .with_context(|| format!("could not mount at {}", path.display()))?;
        self.ledger.mounts.borrow_mut().push(path.to_owned());
        Ok(())
    }

    /// Whether the default handler (or the one of the run) declares a feature.
    pub(crate) fn handler_feature(&self, of: impl Fn(&v1::RuntimeHandlerFeatures) -> bool) -> bool {
        let handlers = &self.run.status.runtime_handlers;
        let own = handlers.iter().find(|handler| handler.name == self.run.handler);
        own.and_then(|handler| handler.features.as_ref()).is_some_and(of)
    }

    /// Whether the runtime as a whole declares a feature.
    pub(crate) fn feature(&self, of: impl Fn(&v1::RuntimeFeatures) -> bool) -> bool {
        self.run.status.features.as_ref().is_some_and(of)
    }

    pub(crate) fn made_pod(&self, id: &str) {
        self.ledger.pods.borrow_mut().push(id.to_owned());
    }

    pub(crate) fn made_container(&self, id: &str) {
        self.ledger.containers.borrow_mut().push(id.to_owned());
    }

    /// Pulls an image; it is removed with the case.
    pub(crate) async fn pull(&self, reference: &str) -> Result<String, Status> {
        self.pull_with(v1::PullImageRequest { image: Some(image(reference)), ..Default::default() }).await
    }

    /// Pulls with everything said.
    pub(crate) async fn pull_with(&self, request: v1::PullImageRequest) -> Result<String, Status> {
        let name = request.image.as_ref().map(|image| image.image.clone()).unwrap_or_default();
        self.ledger.images.borrow_mut().push(name);
        Ok(self.images().pull_image(ask(request)).await?.into_inner().image_ref)
    }

    /// Serves and pulls an image.
    pub(crate) async fn pull_built(&self, name: &str, image: &bowline_testkit::BuiltImage) -> Result<String> {
        let reference = self.run.workshop.serve(&format!("{}/{name}", self.case), "1", image);
        self.pull(&reference).await.with_context(|| format!("could not pull {reference}"))?;
        Ok(reference)
    }

    pub(crate) async fn image_status(&self, reference: &str) -> Result<Option<v1::Image>, Status> {
        let request = v1::ImageStatusRequest { image: Some(image(reference)), verbose: false };
        Ok(self.images().image_status(ask(request)).await?.into_inner().image)
    }

    pub(crate) async fn list_images(&self) -> Result<Vec<v1::Image>, Status> {
        Ok(self.images().list_images(ask(v1::ListImagesRequest { filter: None })).await?.into_inner().images)
    }

    pub(crate) async fn remove_image(&self, reference: &str) -> Result<(), Status> {
        self.images().remove_image(ask(v1::RemoveImageRequest { image: Some(image(reference)) })).await?;
        Ok(())
    }

    pub(crate) async fn pod_status(&self, id: &str) -> Result<v1::PodSandboxStatus, Status> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        let answer = self.runtime().pod_sandbox_status(ask(request)).await?.into_inner();
        answer.status.ok_or_else(|| Status::internal("the answer has no status"))
    }

    pub(crate) async fn stop_pod(&self, id: &str) -> Result<(), Status> {
        self.runtime()
            .stop_pod_sandbox(ask(v1::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() }))
            .await?;
        Ok(())
    }

    pub(crate) async fn remove_pod(&self, id: &str) -> Result<(), Status> {
        self.runtime()
            .remove_pod_sandbox(ask(v1::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() }))
            .await?;
        Ok(())
    }

    pub(crate) async fn list_pods(
        &self,
        filter: v1::PodSandboxFilter,
    ) -> Result<Vec<v1::PodSandbox>, Status> {
        let request = v1::ListPodSandboxRequest { filter: Some(filter) };
        Ok(self.runtime().list_pod_sandbox(ask(request)).await?.into_inner().items)
    }

    /// The pods of this case.
    pub(crate) async fn own_pods(&self) -> Result<Vec<v1::PodSandbox>, Status> {
        let label_selector = [(LABEL.to_owned(), self.mark())].into();
        self.list_pods(v1::PodSandboxFilter { label_selector, ..Default::default() }).await
    }

    pub(crate) async fn list_containers(
        &self,
        filter: v1::ContainerFilter,
    ) -> Result<Vec<v1::Container>, Status> {
        let request = v1::ListContainersRequest { filter: Some(filter) };
        Ok(self.runtime().list_containers(ask(request)).await?.into_inner().containers)
    }

    /// The containers of this case.
    pub(crate) async fn own_containers(&self) -> Result<Vec<v1::Container>, Status> {
        let label_selector = [(LABEL.to_owned(), self.mark())].into();
        self.list_containers(v1::ContainerFilter { label_selector, ..Default::default() }).await
    }

    pub(crate) async fn container_status(&self, id: &str) -> Result<v1::ContainerStatus, Status> {
        let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let answer = self.runtime().container_status(ask(request)).await?.into_inner();
        answer.status.ok_or_else(|| Status::internal("the answer has no status"))
    }

    pub(crate) async fn start(&self, id: &str) -> Result<(), Status> {
        self.runtime()
            .start_container(ask(v1::StartContainerRequest { container_id: id.to_owned() }))
            .await?;
        Ok(())
    }

    pub(crate) async fn stop(&self, id: &str, grace: i64) -> Result<(), Status> {
        let request = v1::StopContainerRequest { container_id: id.to_owned(), timeout: grace };
        self.runtime().stop_container(ask(request)).await?;
        Ok(())
    }

    pub(crate) async fn remove(&self, id: &str) -> Result<(), Status> {
        self.runtime()
            .remove_container(ask(v1::RemoveContainerRequest { container_id: id.to_owned() }))
            .await?;
        Ok(())
    }

    pub(crate) async fn exec_sync(
        &self,
        id: &str,
        cmd: &[&str],
        limit: i64,
    ) -> Result<v1::ExecSyncResponse, Status> {
        let cmd = cmd.iter().map(|word| (*word).to_owned()).collect();
        let request = v1::ExecSyncRequest { container_id: id.to_owned(), cmd, timeout: limit };
        Ok(self.runtime().exec_sync(ask(request)).await?.into_inner())
    }

    /// Takes away what the case made, then looks whether anything of it is left.
    pub(crate) async fn clean(&self) -> Result<()> {
        // First what we know of: lists may be more than an endpoint can send.
        let mut pods = self.ledger.pods.take();
        let mut containers = self.ledger.containers.take();
        let mut failures = self.take_down(&pods).await;
        let listed = self.own_pods().await.context("could not list pods")?;
        let inside = self.own_containers().await.context("could not list containers")?;
        let unknown: Vec<String> = listed.into_iter().map(|pod| pod.id).collect();
        failures.extend(self.take_down(&unknown).await);
        pods.extend(unknown);
        containers.extend(inside.into_iter().map(|container| container.id));
        for ids in [&mut pods, &mut containers] {
            ids.sort();
            ids.dedup();
        }
        for mount in self.ledger.mounts.take().iter().rev() {
            let _ = rustix::mount::unmount(mount, rustix::mount::UnmountFlags::DETACH);
        }
        for reference in self.ledger.images.take() {
            let request = v1::RemoveImageRequest { image: Some(image(&reference)) };
            let _ = self
                .images()
                .remove_image(within(request, crate::patience::at_most(Duration::from_secs(20))))
                .await;
        }
        if let Some(failure) = failures.into_iter().next() {
            return Err(failure);
        }
        self.leftovers(&pods, &containers).await?;
        let _ = std::fs::remove_dir_all(self.scratch());
        Ok(())
    }

    /// Stops and removes pods, some at a time.
    async fn take_down(&self, pods: &[String]) -> Vec<anyhow::Error> {
        let ended = stream::iter(pods).map(|id| async move {
            self.stop_pod(id).await.with_context(|| format!("could not stop pod {id}"))?;
            self.remove_pod(id).await.with_context(|| format!("could not remove pod {id}"))
        });
        let ended: Vec<Result<()>> = ended.buffer_unordered(10).collect().await;
        ended.into_iter().filter_map(Result::err).collect()
    }

    async fn leftovers(&self, pods: &[String], containers: &[String]) -> Result<()> {
        ensure!(self.own_pods().await?.is_empty(), "a removed pod is still listed");
        ensure!(self.own_containers().await?.is_empty(), "a container of a removed pod is still listed");
        let ids: Vec<String> = pods.iter().chain(containers).filter(|id| id.len() >= 16).cloned().collect();
        let marker = format!("CHECK_CASE={}", self.mark());
        until("nothing left of removed pods", Duration::from_secs(5), async || {
            let mut left: Vec<String> = Vec::new();
            if !ids.is_empty() {
                left.extend(host::mounts_naming(&ids).into_iter().map(|line| format!("mount {line}")));
                left.extend(
                    host::cgroups_naming(&ids).into_iter().map(|path| format!("cgroup {}", path.display())),
                );
            }
            left.extend(host::processes_with(&marker).into_iter().map(|pid| format!("process {pid}")));
            if left.is_empty() { Ok(Found::Yes(())) } else { Ok(Found::Not(left.join("; "))) }
        })
        .await
    }
}

/// An image by its reference.
pub(crate) fn image(reference: &str) -> v1::ImageSpec {
    v1::ImageSpec { image: reference.to_owned(), ..Default::default() }
}

/// What a look at a condition gave.
pub(crate) enum Found<T> {
    /// It holds.
    Yes(T),
    /// Not yet; this is how things are.
    Not(String),
}

/// Waits for a condition, looking every few milliseconds, at most so long.
pub(crate) async fn until<T>(
    what: impl fmt::Display,
    limit: Duration,
    mut look: impl AsyncFnMut() -> Result<Found<T>>,
) -> Result<T> {
    let limit = crate::patience::at_most(limit);
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_millis(5);
    loop {
        match look().await? {
            Found::Yes(value) => return Ok(value),
            Found::Not(state) if Instant::now() >= deadline => {
                bail!("waited {limit:?} for {what}, in vain: {state}");
            }
            Found::Not(_) => {}
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(40));
    }
}

/// The call must fail, no matter how, not even by `Unimplemented`: what is not declared is not to be ignored.
pub(crate) fn denied<T>(result: Result<T, Status>, what: &str) -> Result<()> {
    ensure!(result.is_err(), "{what} was accepted");
    Ok(())
}

/// The call must fail with one of the codes; gives the status.
pub(crate) fn refused<T>(result: Result<T, Status>, codes: &[Code], what: &str) -> Result<Status> {
    match result {
        Ok(_) => bail!("{what} was accepted"),
        Err(status) if status.code() == Code::Unimplemented && !codes.contains(&Code::Unimplemented) => {
            Err(status).with_context(|| what.to_owned())
        }
        Err(status) if codes.is_empty() || codes.contains(&status.code()) => Ok(status),
        Err(status) => bail!("{what} gave {:?} ({}), expected {codes:?}", status.code(), status.message()),
    }
}
