//! The one way from an instance to the world: a small proxy that resolves, judges and counts.

mod judge;
mod proxy;

pub use judge::EgressPolicy;
pub(crate) use proxy::Egress;
