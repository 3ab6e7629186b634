//! Bowline: oci.
