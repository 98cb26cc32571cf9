//! The gateway: the process that ends the TCP connections of instances.
//!
//! An instance with egress has a TUN device with a default route. Its packets are read here, and end here: a TCP/IP stack
//! in user space answers them, one small stack for each connection (`flow.rs`). The gateway decides nothing. It asks the
//! worker, which judges the destination, connects, and passes the connected socket; only then the instance's handshake is
//! answered. It has no privilege, and its list of system calls has neither `socket`, `connect` nor `open`.
//!
//! ```text
//! instance ── packets ──▶ gateway ── dial 10.0.0.5:5432 ──▶ worker ── connect ──▶ server
//!          ◀─ SYN|ACK ──         ◀─ dialed + socket ───────
//!          ◀─ RST ──────         ◀─ refused ───────────────
//!          ◀══ data ═══▶ gateway ◀══════════ data, over that socket ════════════▶ server
//! ```
//!
//! Every packet is hostile. What is parsed is IPv4 without options and fragments, TCP, and UDP to the resolver's address;
//! the rest is dropped or refused. Connections, half-open connections, queries, buffers and replies to nonsense are bounded
//! for each device, and what panics ends one connection.

mod bucket;
mod device;
mod flow;
mod message;
mod packet;
mod poller;
pub mod server_name;

use std::process::ExitCode;

pub use device::{FLOWS, HALF_OPEN};
pub use message::{Blocked, Counters, DeviceId, FlowId, FromGateway, QueryId, Refuse, ToGateway};

/// The word after the program's name that makes `faena` the gateway.
pub const NET: &str = "net";

/// Becomes the gateway, where the command line says so. Called first in `main`, before any thread is made.
pub fn run_if_asked() -> Option<ExitCode> {
    if std::env::args().nth(1)? != NET {
        return None;
    }
    Some(match poller::main() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the gateway of instances ended: {error}");
            ExitCode::FAILURE
        }
    })
}
