//! The side of a node that belongs to a platform on another machine: it joins, keeps its certificate, and reaches through the
//! front what a worker on the platform's own machine has beside it.

mod blobs;
mod internal;
mod membership;

pub use blobs::FrontBlobs;
pub use internal::forward_internal;
pub use membership::{MembershipError, become_node, identity_in, renew};
