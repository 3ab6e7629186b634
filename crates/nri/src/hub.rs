//! Where the events of pods and containers come in, and plugins are asked about them.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bowline_nri_proto::v1alpha1::{
    Container, ContainerAdjustment, ContainerEviction, ContainerUpdate, CreateContainerRequest,
    CreateContainerResponse, Event, LinuxResources, PluginInstance, PodSandbox, PostUpdatePodSandboxRequest,
    StopContainerRequest, StopContainerResponse, UpdateContainerRequest, UpdateContainerResponse,
    UpdatePodSandboxRequest, ValidateContainerAdjustmentRequest, ValidateContainerAdjustmentResponse,
};
use tokio::task::JoinHandle;

use crate::merge::{Creation, Others, Update};
use crate::plugin::{Dropped, Plugin};
use crate::roster::Roster;
use crate::{NriConfig, NriError, Ticket, validator};

/// Something that takes a while.
pub type Work<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What plugins can want of the runtime.
pub trait Runtime: Send + Sync {
    /// All pods, and all containers that have not exited, but those of these ids.
    fn snapshot(&self, without: BTreeSet<String>) -> Work<'_, (Vec<PodSandbox>, Vec<Container>)>;
    /// Changes the limits of a container.
    fn update(&self, update: ContainerUpdate) -> Work<'_, Result<(), String>>;
    /// Stops a container.
    fn evict(&self, eviction: ContainerEviction) -> Work<'_, Result<(), String>>;
}

/// A plugin, for whoever looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginState {
    /// `NN-name`.
    pub name: String,
    /// We started its program.
    pub launched: bool,
    /// Requests so far.
    pub asked: u64,
    /// Of these, the ones that failed.
    pub failed: u64,
}

/// All plugins of a daemon. Cheap to clone.
#[derive(Clone)]
pub struct Nri(pub(crate) Option<Arc<Hub>>);

pub(crate) struct Hub {
    pub(crate) config: NriConfig,
    pub(crate) roster: Roster,
    pub(crate) dropped: Dropped,
    pub(crate) runtime: OnceLock<Arc<dyn Runtime>>,
    /// There is somebody to ask, or something to demand.
    active: AtomicBool,
    pub(crate) tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Hub {
    /// After the roster has changed.
    pub(crate) fn count(&self, plugins: usize) {
        let demands = !self.config.required_plugins.is_empty() || self.config.validator.enable;
        self.active.store(plugins > 0 || demands, Ordering::Relaxed);
    }

    /// Does what plugins want of other containers. What fails is no reason to fail what they were asked about.
    pub(crate) async fn apply(&self, others: &Others) {
        self.apply_all(others.updates(), others.evictions.clone()).await;
    }

    /// The updates that failed, but those that may.
    pub(crate) async fn apply_all(
        &self,
        updates: Vec<ContainerUpdate>,
        evictions: Vec<ContainerEviction>,
    ) -> Vec<ContainerUpdate> {
        let mut failed = Vec::new();
        let Some(runtime) = self.runtime.get() else { return updates };
        for eviction in evictions {
            let (container, reason) = (eviction.container_id.clone(), eviction.reason.clone());
            tracing::info!(container, reason, "NRI plugins want a container stopped");
            if let Err(error) = runtime.evict(eviction).await {
                tracing::warn!(container, error, "a container that NRI plugins want stopped could not be");
            }
        }
        for update in updates {
            let container = update.container_id.clone();
            if let Err(error) = runtime.update(update.clone()).await {
                tracing::warn!(container, error, "limits that NRI plugins want could not be set");
                if !update.ignore_failure {
                    failed.push(update);
                }
            }
        }
        failed
    }
}

impl Nri {
    /// With nobody to ask yet; without a configuration there never is.
    pub fn new(config: Option<NriConfig>) -> Nri {
        Nri(config.map(|config| {
            let hub = Hub {
                config,
                roster: Roster::default(),
                dropped: Dropped::default(),
                runtime: OnceLock::new(),
                active: AtomicBool::new(false),
                tasks: Mutex::default(),
            };
            hub.count(0);
            Arc::new(hub)
        }))
    }

    /// Whether there is anything to ask or to demand. While it says no, nothing need be prepared for plugins.
    pub fn active(&self) -> bool {
        self.0.as_ref().is_some_and(|hub| hub.active.load(Ordering::Relaxed))
    }

    /// Begins to make a pod or container.
    pub fn begin(&self) -> Ticket {
        self.0.as_ref().map_or_else(Ticket::none, |hub| hub.roster.begin())
    }

    /// A pod or container is on its way out: its removal is about to be told.
    pub fn leaving(&self, id: &str) {
        if let Some(hub) = &self.0 {
            hub.roster.leaving(id);
        }
    }

    /// It is gone.
    pub fn gone(&self, id: &str) {
        if let Some(hub) = &self.0 {
            hub.roster.gone(id);
        }
    }

    /// The plugins that are connected, in the order in which they are asked.
    pub fn plugins(&self) -> Vec<PluginState> {
        let Some(hub) = &self.0 else { return Vec::new() };
        let of = |plugin: &Arc<Plugin>| PluginState {
            name: plugin.name(),
            launched: plugin.launched,
            asked: plugin.asked.load(Ordering::Relaxed),
            failed: plugin.failed.load(Ordering::Relaxed),
        };
        hub.roster.plugins().iter().map(of).collect()
    }

    /// How many plugins were dropped because they did not answer.
    pub fn dropped(&self) -> u64 {
        self.0.as_ref().map_or(0, |hub| hub.dropped.count())
    }

    /// Ends all connections, and the programs that we started.
    pub fn end(&self) {
        let Some(hub) = &self.0 else { return };
        for task in hub.tasks.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            task.abort();
        }
        for plugin in hub.roster.plugins() {
            plugin.link.close();
        }
    }

    /// A pod is up, and nobody has seen it yet. Its ticket is held until somebody can. `pod` is made only if somebody
    /// wants to know.
    pub async fn run_pod(
        &self,
        ticket: &Ticket,
        pod: impl Fn() -> PodSandbox + Send,
    ) -> Result<(), NriError> {
        let Some(hub) = &self.0 else { return Ok(()) };
        let mut asked = Vec::new();
        while !hub.roster.commit(ticket, &asked) {
            for plugin in hub.roster.unasked(&asked) {
                tell(hub, &plugin, Event::RunPodSandbox, &pod(), None).await?;
                asked.push(plugin);
            }
        }
        Ok(())
    }

    /// A container is about to be made; what is to be different. Its ticket is held until it is visible. `describe` is
    /// called only if somebody is asked.
    pub async fn create_container(
        &self,
        ticket: &Ticket,
        describe: impl FnOnce() -> (PodSandbox, Container) + Send,
    ) -> Result<Option<ContainerAdjustment>, NriError> {
        let Some(hub) = &self.0 else { return Ok(None) };
        if !self.active() && hub.roster.commit(ticket, &[]) {
            return Ok(None);
        }
        let (pod, container) = describe();
        let before = container.clone();
        let mut creation = Creation::new(container);
        let (mut asked, mut seen) = (Vec::new(), Vec::new());
        // Validators are asked before it is committed: one that is only joining waits for what is.
        loop {
            for plugin in hub.roster.unasked(&asked) {
                let request = CreateContainerRequest {
                    pod: Some(pod.clone()),
                    container: Some(creation.container.clone()),
                };
                let limit = hub.config.request_timeout;
                let answer = plugin
                    .ask::<CreateContainerResponse>(Event::CreateContainer, &request, limit, &hub.dropped)
                    .await?;
                // One that does not want to be asked is there all the same.
                if answer.is_some() || !plugin.wants(Event::CreateContainer) {
                    seen.push(plugin.clone());
                }
                if let Some(answer) = answer {
                    creation.take(&plugin.name(), answer)?;
                }
                asked.push(plugin);
            }
            validate(hub, &pod, &before, &creation, &seen).await?;
            if hub.roster.commit(ticket, &asked) {
                break;
            }
        }
        hub.apply(&creation.others).await;
        Ok(Some(creation.adjust))
    }

    /// A client wants other limits for a pod.
    pub async fn update_pod(
        &self,
        pod: PodSandbox,
        overhead: LinuxResources,
        resources: LinuxResources,
    ) -> Result<(), NriError> {
        let Some(hub) = &self.0 else { return Ok(()) };
        let request = UpdatePodSandboxRequest {
            pod: Some(pod),
            overhead_linux_resources: Some(overhead),
            linux_resources: Some(resources),
        };
        for plugin in hub.roster.plugins() {
            let limit = hub.config.request_timeout;
            plugin
                .ask::<bowline_nri_proto::v1alpha1::Empty>(
                    Event::UpdatePodSandbox,
                    &request,
                    limit,
                    &hub.dropped,
                )
                .await?;
        }
        Ok(())
    }

    /// A client wants other limits for a container; what it gets.
    pub async fn update_container(
        &self,
        pod: PodSandbox,
        container: Container,
        resources: LinuxResources,
    ) -> Result<LinuxResources, NriError> {
        let Some(hub) = &self.0 else { return Ok(resources) };
        let mut update = Update::new(&container.id, resources);
        for plugin in hub.roster.plugins() {
            let request = UpdateContainerRequest {
                pod: Some(pod.clone()),
                container: Some(container.clone()),
                linux_resources: Some(update.resources.clone()),
            };
            let limit = hub.config.request_timeout;
            let answer = plugin
                .ask::<UpdateContainerResponse>(Event::UpdateContainer, &request, limit, &hub.dropped)
                .await?;
            if let Some(answer) = answer {
                update.take(&plugin.name(), answer.update, answer.evict)?;
            }
        }
        hub.apply(&update.others).await;
        Ok(update.resources)
    }

    /// A container has ended, or will never run. Nobody can refuse that; what fails is in the log.
    pub async fn stop_container(&self, pod: PodSandbox, container: Container) {
        let Some(hub) = &self.0 else { return };
        let mut others = Others::default();
        let request = StopContainerRequest { pod: Some(pod), container: Some(container) };
        for plugin in hub.roster.plugins() {
            let limit = hub.config.request_timeout;
            let answer = plugin
                .ask::<StopContainerResponse>(Event::StopContainer, &request, limit, &hub.dropped)
                .await;
            let taken = match answer {
                Ok(Some(answer)) => {
                    others.take(&plugin.name(), answer.update, Vec::new()).map_err(NriError::from)
                }
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = taken {
                log(&error, Event::StopContainer);
            }
        }
        hub.apply(&others).await;
    }

    /// Something is about to happen that plugins can prevent.
    pub async fn ask_leave(
        &self,
        event: Event,
        pod: &PodSandbox,
        container: Option<&Container>,
    ) -> Result<(), NriError> {
        let Some(hub) = &self.0 else { return Ok(()) };
        for plugin in hub.roster.plugins() {
            tell(hub, &plugin, event, pod, container).await?;
        }
        Ok(())
    }

    /// Something has happened. All are told, whatever one of them says.
    pub async fn tell(&self, event: Event, pod: &PodSandbox, container: Option<&Container>) {
        let Some(hub) = &self.0 else { return };
        for plugin in hub.roster.plugins() {
            if let Err(error) = tell(hub, &plugin, event, pod, container).await {
                log(&error, event);
            }
        }
    }
}

fn log(error: &NriError, event: Event) {
    let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    tracing::warn!(%error, cause, call = crate::plugin::method(event), "an NRI plugin could not be told");
}

/// Tells one plugin. All calls that only tell have the same fields: 1 is the pod, 2 the container.
async fn tell(
    hub: &Hub,
    plugin: &Plugin,
    event: Event,
    pod: &PodSandbox,
    container: Option<&Container>,
) -> Result<(), NriError> {
    let limit = hub.config.request_timeout;
    let told = match container {
        Some(container) => {
            let request = StopContainerRequest { pod: Some(pod.clone()), container: Some(container.clone()) };
            plugin.tell(event, &request, (pod, Some(container)), limit, &hub.dropped).await
        }
        None => {
            let request = PostUpdatePodSandboxRequest { pod: Some(pod.clone()) };
            plugin.tell(event, &request, (pod, None), limit, &hub.dropped).await
        }
    };
    told.map(drop)
}

/// Shows the outcome to those who may reject it.
async fn validate(
    hub: &Hub,
    pod: &PodSandbox,
    before: &Container,
    creation: &Creation,
    seen: &[Arc<Plugin>],
) -> Result<(), NriError> {
    let instance =
        |plugin: &Arc<Plugin>| PluginInstance { name: plugin.base.clone(), index: plugin.index.clone() };
    let request = ValidateContainerAdjustmentRequest {
        pod: Some(pod.clone()),
        container: Some(before.clone()),
        adjust: Some(creation.adjust.clone()),
        update: creation.others.updates(),
        owners: Some(creation.others.owners().clone()),
        plugins: seen.iter().map(instance).collect(),
    };
    validator::check(&hub.config, &request)
        .map_err(|reason| NriError::Rejected { by: "the default validator".into(), reason })?;
    let event = Event::ValidateContainerAdjustment;
    for plugin in hub.roster.plugins() {
        let limit = hub.config.request_timeout;
        let answer =
            plugin.ask::<ValidateContainerAdjustmentResponse>(event, &request, limit, &hub.dropped).await?;
        if let Some(answer) = answer.filter(|answer| answer.reject) {
            return Err(NriError::Rejected { by: plugin.name(), reason: answer.reason });
        }
    }
    Ok(())
}
