//! The front door: finds the actor, asks it, waits for its answer.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bowline_cni::Cni;
use bowline_image::Images;
use bowline_model::spec::{ContainerSpec, PodMetadata, PodSpec, Resources};
use bowline_model::{ContainerId, SandboxId};
use bowline_nri::PluginState;
use bowline_store::Store;
use tokio::sync::oneshot;

use crate::actor::{self, ActorHandle, Asked, Command};
use crate::apparmor::{Apparmor, ApparmorState};
use crate::attach::{AttachCall, Attached, attach};
use crate::checkpoint::{self, Ability, PodRestore, Restored};
use crate::connect::{Connection, connect};
use crate::driver::{CgroupDriver, ChosenDriver};
use crate::error::doing;
use crate::events::Subscription;
use crate::exec::{ExecCall, ExecOutput, Running, exec, exec_sync};
use crate::host::Host;
use crate::monitor::Program;
use crate::nri::PluginsRuntime;
use crate::operations::{Operation, Timing};
use crate::selinux::Selinux;
use crate::shared::{Shared, blocking, now, random_id};
use crate::stats::{self, PodFigures, PodStats, Sources, Stats};
use crate::view::{ContainerView, PodView, Views};
use crate::{PodError, PodsConfig, base, files, recover, run_pod, upkeep};

/// All pods of this daemon. Cheap to clone.
#[derive(Clone)]
pub struct Pods(pub(crate) Arc<Shared>);

/// The longest grace period: a hundred years end nowhere near the end of the clock.
const MAX_GRACE: Duration = Duration::from_secs(100 * 365 * 86_400);

impl Pods {
    /// Takes over what the records and the monitors say, and is ready to serve.
    pub async fn open(
        config: PodsConfig,
        store: Store,
        images: Images,
        cni: Arc<Cni>,
    ) -> Result<Pods, PodError> {
        let shared = blocking("look at the host", move || {
            let mut host = Host::discover().map_err(doing("look at the host"))?;
            let program = Program::load(&config.monitor)
                .map_err(doing(format!("load the monitor program {}", config.monitor.display())))?;
            std::fs::create_dir_all(config.state.join("pods")).map_err(doing("make the state folder"))?;
            std::fs::create_dir_all(config.state.join(crate::hooks::BUNDLES))
                .map_err(doing("make the folder of bundles"))?;
            std::fs::create_dir_all(images.layers_dir()).map_err(doing("make the folder of layers"))?;
            base::make_mount_points(&config.root).map_err(doing("make the layer of mount points"))?;
            let base = base::make(&config.root).map_err(doing("make the base mount namespace"))?;
            let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null");
            let null = null.map_err(doing("open /dev/null"))?.into();
            let apparmor = Apparmor::set_up(&config.apparmor, &config.state);
            apparmor.tell(&mut host.facts);
            let selinux = Selinux::set_up(&config.selinux);
            selinux.tell(&mut host.facts);
            let instance = bowline_cni::InstanceTag::of_root(&config.root).as_str().to_owned();
            let users = crate::user::probe(&config.root, &config.state);
            if let Err(why) = &users {
                tracing::info!(why, "pods cannot have user namespaces on this node");
            }
            let modules = (apparmor, selinux);
            let shared =
                Shared::new(config, store, images, cni, host, modules, program, base, null, users, instance);
            let monitors =
                std::ffi::CString::new(shared.monitors_cgroup()).map_err(doing("name a cgroup"))?;
            // In a scope each monitor has a place of its own.
            let own = shared.config.cgroup_driver.driver == CgroupDriver::Cgroupfs;
            for root in shared.host.roots.iter().filter(|_| own) {
                use std::os::fd::AsFd as _;
                bowline_launch::make_cgroup(root.as_fd(), &monitors)
                    .map_err(doing("make the monitors' cgroup"))?;
            }
            Ok(Arc::new(shared))
        })
        .await?;
        tokio::spawn(upkeep::reap_links(shared.clone()));
        tokio::spawn(upkeep::tidy_paths(shared.clone()));
        recover::recover(&shared).await?;
        checkpoint::recover(&shared);
        // It takes criu a moment to look at the kernel; nobody waits for it here.
        let owner = shared.clone();
        tokio::spawn(async move {
            if let Err(error) = owner.checkpoints.criu(&owner.config.checkpoint).await {
                tracing::debug!(reason = %error, "no checkpoints on this node");
            }
        });
        Ok(Pods(shared))
    }

    /// What lists and statuses are answered from.
    pub fn views(&self) -> &Views {
        &self.0.views
    }

    /// The machine.
    pub fn host(&self) -> &Host {
        &self.0.host
    }

    /// What the node has of AppArmor.
    pub fn apparmor(&self) -> &ApparmorState {
        self.0.apparmor.state()
    }

    /// Whether pods can have user namespaces of their own.
    pub fn user_namespaces(&self) -> bool {
        self.0.user_namespaces.is_ok()
    }

    /// The images.
    pub fn images(&self) -> &Images {
        &self.0.images
    }

    /// Whether every record could be read. If not, nothing that an unread one may refer to may be reclaimed.
    pub fn all_records_read(&self) -> bool {
        !self.0.unreadable.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Who makes pods' cgroups.
    pub fn cgroup_driver(&self) -> &ChosenDriver {
        &self.0.config.cgroup_driver
    }

    /// Scopes of this daemon that no pod is in, at this moment; a pod that comes or goes may have one too. None with
    /// another driver than systemd.
    pub async fn scopes_without_a_pod(&self) -> Result<Vec<String>, PodError> {
        if self.cgroup_driver().driver != CgroupDriver::Systemd {
            return Ok(Vec::new());
        }
        let found = crate::scope::strangers(&self.0, || self.0.known_pods()).await?;
        Ok(found.into_iter().map(|(scope, _)| scope).collect())
    }

    /// The network.
    pub fn cni(&self) -> &Arc<Cni> {
        &self.0.cni
    }

    /// The folders that this daemon works in.
    pub fn config(&self) -> &PodsConfig {
        &self.0.config
    }

    /// Brings a pod up. An equal call joins one that is under way, or gets the pod that is up.
    pub async fn run_pod(&self, spec: PodSpec) -> Result<SandboxId, PodError> {
        let handle = {
            let mut actors = self.0.actors();
            if actors.closed {
                return Err(PodError::Unavailable("the daemon is going down".into()));
            }
            match actors.by_name.get(&spec.metadata) {
                Some(handle) if *handle.spec == spec => handle.clone(),
                Some(handle) => {
                    let PodMetadata { name, namespace, attempt, .. } = &spec.metadata;
                    return Err(PodError::Exists(format!(
                        "sandbox {} is attempt {attempt} of pod {namespace}/{name} already, with another configuration; remove it first",
                        handle.id
                    )));
                }
                None => {
                    let spare = if run_pod::takes_spare(&spec) { self.0.spare.take() } else { None };
                    let (id, spare) = match spare {
                        Some((id, taken)) => (id, Some(taken)),
                        None => (SandboxId::from_bytes(random_id()), None),
                    };
                    let handle = actor::spawn(self.0.clone(), id, Arc::new(spec), spare);
                    actors.by_name.insert(handle.spec.metadata.clone(), handle.clone());
                    actors.by_id.insert(handle.id.clone(), handle.clone());
                    handle
                }
            }
        };
        let mut born = handle.born.clone();
        let result = match born.wait_for(Option::is_some).await {
            Ok(result) => result.clone(),
            Err(_) => None,
        };
        match result {
            Some(Ok(())) if self.0.views.pod(&handle.id.to_string()).is_ok_and(|view| view.ready) => {
                Ok(handle.id)
            }
            Some(Ok(())) => Err(PodError::Exists(format!(
                "sandbox {} of the same name and attempt is there already, and not ready; remove it, or count the attempt up",
                handle.id
            ))),
            Some(Err(error)) => Err(error),
            None => Err(PodError::Unavailable("the daemon is going down".into())),
        }
    }

    /// The process that waits to be the next pod's monitor, if there is one.
    pub fn spare_monitor(&self) -> Option<i32> {
        self.0.spare.monitor()
    }

    /// Ends a pod's containers and network. One that is unknown or down already is fine.
    pub async fn stop_pod(&self, id: &SandboxId) -> Result<(), PodError> {
        match self.actor(id) {
            Some(actor) => ask(&actor, |reply| Command::StopPod { reply }).await.or_else(gone_is_fine),
            None => Ok(()),
        }
    }

    /// Removes a pod, and first stops it. One that is unknown is fine.
    pub async fn remove_pod(&self, id: &SandboxId) -> Result<(), PodError> {
        match self.actor(id) {
            Some(actor) => ask(&actor, |reply| Command::RemovePod { reply }).await.or_else(gone_is_fine),
            None => Ok(()),
        }
    }

    /// Makes a container in a pod that is ready. An equal call joins, or gets the one that is there.
    pub async fn create_container(
        &self,
        pod: &SandboxId,
        spec: ContainerSpec,
    ) -> Result<ContainerId, PodError> {
        let missing = || PodError::NotFound { what: "pod sandbox", id: pod.to_string() };
        let actor = self.actor(pod).ok_or_else(missing)?;
        if actor.born.borrow().is_none() {
            // Whoever waits here may be what the pod waits for: a plugin.
            return Err(PodError::State(format!("sandbox {pod} is still being made")));
        }
        ask(&actor, |reply| Command::Create { spec: Box::new(spec), restore: None, reply }).await
    }

    /// What this node can do about checkpoints.
    pub fn checkpoint_ability(&self) -> Ability {
        match self.0.checkpoints.known() {
            None => Ability::Unknown,
            Some(Err(why)) => Ability::None(why),
            Some(Ok(criu)) if self.0.config.checkpoint.restore => Ability::Restore((*criu).clone()),
            Some(Ok(criu)) => Ability::Checkpoint((*criu).clone()),
        }
    }

    /// Writes a running container into an archive; it goes on. By the deadline, if there is one, or not at all.
    pub async fn checkpoint_container(
        &self,
        id: &ContainerId,
        location: PathBuf,
        deadline: Option<Instant>,
    ) -> Result<(), PodError> {
        let actor = self.actor_of(id)?;
        let order = checkpoint::Order::Container { location };
        let ids = vec![id.clone()];
        ask(&actor, |reply| Command::Checkpoint { ids, all: false, order, deadline, reply }).await
    }

    /// Writes a pod with these containers, which must be all that run, into an empty folder; they go on.
    pub async fn checkpoint_pod(
        &self,
        id: &SandboxId,
        output: PathBuf,
        ids: Vec<ContainerId>,
        deadline: Option<Instant>,
    ) -> Result<(), PodError> {
        let missing = || PodError::NotFound { what: "pod sandbox", id: id.to_string() };
        let actor = self.actor(id).ok_or_else(missing)?;
        let folder = output.clone();
        blocking("look at the output folder", move || checkpoint::check_output(&folder)).await?;
        let order = checkpoint::Order::Pod { output };
        ask(&actor, |reply| Command::Checkpoint { ids, all: true, order, deadline, reply }).await
    }

    /// Makes a pod from what a checkpoint left of another. Its containers are created; started, they go on where they
    /// were. On failure nothing of it is left.
    pub async fn restore_pod(&self, wish: PodRestore) -> Result<Restored, PodError> {
        self.0.checkpoints.criu(&self.0.config.checkpoint).await?;
        let PodRestore { checkpoint, pod, containers } = wish;
        let (shared, specs) = (self.0.clone(), containers.clone());
        let archives = blocking("read the checkpoint", move || {
            checkpoint::read_pod(&shared.config.checkpoint, &checkpoint, &specs)
        });
        let archives = archives.await?;
        let id = self.run_pod(pod).await?;
        let mut restored = Restored { pod: id.clone(), containers: Vec::new() };
        for (spec, archive) in containers.into_iter().zip(archives) {
            let name = spec.name.clone();
            let made = match self.actor(&id) {
                Some(actor) => {
                    let create =
                        |reply| Command::Create { spec: Box::new(spec), restore: Some(archive), reply };
                    ask(&actor, create).await
                }
                None => Err(PodError::NotFound { what: "pod sandbox", id: id.to_string() }),
            };
            match made {
                Ok(container) => restored.containers.push((name, container)),
                Err(error) => {
                    self.remove_pod(&id).await?;
                    return Err(error);
                }
            }
        }
        Ok(restored)
    }

    /// Runs a container's program; returns once it runs.
    pub async fn start_container(&self, id: &ContainerId) -> Result<(), PodError> {
        let actor = self.actor_of(id)?;
        ask(&actor, |reply| Command::Start { id: id.clone(), reply }).await
    }

    /// Ends a container: stop signal, grace, then everything is killed. Returns once it has ended.
    pub async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), PodError> {
        let actor = self.actor_of(id)?;
        let kill_at = now().saturating_add(grace.min(MAX_GRACE).as_nanos() as i64);
        ask(&actor, |reply| Command::Stop { id: id.clone(), kill_at, reply }).await
    }

    /// Removes a container, killing it if it runs. One that is unknown is fine.
    pub async fn remove_container(&self, id: &ContainerId) -> Result<(), PodError> {
        match self.actor_of(id) {
            Ok(actor) => {
                ask(&actor, |reply| Command::Remove { id: id.clone(), reply }).await.or_else(gone_is_fine)
            }
            Err(_) => Ok(()),
        }
    }

    /// Goes on with a container's log in a new file at its path.
    pub async fn reopen_log(&self, id: &ContainerId) -> Result<(), PodError> {
        let actor = self.actor_of(id)?;
        ask(&actor, |reply| Command::ReopenLog { id: id.clone(), reply }).await
    }

    /// Runs a command in a running container. `timeout`: none for ever; on expiry the command is killed.
    pub async fn exec_sync(
        &self,
        id: &ContainerId,
        command: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<ExecOutput, PodError> {
        let actor = self.actor_of(id)?;
        let ticket = ask(&actor, |reply| Command::Exec { id: id.clone(), reply }).await?;
        // The command line may hold secrets; the container is enough.
        let _stay = self.0.operations.begin("ExecSync", id, "");
        exec_sync(ticket, command, timeout).await
    }

    /// Starts a command in a running container, its streams in the caller's hands.
    pub async fn exec(&self, id: &ContainerId, call: ExecCall) -> Result<Running, PodError> {
        let actor = self.actor_of(id)?;
        let ticket = ask(&actor, |reply| Command::Exec { id: id.clone(), reply }).await?;
        exec(ticket, call).await
    }

    /// Watches a running container.
    pub async fn attach(&self, id: &ContainerId, call: AttachCall) -> Result<Attached, PodError> {
        let view = self.0.views.container(&id.to_string())?;
        let actor = self.actor_of(id)?;
        let ticket = ask(&actor, |reply| Command::Exec { id: id.clone(), reply }).await?;
        // A terminal has one stream for both.
        let call = AttachCall { stderr: call.stderr && !view.spec.tty, ..call };
        let connect = || files::connect(&self.0.config.state, &view.pod);
        attach(ticket, call, view.spec.stdin_once, connect).await
    }

    /// Connects to a port of a pod, from inside its network.
    pub async fn connect(&self, pod: &SandboxId, port: u16) -> Result<Connection, PodError> {
        let missing = || PodError::NotFound { what: "pod sandbox", id: pod.to_string() };
        let actor = self.actor(pod).ok_or_else(missing)?;
        let network = ask(&actor, |reply| Command::Network { reply }).await?;
        connect(network, port).await
    }

    /// Changes limits; zero and empty fields stay as they are.
    pub async fn update_resources(&self, id: &ContainerId, resources: Resources) -> Result<(), PodError> {
        let actor = self.actor_of(id)?;
        let resources = Box::new(resources);
        ask(&actor, |reply| Command::Update { id: id.clone(), resources, by_plugin: None, reply }).await
    }

    /// Takes note of what a whole pod is to have; its cgroup is whose parent it is.
    pub async fn update_pod_resources(
        &self,
        id: &SandboxId,
        overhead: Option<Resources>,
        sum: Option<Resources>,
    ) -> Result<(), PodError> {
        let missing = || PodError::NotFound { what: "pod sandbox", id: id.to_string() };
        let actor = self.actor(id).ok_or_else(missing)?;
        let (overhead, sum) = (overhead.map(Box::new), sum.map(Box::new));
        ask(&actor, |reply| Command::UpdatePod { overhead, sum, reply }).await
    }

    /// What these containers use; those that could not be read are left out.
    pub async fn stats(&self, containers: Vec<Arc<ContainerView>>) -> Vec<(Arc<ContainerView>, Stats)> {
        stats::stats(&self.0, containers).await
    }

    /// What these pods use, with those of their running containers that could be read.
    pub async fn pod_stats(&self, pods: Vec<Arc<PodView>>) -> Vec<(Arc<PodView>, PodStats)> {
        stats::pod_stats(&self.0, pods).await
    }

    /// Everything about these pods and their running containers that there is a metric for.
    pub async fn figures(&self, pods: Vec<Arc<PodView>>) -> Vec<PodFigures> {
        stats::figures(&self.0, pods).await
    }

    /// Which of these figures this host has.
    pub fn sources(&self) -> Sources {
        Sources::of(&self.0.host)
    }

    /// Starts plugins, and takes those that connect to the socket. Returns once the ones that were started are
    /// synchronised or have failed.
    pub async fn start_plugins(&self, socket: Option<tokio::net::UnixListener>) {
        let runtime = Arc::new(PluginsRuntime(Arc::downgrade(&self.0)));
        self.0.nri.start(runtime, socket).await;
    }

    /// The plugins that are connected, and how many were dropped.
    pub fn plugins(&self) -> (Vec<PluginState>, u64) {
        (self.0.nri.plugins(), self.0.nri.dropped())
    }

    /// What is under way, the oldest first.
    pub fn operations(&self) -> Vec<Operation> {
        self.0.operations.list()
    }

    /// What operations and their stages took so far, by kind and stage; the empty stage is the whole operation.
    pub fn timings(&self) -> Vec<(&'static str, &'static str, Timing)> {
        self.0.operations.timings()
    }

    /// How many events there were, and how many listen.
    pub fn event_counts(&self) -> (u64, usize) {
        (self.0.events.count(), self.0.events.readers())
    }

    /// Listens to what happens from now on.
    pub fn events(&self) -> Subscription {
        self.0.events.subscribe()
    }

    /// Ends the streams of all who listen: the daemon goes down, and waits for nobody who waits for ever.
    pub fn end_events(&self) {
        self.0.events.close();
    }

    /// The OCI runtime spec of a container, as JSON.
    pub async fn runtime_spec(&self, container: &ContainerView) -> Option<String> {
        let (shared, pod, id) = (self.0.clone(), container.pod.clone(), container.id.clone());
        let read = tokio::task::spawn_blocking(move || {
            let stored: serde_json::Value = shared.store.read_config(&pod, &id).ok()?;
            Some(stored.to_string())
        });
        read.await.ok().flatten()
    }

    /// Ends nothing that runs: refuses new pods, waits a little for what is under way, and brings the records to disk.
    pub async fn shutdown(&self) {
        let actors: Vec<ActorHandle> = {
            let mut actors = self.0.actors();
            actors.closed = true;
            actors.by_id.values().cloned().collect()
        };
        let idle = async {
            for actor in actors {
                let mut born = actor.born.clone();
                let _ = born.wait_for(Option::is_some).await;
                let (reply, done) = oneshot::channel();
                if actor.commands.send(Asked::now(Command::Quiesce { reply })).await.is_ok() {
                    let _ = done.await;
                }
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(10), idle).await;
        self.0.nri.end();
        let shared = self.0.clone();
        let end = move || {
            shared.spare.clear(&shared);
            shared.store.settle()
        };
        let _ = tokio::task::spawn_blocking(end).await;
    }

    fn actor(&self, id: &SandboxId) -> Option<ActorHandle> {
        self.0.actors().by_id.get(id).cloned()
    }

    fn actor_of(&self, id: &ContainerId) -> Result<ActorHandle, PodError> {
        let view = self.0.views.container(&id.to_string())?;
        self.actor(&view.pod).ok_or_else(|| PodError::NotFound { what: "container", id: id.to_string() })
    }
}

/// Whoever asks for an end is content if there is nothing.
fn gone_is_fine(error: PodError) -> Result<(), PodError> {
    match error {
        PodError::NotFound { .. } => Ok(()),
        other => Err(other),
    }
}

async fn ask<T>(
    actor: &ActorHandle,
    command: impl FnOnce(oneshot::Sender<Result<T, PodError>>) -> Command,
) -> Result<T, PodError> {
    let (reply, answer) = oneshot::channel();
    let gone = || PodError::NotFound { what: "pod sandbox", id: actor.id.to_string() };
    actor.commands.send(Asked::now(command(reply))).await.map_err(|_| gone())?;
    answer.await.map_err(|_| gone())?
}
