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

use std::io;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::TcpStream;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};

pub use acceptor::{Accepted, FrontAcceptor};
pub use authority::{Authority, AuthorityError, IssuedCertificate};
pub use dialer::{DialError, FrontDialer, JoinKey, join};
pub(crate) use frames::CarryEnd;
pub use frames::{FrameError, FrameStream};
pub use identity::{IdentityError, NodeIdentity};

/// How long a peer may be silent before it is asked whether it is there, and between two such questions.
const ASKED_AFTER: Duration = Duration::from_secs(15);
const ASKED_EVERY: Duration = Duration::from_secs(5);
/// How often it is asked in vain.
const ASKED: u32 = 3;
/// How long sent bytes may be unacknowledged, in milliseconds.
const UNACKNOWLEDGED_MS: u32 = 30_000;

/// A machine that is gone does not say so: the kernel asks (tcp(7)).
fn prepare(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, ASKED_AFTER)?;
    sockopt::set_tcp_keepintvl(socket, ASKED_EVERY)?;
    sockopt::set_tcp_keepcnt(socket, ASKED)?;
    sockopt::set_tcp_user_timeout(socket, UNACKNOWLEDGED_MS)?;
    Ok(())
}

fn provider() -> std::sync::Arc<CryptoProvider> {
    std::sync::Arc::new(ring::default_provider())
}
