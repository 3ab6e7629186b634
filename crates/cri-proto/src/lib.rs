//! The wire types and stubs of CRI v1, generated from `proto/runtime.proto`, and of Bowline's own admin service
//! (`proto/admin.proto`).
//!
//! Only `cri` and the command line speak these; below them nobody has heard of gRPC.

/// Messages, clients and servers of package `runtime.v1`.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

/// Messages, client and server of package `bowline.admin.v1`: what an operator needs beyond CRI.
#[allow(missing_docs, clippy::all)]
pub mod admin {
    tonic::include_proto!("bowline.admin.v1");
}

/// The compiled descriptor of the whole interface (`FileDescriptorSet`).
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/runtime.bin"));

impl std::fmt::Debug for v1::AuthConfig {
    /// Says whom, never the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthConfig")
            .field("username", &self.username)
            .field("server_address", &self.server_address)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for v1::KeyValue {
    /// Values of environment variables are often secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyValue").field("key", &self.key).finish_non_exhaustive()
    }
}
