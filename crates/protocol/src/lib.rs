//! The messages between api, worker and db, as values; sockets live in `faena-transport`.
//!
//! Every message is an [`Envelope`] `{v, id, msgType, content}` in JSON. [`db`] holds the requests that the
//! database service answers, [`node`] what api and worker tell each other.

pub mod db;
pub mod direct;
pub mod envelope;
pub mod front;
pub mod internal;
pub mod node;
pub mod records;

pub use db::{DbError, DbRequest};
pub use envelope::{Envelope, EnvelopeError, VERSION};
