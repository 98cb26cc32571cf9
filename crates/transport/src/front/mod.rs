//! Connections between machines: TLS 1.3 with certificates of the platform's own authority, and bounded frames.
//!
//! - [`Authority`] is the platform's: it issues the certificates of nodes and of the front itself;
//! - [`FrontAcceptor`] is the platform's side of a connection, [`FrontDialer`] the node's;
//! - [`FrameStream`] carries frames either way. What they mean is in [`faena_protocol::front`].

mod acceptor;
mod authority;
mod dialer;
mod frames;
mod identity;
mod lane;

use tokio_rustls::rustls::crypto::{CryptoProvider, ring};

pub use acceptor::{Accepted, FrontAcceptor};
pub use authority::{Authority, AuthorityError, IssuedCertificate};
pub use dialer::{DialError, FrontDialer, JoinKey, join};
pub(crate) use frames::CarryEnd;
pub use frames::{FrameError, FrameStream};
pub use identity::{IdentityError, NodeIdentity};

fn provider() -> std::sync::Arc<CryptoProvider> {
    std::sync::Arc::new(ring::default_provider())
}
