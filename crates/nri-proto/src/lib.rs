//! The messages of NRI 0.12.5 and of ttrpc, generated from `proto/nri.proto` and `proto/ttrpc.proto`.
//!
//! Only `nri` sends them. Others see those of NRI as plain structs.

/// Messages of package `nri.pkg.api.v1alpha1`.
#[allow(missing_docs, clippy::all)]
pub mod v1alpha1 {
    include!(concat!(env!("OUT_DIR"), "/nri.pkg.api.v1alpha1.rs"));
}

/// The envelope of a call.
#[allow(missing_docs, clippy::all)]
pub mod ttrpc {
    include!(concat!(env!("OUT_DIR"), "/ttrpc.rs"));
}
