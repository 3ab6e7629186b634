//! How plugins come: from the socket or as programs of ours, they register, are configured, join and are synchronised.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bowline_nri_proto::v1alpha1::{
    ConfigureRequest, ConfigureResponse, Container, Empty, PodSandbox, RegisterPluginRequest,
    SynchronizeRequest, SynchronizeResponse, UpdateContainersRequest, UpdateContainersResponse,
};
use prost::Message as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, oneshot};

use crate::NRI_VERSION;
use crate::hub::{Hub, Nri, Runtime};
use crate::launched::{Launched, discover};
use crate::link::{End, Link, Service, code};
use crate::plugin::{ALL_EVENTS, PLUGIN_SERVICE, Plugin, check_index, check_name};

/// The service that the runtime serves.
pub(crate) const RUNTIME_SERVICE: &str = "nri.pkg.api.v1alpha1.Runtime";
/// Plugins that can be connected.
const MAX_PLUGINS: usize = 64;
/// Connections that may be about to register.
const MAX_ARRIVING: usize = 64;
/// What one message of Synchronize holds, in bytes, if it holds more than one object.
const SYNCHRONIZE_BYTES: usize = 1 << 20;
/// The pause after a connection could not be accepted, for want of descriptors as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl Nri {
    /// Starts the programs of the plugin folder, and returns when each is synchronised or has failed; then takes
    /// connections of others, if there is a socket for them.
    pub async fn start(&self, runtime: Arc<dyn Runtime>, socket: Option<UnixListener>) {
        let Some(hub) = &self.0 else { return };
        if hub.runtime.set(runtime).is_err() {
            tracing::error!("NRI was started twice");
            return;
        }
        let mut arrivals = tokio::task::JoinSet::new();
        for launched in discover(&hub.config) {
            let hub = hub.clone();
            arrivals.spawn(async move {
                let name = launched.name();
                match launched.start() {
                    Ok((socket, process)) => {
                        // It is killed when its connection has ended.
                        arrive(hub, socket, Some((launched, process))).await;
                    }
                    Err(error) => {
                        tracing::error!(plugin = name, %error, "an NRI plugin could not be started");
                    }
                }
            });
        }
        while arrivals.join_next().await.is_some() {}
        if let Some(socket) = socket {
            let task = tokio::spawn(accept(Arc::downgrade(hub), socket));
            hub.tasks.lock().unwrap_or_else(PoisonError::into_inner).push(task);
        }
    }
}

async fn accept(hub: Weak<Hub>, socket: UnixListener) {
    let arriving = Arc::new(Semaphore::new(MAX_ARRIVING));
    loop {
        let accepted = socket.accept().await;
        let Some(hub) = hub.upgrade() else { return };
        match (accepted, arriving.clone().try_acquire_owned()) {
            (Ok((connection, _)), Ok(permit)) => {
                tokio::spawn(async move {
                    let _permit = permit;
                    arrive(hub, connection, None).await;
                });
            }
            (Ok(_), Err(_)) => {
                tracing::warn!("too many NRI plugins are about to register; one is turned away")
            }
            (Err(error), _) => {
                tracing::warn!(%error, "could not accept a connection of an NRI plugin");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Takes a connection to where its plugin is synchronised. What goes wrong ends the connection, and is in the log.
async fn arrive(hub: Arc<Hub>, socket: UnixStream, launched: Option<(Launched, tokio::process::Child)>) {
    let (register, registered) = oneshot::channel();
    let link = Link::start(socket, End::Runtime, service(&hub, register));
    let (launched, process) = launched.unzip();
    let shown = launched.as_ref().map(Launched::name).unwrap_or_default();
    if let Some(mut process) = process {
        let link = link.clone();
        tokio::spawn(async move {
            link.ended().await;
            let _ = process.kill().await;
        });
    }
    match welcome(&hub, &link, registered, launched.as_ref()).await {
        Ok(()) => {}
        Err(error) => {
            tracing::error!(plugin = shown, error, "an NRI plugin could not join");
            link.close();
        }
    }
}

async fn welcome(
    hub: &Arc<Hub>,
    link: &Arc<Link>,
    registered: oneshot::Receiver<RegisterPluginRequest>,
    launched: Option<&Launched>,
) -> Result<(), String> {
    let config = &hub.config;
    let limit = config.registration_timeout;
    let request = tokio::select! {
        request = registered => request.map_err(|_| "it went away before it registered".to_owned())?,
        () = link.ended() => return Err("it went away before it registered".into()),
        () = tokio::time::sleep(limit) => {
            return Err(format!("it did not register within {} ms", limit.as_millis()));
        }
    };
    let identity = match launched {
        Some(launched) => launched.identity(),
        None => (request.plugin_idx, request.plugin_name),
    };
    let drop_in = launched.map(|launched| launched.config.clone()).unwrap_or_default();
    let configure = ConfigureRequest {
        config: drop_in,
        runtime_name: "bowline".into(),
        runtime_version: config.runtime_version.clone(),
        registration_timeout: i64::try_from(limit.as_millis()).unwrap_or(i64::MAX),
        request_timeout: i64::try_from(config.request_timeout.as_millis()).unwrap_or(i64::MAX),
        nri_version: NRI_VERSION.into(),
    };
    let answer: ConfigureResponse = link
        .call(PLUGIN_SERVICE, "Configure", &configure, config.request_timeout)
        .await
        .map_err(|error| format!("Configure: {error}"))?;
    let events = match answer.events as u32 {
        0 => ALL_EVENTS,
        events if events & !ALL_EVENTS != 0 => {
            return Err(format!("it wants events that there are not: {:#x}", events & !ALL_EVENTS));
        }
        events => events,
    };
    let policy = answer.failure_policy.unwrap_or_default();
    let plugin = Arc::new(Plugin::new(identity, launched.is_some(), link.clone(), events, policy));
    // Nobody else has it yet.
    let turn = plugin.queue.clone().lock_owned().await;
    let Some(committed) = hub.roster.join(&plugin, MAX_PLUGINS) else {
        return Err(format!("{MAX_PLUGINS} plugins are connected already"));
    };
    hub.count(hub.roster.plugins().len());
    tokio::spawn(leave(hub.clone(), plugin.clone()));
    let wanted =
        synchronize(hub, &plugin, committed).await.map_err(|error| format!("Synchronize: {error}"))?;
    drop(turn);
    tracing::info!(plugin = plugin.name(), nri = request.nri_version, "an NRI plugin has joined");
    hub.apply_all(wanted, Vec::new()).await;
    Ok(())
}

/// Takes it out of the roster when its connection has ended.
async fn leave(hub: Arc<Hub>, plugin: Arc<Plugin>) {
    plugin.link.ended().await;
    hub.count(hub.roster.leave(&plugin));
    let required = &hub.config.required_plugins;
    if required.iter().any(|name| *name == plugin.base || *name == plugin.name()) {
        tracing::error!(
            plugin = plugin.name(),
            "a required NRI plugin is gone: no containers are made without it"
        );
    } else {
        tracing::info!(plugin = plugin.name(), "an NRI plugin is gone");
    }
}

/// Shows it everything that there is. What it wants changed.
async fn synchronize(
    hub: &Arc<Hub>,
    plugin: &Plugin,
    committed: Vec<oneshot::Receiver<()>>,
) -> Result<Vec<bowline_nri_proto::v1alpha1::ContainerUpdate>, String> {
    let limit = hub.config.synchronize_timeout;
    let settled = async {
        for ticket in committed {
            // The sender is never used: it goes with the ticket.
            let _ = ticket.await;
        }
    };
    if tokio::time::timeout(limit, settled).await.is_err() {
        tracing::warn!(
            plugin = plugin.name(),
            "something is being made for too long; an NRI plugin is synchronised without it"
        );
    }
    let runtime = hub.runtime.get().ok_or("the runtime is not ready")?;
    let (pods, containers) = runtime.snapshot(hub.roster.all_leaving()).await;
    let mut messages = split(pods, containers).into_iter().peekable();
    loop {
        let Some(mut message) = messages.next() else { return Ok(Vec::new()) };
        message.more = messages.peek().is_some();
        let answer: SynchronizeResponse = plugin
            .link
            .call(PLUGIN_SERVICE, "Synchronize", &message, limit)
            .await
            .map_err(|error| error.to_string())?;
        if !message.more {
            return Ok(answer.update);
        }
        if !answer.more || !answer.update.is_empty() {
            return Err("it does not know Synchronize in more than one message".into());
        }
    }
}

/// Cuts a snapshot into messages: at least one, each of [`SYNCHRONIZE_BYTES`] at most unless one object is larger.
fn split(pods: Vec<PodSandbox>, containers: Vec<Container>) -> Vec<SynchronizeRequest> {
    let mut messages = vec![SynchronizeRequest::default()];
    let mut bytes = 0;
    let mut room = |messages: &mut Vec<SynchronizeRequest>, more: usize| {
        if bytes > 0 && bytes + more > SYNCHRONIZE_BYTES {
            messages.push(SynchronizeRequest::default());
            bytes = 0;
        }
        bytes += more;
    };
    for pod in pods {
        room(&mut messages, pod.encoded_len());
        if let Some(last) = messages.last_mut() {
            last.pods.push(pod);
        }
    }
    for container in containers {
        room(&mut messages, container.encoded_len());
        if let Some(last) = messages.last_mut() {
            last.containers.push(container);
        }
    }
    messages
}

/// What plugins can ask us.
fn service(hub: &Arc<Hub>, register: oneshot::Sender<RegisterPluginRequest>) -> Service {
    let hub = Arc::downgrade(hub);
    let register = Arc::new(Mutex::new(Some(register)));
    Arc::new(move |service, method, payload| {
        let (hub, register) = (hub.clone(), register.clone());
        Box::pin(async move {
            let malformed = |error: prost::DecodeError| (code::INVALID_ARGUMENT, error.to_string());
            match (service.as_str(), method.as_str()) {
                (RUNTIME_SERVICE, "RegisterPlugin") => {
                    let request = RegisterPluginRequest::decode(payload.as_slice()).map_err(malformed)?;
                    check_name(&request.plugin_name).map_err(|why| (code::INVALID_ARGUMENT, why))?;
                    check_index(&request.plugin_idx).map_err(|why| (code::INVALID_ARGUMENT, why))?;
                    let waiting = register.lock().unwrap_or_else(PoisonError::into_inner).take();
                    let waiting =
                        waiting.ok_or((code::INVALID_ARGUMENT, "it has registered already".to_owned()))?;
                    let _ = waiting.send(request);
                    Ok(Empty {}.encode_to_vec())
                }
                (RUNTIME_SERVICE, "UpdateContainers") => {
                    let request = UpdateContainersRequest::decode(payload.as_slice()).map_err(malformed)?;
                    let hub = hub.upgrade().ok_or((code::UNKNOWN, "the runtime ends".to_owned()))?;
                    let failed = hub.apply_all(request.update, request.evict).await;
                    Ok(UpdateContainersResponse { failed }.encode_to_vec())
                }
                _ => Err((code::UNIMPLEMENTED, format!("there is no {service}/{method}"))),
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_cut_into_messages() {
        assert_eq!(split(Vec::new(), Vec::new()), [SynchronizeRequest::default()]);
        let big = |id: &str, bytes: usize| Container {
            id: id.into(),
            args: vec!["x".repeat(bytes)],
            ..Container::default()
        };
        let pods = vec![PodSandbox { id: "p".into(), ..PodSandbox::default() }];
        let containers = vec![big("a", 600_000), big("b", 600_000), big("c", 3_000_000), big("d", 1)];
        let messages = split(pods, containers);
        let ids: Vec<Vec<&str>> = messages
            .iter()
            .map(|message| message.containers.iter().map(|container| container.id.as_str()).collect())
            .collect();
        assert_eq!(ids, [vec!["a"], vec!["b"], vec!["c"], vec!["d"]]);
        assert_eq!(messages[0].pods.len(), 1);
    }
}
