//! What every store must do, asked through the service over its socket. A test program of a store has this suite as a
//! module, and `open(folder, settings, time)`: a folder is one database, and opening it again finds what was in it.

mod accounts;
mod calls;
mod config;
mod images;
mod leases;
mod namespaces;
mod nodes;
mod order;
mod retention;
mod service;
pub(crate) mod support;
