//! The one way from an instance to the world: a small proxy that resolves, judges and counts.

mod proxy;
mod request;

pub(crate) use proxy::Egress;
