//! What every store must do, asked through the service over its socket. A test program of a store has `open`, and this suite as a
//! module.

mod calls;
mod images;
mod leases;
mod namespaces;
mod nodes;
mod order;
mod retention;
mod service;
pub(crate) mod support;
