//! Bytes that are too large for messages: content-addressed blobs, and the archives among them.
//!
//! A blob is named by a digest of its bytes (BLAKE3 for what calls carry, SHA-256 for all else), written once, and verified whenever it is read.

pub mod archive;
mod store;

pub use store::{BlobError, BlobStore, NamespaceBlobs, REFRESHED_AFTER, Spool, Spooled, key_of};
