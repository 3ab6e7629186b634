//! What plugins want of pods without having been asked.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};

use bowline_model::ContainerId;
use bowline_model::container::Life;
use bowline_nri::api::{Container, ContainerEviction, ContainerUpdate, PodSandbox};
use bowline_nri::{Runtime, Work};
use tokio::sync::oneshot;

use super::limits;
use super::message::{self, ContainerFacts, PodFacts};
use crate::PodError;
use crate::actor::{Asked, Command};
use crate::shared::{Shared, now};

/// The pods of a daemon, as its plugins reach them. It keeps nothing alive.
pub(crate) struct PluginsRuntime(pub Weak<Shared>);

impl Runtime for PluginsRuntime {
    fn snapshot(&self, without: BTreeSet<String>) -> Work<'_, (Vec<PodSandbox>, Vec<Container>)> {
        Box::pin(async move {
            let Some(shared) = self.0.upgrade() else { return Default::default() };
            let mut pods = Vec::new();
            for view in shared.views.pods() {
                if !without.contains(&view.id.to_string()) {
                    pods.push(message::pod(&shared, &PodFacts::from(&*view)));
                }
            }
            let mut containers = Vec::new();
            for view in shared.views.containers() {
                let ended = matches!(view.life, Life::Exited { .. });
                let pod = pods.iter().find(|pod| pod.id == view.pod.to_string());
                let (Some(pod), false) = (pod, ended || without.contains(&view.id.to_string())) else {
                    continue;
                };
                let stored = message::read_spec(&shared, &view.pod, &view.id).await;
                let facts = ContainerFacts::of_view(&view, stored.as_ref());
                containers.push(message::container(&shared, &facts, pod));
            }
            (pods, containers)
        })
    }

    fn update(&self, update: ContainerUpdate) -> Work<'_, Result<(), String>> {
        Box::pin(async move {
            let wanted = update.linux.and_then(|linux| linux.resources).unwrap_or_default();
            let change = limits::change(&wanted).map_err(|error| error.to_string())?;
            self.ask(&update.container_id, |id, reply| Command::Update {
                id,
                resources: Box::default(),
                by_plugin: Some(Box::new(change)),
                reply,
            })
            .await
        })
    }

    fn evict(&self, eviction: ContainerEviction) -> Work<'_, Result<(), String>> {
        Box::pin(async move {
            self.ask(&eviction.container_id, |id, reply| Command::Stop { id, kill_at: now(), reply }).await
        })
    }
}

impl PluginsRuntime {
    async fn ask(
        &self,
        id: &str,
        command: impl FnOnce(ContainerId, oneshot::Sender<Result<(), PodError>>) -> Command,
    ) -> Result<(), String> {
        let commands = self.find(id)?;
        let id = ContainerId::parse(id).map_err(|error| error.to_string())?;
        let (reply, answer) = oneshot::channel();
        let gone = || "its pod is gone".to_owned();
        commands.send(Asked::now(command(id, reply))).await.map_err(|_| gone())?;
        let answer = answer.await.map_err(|_| gone())?;
        answer.map_err(|error| crate::chain(&error))
    }

    fn find(&self, id: &str) -> Result<tokio::sync::mpsc::Sender<Asked>, String> {
        let shared: Arc<Shared> = self.0.upgrade().ok_or("the daemon ends")?;
        let view = shared.views.container(id).map_err(|error| error.to_string())?;
        let actor = shared.actors().by_id.get(&view.pod).map(|actor| actor.commands.clone());
        actor.ok_or_else(|| "its pod is gone".to_owned())
    }
}
