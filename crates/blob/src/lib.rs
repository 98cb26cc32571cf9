//! Content-addressed blobs and checked archives.
