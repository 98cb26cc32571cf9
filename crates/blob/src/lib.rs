//! Bytes that are too large for messages: content-addressed blobs, and the archives among them.
//!
//! A blob is named by a digest of its bytes (BLAKE3 for what calls carry, SHA-256 for all else), written once, and verified whenever it is read.

pub mod archive;
mod error;
mod remote;
mod spool;
mod store;

pub use error::BlobError;
pub use remote::{BlobStream, RemoteBlobs};
pub use spool::{Spool, Spooled, key_of};
pub use store::{BlobStore, NamespaceBlobs, REFRESHED_AFTER};
