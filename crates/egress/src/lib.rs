//! Whom instances and callbacks may reach.
//!
//! Every name is resolved here, every answer is judged, and what is connected to is an address that was judged: so
//! nobody is led to a neighbour, to the host itself, or to a cloud's metadata.

mod judge;
mod reach;

pub use judge::{EgressPolicy, InvalidUpstream, Upstream};
pub use reach::{PATIENCE, Refusal, Way, connect, direct, read_head};

/// Host and port of an authority; an IPv6 address stands in brackets. None for one with a user in it, or without a port
/// where there is no default.
pub fn authority(text: &str, default: Option<u16>) -> Option<(String, u16)> {
    if text.contains('@') {
        return None;
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port.parse().ok()?)),
        _ => (text, default),
    };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    (!host.is_empty()).then(|| Some((host.to_owned(), port?)))?
}
