//! The one way from an instance to the world: a small proxy that resolves, judges and counts.

mod judge;
mod proxy;
mod reach;
mod request;

pub use judge::{EgressPolicy, InvalidUpstream, Upstream};
pub(crate) use proxy::Egress;
