//! From what a client wants to a container that could be started: image, user, spec, plan, records. Nothing runs, and
//! no descriptor is kept but those that a launch in advance needs at once. Whatever can be found wrong is found here.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use bowline_image::{Image, LayerName};
use bowline_model::runtime_spec::{NamespaceType, Spec};
use bowline_model::spec::{ContainerSpec, NamespaceMode, PodSpec, Propagation, SecurityProfile};
use bowline_model::{ContainerId, SandboxId, Signal};
use bowline_nri::Ticket;
use bowline_oci::{
    ContainerInputs, ImageDefaults, LocalhostSeccomp, NamespacePaths, ResolvedUser, SelinuxLabels,
};
use bowline_plan::{Compiled, PlanInputs, RootfsSource};
use bowline_store::{
    ContainerRecord, ImageRecord, ImageVolumeRecord, LifeRecord, PodRecord, UserRecord, VERSION,
};

use crate::checkpoint::{self, Origin, TakenIn};
use crate::error::doing;
use crate::nri::{Making, Settled};
use crate::shared::Shared;
use crate::start::{Opening, begin_opening};
use crate::{PodError, cdi, devices, files, hold, net_devices, user, volumes};

/// The longest seccomp profile that is read from the host, in bytes.
const MAX_PROFILE: u64 = 4 << 20;

/// A container that was made.
pub(crate) struct Made {
    pub record: ContainerRecord,
    pub compiled: Compiled,
    /// For a launch in advance.
    pub opening: Option<Opening>,
    /// Held until it is visible.
    pub ticket: Ticket,
}

/// What the actor gives along.
pub(crate) struct Order {
    pub id: ContainerId,
    pub spec: ContainerSpec,
    pub slot: u16,
    pub created_at: i64,
    /// The archive of a pod's checkpoint that it comes from.
    pub restore: Option<PathBuf>,
    /// Whether its volumes may be opened now, for a launch in advance.
    pub ahead: bool,
    /// Events of the pod that plugins have to be told of first.
    pub before: Option<Settled>,
}

/// Makes a container; on failure nothing of it is left.
pub(crate) fn create(shared: &Shared, pod: &PodRecord, mut order: Order) -> Result<Made, PodError> {
    let id = order.id.clone();
    let taken = take_in(shared, &order)?;
    if let Some(taken) = &taken {
        taken.name_program(&mut order.spec)?;
    }
    // An archive stands for the image that its container ran.
    let image = taken.as_ref().map_or(order.spec.image.image.as_str(), TakenIn::image).to_owned();
    let what =
        if taken.is_some() { "image that the checkpoint's container ran; pull it first:" } else { "image" };
    let held =
        shared.images.hold(&id.to_string(), &image).map_err(|_| PodError::NotFound { what, id: image })?;
    let asked = order.spec.clone();
    let mut making = Making::begin(shared, order.before.take());
    let made = volumes::hold(shared, &id, &asked).and_then(|volumes| {
        build(shared, pod, order, &held.image, &held.layers, volumes, &mut making, taken)
    });
    if made.is_err() {
        making.undo(shared);
        volumes::release(shared, &id, &asked);
        if let Err(error) = shared.store.remove_container(&pod.id, &id) {
            tracing::error!(container = %id, error = %crate::chain(&error), "what was made of a container is left behind");
        }
    }
    made.map(|(record, compiled, opening)| Made { record, compiled, opening, ticket: making.ticket })
}

/// The checkpoint that a container comes from, by its image's name or by its pod's.
fn take_in(shared: &Shared, order: &Order) -> Result<Option<TakenIn>, PodError> {
    if let Some(archive) = &order.restore {
        let taken = checkpoint::take_in(shared, &order.id, &Origin::Archive(archive.clone()), true)?;
        let asked = shared.images.resolve(&order.spec.image.image);
        let asked =
            asked.ok_or_else(|| PodError::NotFound { what: "image", id: order.spec.image.image.clone() })?;
        if asked.id.to_string() != taken.image() {
            return Err(PodError::State(format!(
                "container `{}` of the checkpoint ran the image {}, and `{}` is another one",
                order.spec.name,
                taken.image(),
                order.spec.image.image
            )));
        }
        return Ok(Some(taken));
    }
    let origin = Origin::of(shared, &order.spec.image.image);
    origin.map(|origin| checkpoint::take_in(shared, &order.id, &origin, false)).transpose()
}

#[allow(clippy::too_many_arguments)]
fn build(
    shared: &Shared,
    pod: &PodRecord,
    order: Order,
    image: &Image,
    layers: &[LayerName],
    image_volumes: Vec<ImageVolumeRecord>,
    making: &mut Making,
    taken: Option<TakenIn>,
) -> Result<(ContainerRecord, Compiled, Option<Opening>), PodError> {
    let Order { id, spec, slot, created_at, ahead, .. } = order;
    user::check_container(&pod.spec, &spec)?;
    let user = resolve_user(shared, &spec, image, layers)?;
    let cgroup = format!("{}/{id}", pod.cgroup);
    let paths = volumes::image_paths(&id, &image_volumes);
    let labels = shared.selinux.label_container(pod, &spec.security, pid_mode(&pod.spec, &spec))?;
    let relabel =
        labels.as_ref().and_then(|labels| shared.selinux.volume_label(&pod.spec, &spec.security, labels));
    let (mut oci, directories, notes) =
        oci_spec(shared, pod, &spec, &id, image, &user, &cgroup, &paths, labels.as_ref())?;
    shared.apparmor.require(oci.process.as_ref().map_or("", |process| process.apparmor_profile.as_str()))?;
    let mut device_sources = devices::elsewhere(&spec);
    device_sources.extend(cdi::apply(&shared.config.cdi_folders, &spec.cdi_devices, &mut oci)?);
    check_mounts(shared, &spec, relabel.is_some())?;
    let mut record = ContainerRecord {
        version: VERSION,
        id: id.clone(),
        pod: pod.id.clone(),
        created_at,
        image: ImageRecord {
            id: image.id.to_string(),
            reference: image.repo_digests.first().cloned().unwrap_or_else(|| image.id.to_string()),
            layers: layers.iter().map(ToString::to_string).collect(),
        },
        user: UserRecord { uid: user.uid, gid: user.gid, groups: user.groups.clone() },
        cgroup,
        slot,
        stop_signal: stop_signal(&spec, image),
        log_path: log_path(&pod.spec, &spec)?,
        life: LifeRecord::Created,
        notes,
        image_volumes,
        restore: taken.is_some(),
        relabel,
        spec,
    };
    let mut stored = Stored { spec: oci, directories, device_sources };
    making.adjust(shared, pod, &mut record, &mut stored)?;
    let compiled = compile(shared, &pod.spec, &record, &stored)?;
    let networks = stored.spec.linux.iter().flat_map(|linux| &linux.namespaces);
    let own_network = networks.into_iter().any(|namespace| namespace.kind == NamespaceType::Network);
    net_devices::check(&pod.spec, own_network, &compiled.net_devices)?;
    if let Some(rdt) = &compiled.intel_rdt {
        bowline_resctrl::check(rdt)?;
        bowline_resctrl::require(Path::new(bowline_resctrl::ROOT))?;
    }
    if taken.is_some() && compiled.hooks.is_some() {
        return Err(PodError::Unsupported(
            "the container comes from a checkpoint, and a CDI device or an NRI plugin gives it hooks; it can have no hooks".into(),
        ));
    }
    // A worker is at it while we write. What it makes, the log and folders that are missing, is nothing that goes with
    // the container.
    let ahead = ahead && hold::may_be(&pod.spec, &record, &compiled);
    // What is wrong with them is for the start to find out: it may be right by then.
    let opening = if ahead { begin_opening(shared, &record, &compiled).ok() } else { None };
    files::allocate_slot(&shared.config.state, &pod.id, slot)
        .map_err(doing("allocate a slot for the exit"))?;
    shared.store.write_config(&pod.id, &id, &stored).map_err(doing("write the container's spec"))?;
    make_writable_layer(shared, &pod.spec, &record)?;
    if let Some(taken) = taken {
        taken.keep(shared, pod, &record, &stored, &compiled)?;
    }
    shared.store.write_container(&record).map_err(doing("record the container"))?;
    Ok((record, compiled, opening))
}

/// The OCI spec as it is stored, with what has no place in one.
#[derive(serde::Serialize, serde::Deserialize)]
pub(crate) struct Stored {
    #[serde(flatten)]
    pub spec: Spec,
    #[serde(default, rename = "bowlineDirectories")]
    pub directories: Vec<String>,
    /// Nodes that the host has at another path than the container: in a user namespace the host's are bound.
    #[serde(default, rename = "bowlineDeviceSources")]
    pub device_sources: BTreeMap<String, String>,
}

fn resolve_user(
    shared: &Shared,
    spec: &ContainerSpec,
    image: &Image,
    layers: &[LayerName],
) -> Result<ResolvedUser, PodError> {
    let read = |path: &str| {
        let found = shared.images.read_file_in_layers(layers, path, bowline_oci::MAX_DATABASE as u64);
        found.map_err(doing(format!("read /{path} of the image")))
    };
    let (passwd, group) = (read("etc/passwd")?, read("etc/group")?);
    bowline_oci::resolve_user(spec, &image.config.user, passwd.as_deref(), group.as_deref())
        .map_err(|error| PodError::Invalid(error.to_string()))
}

#[allow(clippy::too_many_arguments)]
fn oci_spec(
    shared: &Shared,
    pod: &PodRecord,
    asked: &ContainerSpec,
    id: &ContainerId,
    image: &Image,
    user: &ResolvedUser,
    cgroup: &str,
    image_volumes: &BTreeMap<usize, String>,
    labels: Option<&SelinuxLabels>,
) -> Result<(Spec, Vec<String>, Vec<String>), PodError> {
    let mut spec = asked.clone();
    spec.security.namespaces.pid = pid_mode(&pod.spec, asked);
    let spec = &spec;
    let profile = localhost_profile(spec)?;
    let devices = devices::of_host(spec)?;
    let defaults = ImageDefaults {
        entrypoint: image.config.entrypoint.clone(),
        cmd: image.config.cmd.clone(),
        env: image.config.env.clone(),
        working_dir: image.config.working_dir.clone(),
        user: image.config.user.clone(),
        volumes: image.config.volumes.clone(),
        stop_signal: image.config.stop_signal.clone().unwrap_or_default(),
    };
    let folder = files::folder(&shared.config.state, &pod.id);
    let file = |name: &str| Some(folder.join(name).to_string_lossy().into_owned());
    let host_ipc = pod.spec.security.namespaces.ipc == NamespaceMode::Node;
    let pod_files = bowline_oci::PodFiles {
        hosts: file("hosts"),
        hostname: file("hostname"),
        resolv_conf: file("resolv.conf"),
        // What it stands for is put in by `compile`.
        shm: (!host_ipc).then(|| volumes::shm(id)),
    };
    let hostname = crate::run_pod::hostname(shared, &pod.id, &pod.spec);
    let inputs = ContainerInputs {
        sandbox_id: &pod.id.to_string(),
        container_id: &id.to_string(),
        pod: &pod.spec,
        container: spec,
        image: &defaults,
        user,
        node: &shared.host.facts,
        files: &pod_files,
        namespaces: &NamespacePaths {
            pid: target_pids(shared, spec),
            // The launcher enters it; the path only says that there is one.
            user: user::of_pod(&pod.spec).map(|_| "/proc/self/ns/user".to_owned()),
            ..NamespacePaths::default()
        },
        cgroup_path: cgroup,
        hostname: &hostname,
        devices: &devices,
        image_volumes,
        seccomp_profile: profile.as_deref().map(|json| LocalhostSeccomp { json }),
        selinux: labels,
    };
    let built = bowline_oci::container_spec(&inputs).map_err(|error| PodError::Invalid(error.to_string()))?;
    let notes = built.notes.iter().map(|note| format!("{}: {}", note.field, note.text)).collect();
    Ok((built.spec, built.directories, notes))
}

/// Where a container's PID namespace comes from. One that says nothing, or POD, has what its pod has.
pub(crate) fn pid_mode(pod: &PodSpec, container: &ContainerSpec) -> NamespaceMode {
    match container.security.namespaces.pid {
        NamespaceMode::Pod => pod.security.namespaces.pid,
        other => other,
    }
}

/// The PID namespace of the target container, as a path for the spec.
fn target_pids(shared: &Shared, spec: &ContainerSpec) -> Option<String> {
    if spec.security.namespaces.pid != NamespaceMode::Target {
        return None;
    }
    let target = shared.views.container(&spec.security.namespaces.target_id).ok()?;
    target.life.pid().map(|pid| format!("/proc/{pid}/ns/pid"))
}

fn localhost_profile(spec: &ContainerSpec) -> Result<Option<Vec<u8>>, PodError> {
    let SecurityProfile::Localhost(path) = &spec.security.seccomp else { return Ok(None) };
    if spec.security.privileged {
        return Ok(None);
    }
    let what = || format!("read the seccomp profile {path}");
    let meta = fs::metadata(path).map_err(doing(what()))?;
    if !meta.is_file() || meta.len() > MAX_PROFILE {
        return Err(PodError::Invalid(format!(
            "seccomp profile {path}: not a file of at most {MAX_PROFILE} bytes"
        )));
    }
    fs::read(path).map(Some).map_err(doing(what()))
}

fn stop_signal(spec: &ContainerSpec, image: &Image) -> Signal {
    let of_image = || image.config.stop_signal.as_deref().and_then(Signal::parse);
    spec.stop_signal.or_else(of_image).unwrap_or(Signal::TERM)
}

fn log_path(pod: &PodSpec, spec: &ContainerSpec) -> Result<String, PodError> {
    if pod.log_directory.is_empty() || spec.log_path.is_empty() {
        return Ok(String::new());
    }
    let path = Path::new(&pod.log_directory).join(&spec.log_path);
    let path = path.to_str().ok_or_else(|| PodError::Invalid("log_path: not UTF-8".into()))?;
    Ok(path.to_owned())
}

/// Sources that are missing are made as folders, as the peers do; what is asked of propagation must be there to give.
fn check_mounts(shared: &Shared, spec: &ContainerSpec, relabels: bool) -> Result<(), PodError> {
    for (index, mount) in spec.mounts.iter().enumerate() {
        if mount.image.is_some() {
            continue;
        }
        let what = format!("look at mounts[{index}].host_path {}", mount.host_path);
        let real = crate::start::host_folder(shared, &mount.host_path, &what)?;
        if mount.selinux_relabel && relabels && bowline_monitor_proto::paths::is_system(&real) {
            return Err(PodError::Invalid(format!(
                "mounts[{index}].selinux_relabel: SELinux labels of {} are the system's and not changed; give the container \
                 another folder",
                real.display()
            )));
        }
        if mount.propagation == Propagation::Private {
            continue;
        }
        let (shared, slave) = crate::mount_table::propagation_of(&real).map_err(doing(what))?;
        let fits = match mount.propagation {
            Propagation::Bidirectional => shared,
            _ => shared || slave,
        };
        if !fits {
            let (asked, needed) = match mount.propagation {
                Propagation::Bidirectional => ("Bidirectional", "a shared mount"),
                _ => ("HostToContainer", "a shared or slave mount"),
            };
            return Err(PodError::Invalid(format!(
                "mounts[{index}].propagation: {asked} needs {} to be on {needed}; try `mount --make-rshared` on its mount point",
                mount.host_path
            )));
        }
    }
    Ok(())
}

/// Owner and mode of the overlay's folders, which the store made. The root of the container has the owner and mode of the topmost layer's. With a user
/// namespace the writable layer holds the ids of the host: overlayfs makes files of its own in it, as the host's root,
/// which an idmapped mount would have no number for.
fn make_writable_layer(shared: &Shared, pod: &PodSpec, record: &ContainerRecord) -> Result<(), PodError> {
    let folder = shared.store.container_folder(&record.pod, &record.id);
    let make = || -> io::Result<()> {
        let upper = folder.join("upper");
        let (mode, uid, gid) = match record.image.layers.last() {
            Some(top) => {
                let meta = fs::metadata(shared.images.layers_dir().join(top))?;
                (meta.mode() & 0o7777, meta.uid(), meta.gid())
            }
            None => (0o755, 0, 0),
        };
        if record.image_volumes.iter().any(|volume| volume.layers.len() < 2) {
            // Something must be mounted; with SELinux, an overlay, of which one layer makes none.
            fs::create_dir(folder.join("lower"))?;
        }
        let (uid, gid) = match user::of_pod(pod) {
            Some(user) => (user::outside(&user.uids, uid), user::outside(&user.gids, gid)),
            None => (uid, gid),
        };
        std::os::unix::fs::chown(&upper, Some(uid), Some(gid))?;
        fs::set_permissions(&upper, fs::Permissions::from_mode(mode))
    };
    make().map_err(doing("prepare the container's writable layer"))
}

/// Turns a stored spec into a plan.
pub(crate) fn compile(
    shared: &Shared,
    pod: &PodSpec,
    record: &ContainerRecord,
    stored: &Stored,
) -> Result<Compiled, PodError> {
    let name = |text: String| CString::new(text).map_err(|error| PodError::failed("name a layer", error));
    // Layers are relative to where the launcher finds them, which may be another mount: that of the writable layer is
    // always the same.
    let own = format!("{}/pods/{}/containers/{}", crate::base::STORE, record.pod, record.id);
    let mut lower: Vec<CString> =
        record.image.layers.iter().rev().map(|layer| name(layer.clone())).collect::<Result<_, _>>()?;
    lower.push(name(format!("../../{}", crate::base::MOUNT_POINTS))?);
    let rootfs = RootfsSource::Overlay {
        lower,
        upper: name(format!("{own}/upper"))?,
        work: name(format!("{own}/work"))?,
    };
    let inputs = PlanInputs {
        spec: &stored.spec,
        rootfs: &rootfs,
        directories: &stored.directories,
        cgroups: &shared.host.layout,
        cgroup_path: Some(&record.cgroup),
        inherited: inherited(pod, &stored.spec),
        last_cap: shared.host.facts.last_cap,
        arch: shared.host.arch,
        seccomp: &shared.seccomp,
    };
    let mut compiled =
        bowline_plan::compile(&inputs).map_err(|error| PodError::Invalid(error.to_string()))?;
    compiled.plan.create_cwd = true;
    if compiled.plan.readonly_root {
        // VOLUMEs of the image stay writable below a root that is not.
        for directory in &stored.directories {
            let path = name(directory.clone())?;
            compiled.plan.steps.push(bowline_launch_plan::Step::Keep { path });
        }
    }
    devices::bind(&mut compiled, &stored.device_sources);
    volumes::replace(&mut compiled, record, &name(format!("{own}/lower"))?)?;
    Ok(compiled)
}

/// What a container is born in. A PID namespace is joined at birth, by the launcher; so is a user namespace. The others
/// are its pod's, unless its spec says something else about them.
fn inherited(pod: &PodSpec, spec: &Spec) -> u64 {
    use bowline_linux::clone::ns;
    let listed = |flag| {
        let namespaces = spec.linux.iter().flat_map(|linux| &linux.namespaces);
        namespaces.filter_map(|namespace| namespace.kind.clone_flag()).any(|known| known == flag)
    };
    let asked = &pod.security.namespaces;
    let own = [(ns::NET, asked.network), (ns::UTS, asked.network), (ns::IPC, asked.ipc)]
        .into_iter()
        .filter(|(flag, mode)| *mode != NamespaceMode::Node && !listed(*flag))
        .fold(0, |flags, (flag, _)| flags | flag);
    ns::PID | user::of_pod(pod).map_or(0, |_| ns::USER) | own
}

/// The folder of a container's overlay that holds what it wrote.
pub(crate) fn upper(shared: &Shared, pod: &SandboxId, id: &ContainerId) -> PathBuf {
    shared.store.container_folder(pod, id).join("upper")
}
