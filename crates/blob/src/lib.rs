//! Bytes that are too large for messages: content-addressed blobs, and the archives among them.
//!
//! A blob is named by the SHA-256 of its bytes, written once, and verified whenever it is read.

pub mod archive;
mod store;

pub use store::{BlobError, BlobStore, REFRESHED_AFTER, Spool, Spooled, key_of};
