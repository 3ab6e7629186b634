//! The OCI runtime spec (1.2, its Linux part), as `oci` writes it and `plan` reads it.
//!
//! Fields that this version does not know are kept where it is cheap (`extra`), so that a spec which passes
//! through us to another runtime loses nothing; `plan` refuses those that it would have to act on. A missing
//! field and an empty one mean the same, except where an `Option` says otherwise.

mod linux;
mod process;
mod resources;

use std::collections::BTreeMap;

pub use linux::{
    IdMap, IntelRdt, Linux, LinuxDevice, LinuxMemoryPolicy, LinuxNamespace, LinuxNetDevice, LinuxPersonality,
    NamespaceType, Seccomp, SeccompAction, SeccompArg, SeccompOp, SeccompSyscall, TimeOffset,
};
pub use process::{
    CapabilitySets, ConsoleSize, EnvLine, IoPriority, Process, ProcessUser, Rlimit, Scheduler,
};
pub use resources::{
    BlockIo, CpuResources, DeviceRule, HugepageLimit, LinuxResources, MemoryResources, NetworkPriority,
    NetworkResources, PidsResources, RdmaResources, ThrottleDevice, WeightDevice,
};

/// Fields that we do not know, by name.
pub type Extra = BTreeMap<String, serde_json::Value>;

/// What is left out of the JSON form because it says nothing.
pub(crate) trait Absent {
    /// Nothing to say.
    fn absent(&self) -> bool;
}
impl<T> Absent for Option<T> {
    fn absent(&self) -> bool {
        self.is_none()
    }
}
impl<T> Absent for Vec<T> {
    fn absent(&self) -> bool {
        self.is_empty()
    }
}
impl<K, V> Absent for BTreeMap<K, V> {
    fn absent(&self) -> bool {
        self.is_empty()
    }
}
impl Absent for String {
    fn absent(&self) -> bool {
        self.is_empty()
    }
}
impl Absent for bool {
    fn absent(&self) -> bool {
        !*self
    }
}
/// A plain number is never left out: zero is a value (uid 0), and readers in C want the field.
macro_rules! always_there {
    ($($t:ty),*) => {$(impl Absent for $t { fn absent(&self) -> bool { false } })*};
}
always_there!(u16, u32, i32, u64, i64, NamespaceType, SeccompAction, SeccompOp, ProcessUser);

/// Declares structs of the spec: camelCase on the wire, every field may be missing, empty ones are not written.
macro_rules! spec_structs {
    ($($(#[$meta:meta])* pub struct $name:ident { $($(#[$fmeta:meta])* pub $field:ident: $ty:ty),* $(,)? })*) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Default, serde::Serialize, serde::Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        pub struct $name {
            $($(#[$fmeta])* #[serde(skip_serializing_if = "crate::runtime_spec::Absent::absent")] pub $field: $ty,)*
        }
    )*};
}
pub(crate) use spec_structs;

spec_structs! {
    /// A whole spec: `config.json` of a bundle.
    pub struct Spec {
        /// The version of the spec that the document follows.
        pub oci_version: String,
        /// What runs.
        pub process: Option<Process>,
        /// Its root file system.
        pub root: Option<Root>,
        /// UTS hostname.
        pub hostname: String,
        /// NIS domain name.
        pub domainname: String,
        /// Mounts, in the order in which they are made.
        pub mounts: Vec<Mount>,
        /// Programs to run at points of the container's life.
        pub hooks: Option<Hooks>,
        /// Free text for others.
        pub annotations: BTreeMap<String, String>,
        /// What only Linux has.
        pub linux: Option<Linux>,
        /// Fields that we do not know (`solaris`, `windows`, `vm`, ..).
        #[serde(flatten)]
        pub extra: Extra,
    }

    /// The root file system.
    pub struct Root {
        /// Path of the folder; relative to the bundle.
        pub path: String,
        /// No writes.
        pub readonly: bool,
    }

    /// One mount.
    pub struct Mount {
        /// Absolute path in the container.
        pub destination: String,
        /// Type of file system; `bind`, or empty with the option `bind`, for a bind mount.
        #[serde(rename = "type")]
        pub kind: String,
        /// Device, name or, for a bind mount, path on the host.
        pub source: String,
        /// fstab-style options.
        pub options: Vec<String>,
        /// uid mapping of an idmapped mount.
        pub uid_mappings: Vec<IdMap>,
        /// gid mapping of an idmapped mount.
        pub gid_mappings: Vec<IdMap>,
        /// Fields that we do not know.
        #[serde(flatten)]
        pub extra: Extra,
    }

    /// Hooks, by the moment at which they run.
    pub struct Hooks {
        /// Deprecated: before the user's process starts.
        pub prestart: Vec<Hook>,
        /// In the runtime's namespaces, after the container's are made.
        pub create_runtime: Vec<Hook>,
        /// In the container's namespaces, before pivot_root.
        pub create_container: Vec<Hook>,
        /// In the container's namespaces, before the user's process.
        pub start_container: Vec<Hook>,
        /// After start.
        pub poststart: Vec<Hook>,
        /// After deletion.
        pub poststop: Vec<Hook>,
    }

    /// One hook.
    pub struct Hook {
        /// Program, absolute.
        pub path: String,
        /// Its arguments, its own name first.
        pub args: Vec<String>,
        /// Its environment.
        pub env: Vec<String>,
        /// Seconds until it is killed.
        pub timeout: Option<i32>,
    }
}

impl Spec {
    /// Reads `config.json`.
    pub fn from_json(text: &[u8]) -> Result<Spec, serde_json::Error> {
        serde_json::from_slice(text)
    }

    /// Writes `config.json`. Bytes of the environment that are not UTF-8 come out as U+FFFD: JSON has no other way.
    pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }
}

impl Hooks {
    /// The lists, with the names of their kinds, in the order in which their moments come.
    pub fn kinds(&self) -> [(&'static str, &[Hook]); 6] {
        [
            ("prestart", &self.prestart),
            ("createRuntime", &self.create_runtime),
            ("createContainer", &self.create_container),
            ("startContainer", &self.start_container),
            ("poststart", &self.poststart),
            ("poststop", &self.poststop),
        ]
    }

    /// The list of a kind; `None` for a kind that there is not.
    pub fn kind_mut(&mut self, kind: &str) -> Option<&mut Vec<Hook>> {
        Some(match kind {
            "prestart" => &mut self.prestart,
            "createRuntime" => &mut self.create_runtime,
            "createContainer" => &mut self.create_container,
            "startContainer" => &mut self.start_container,
            "poststart" => &mut self.poststart,
            "poststop" => &mut self.poststop,
            _ => return None,
        })
    }

    /// Whether some run before the program does: the launch has to wait for them.
    pub fn come_before_the_program(&self) -> bool {
        let Hooks { prestart, create_runtime, create_container, start_container, .. } = self;
        [prestart, create_runtime, create_container, start_container].iter().any(|list| !list.is_empty())
    }

    /// No hook of any kind: an empty `hooks` object is none.
    pub fn is_empty(&self) -> bool {
        self.kinds().iter().all(|(_, list)| list.is_empty())
    }
}

/// A string that may be any of a few words, or one we do not know, which is kept.
macro_rules! word_enum {
    ($(#[$meta:meta])* pub enum $name:ident { $($(#[$vmeta:meta])* $variant:ident = $word:literal),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(from = "String", into = "String")]
        pub enum $name {
            $($(#[$vmeta])* $variant,)*
            /// A word that this version does not know.
            Other(String),
        }
        impl From<String> for $name {
            fn from(word: String) -> Self {
                match word.as_str() {
                    $($word => Self::$variant,)*
                    _ => Self::Other(word),
                }
            }
        }
        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.as_str().to_owned()
            }
        }
        impl $name {
            /// The word.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $word,)*
                    Self::Other(word) => word,
                }
            }
        }
    };
}
pub(crate) use word_enum;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_survives_the_way_there_and_back_with_fields_we_do_not_know() {
        let text = r#"{"ociVersion":"1.2.0","process":{"user":{"uid":0,"gid":0},"args":["sh"],"env":["A=b"],"cwd":"/","newThing":1},
            "mounts":[{"destination":"/x","type":"bind","source":"/y","options":["rbind"],"other":true}],
            "linux":{"namespaces":[{"type":"network","path":"/n"},{"type":"future"}],"seccomp":{"defaultAction":"SCMP_ACT_ERRNO",
            "syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]},"resources":{"cpu":{"shares":2}}},"windows":{"a":1}}"#;
        let spec = Spec::from_json(text.as_bytes()).unwrap();
        assert_eq!(spec.extra.keys().collect::<Vec<_>>(), ["windows"]);
        let again = Spec::from_json(&spec.to_json().unwrap()).unwrap();
        assert_eq!(again, spec);
        let linux = spec.linux.unwrap();
        assert_eq!(linux.namespaces[0].kind, NamespaceType::Network);
        assert_eq!(linux.namespaces[1].kind, NamespaceType::Other("future".into()));
    }

    #[test]
    fn environment_keeps_bytes_in_memory_and_is_lossy_as_json() {
        let process = Process { env: vec![EnvLine::new("A", b"\xff")], ..Process::default() };
        assert_eq!(process.env[0].as_bytes(), b"A=\xff");
        let json = serde_json::to_string(&process).unwrap();
        assert!(json.contains("A=\u{fffd}"), "{json}");
    }
}
