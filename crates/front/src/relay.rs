//! What channels that pass messages on have in common.

use std::time::Duration;

use faena_transport::{Link, LinkEvent};

use crate::refusal::Refused;

/// Messages to a node that wait for its connection; a node that lets more of them wait is cut off.
pub(crate) const QUEUE: usize = 4096;
/// Messages of a node that wait to be judged.
pub(crate) const JUDGED: usize = 64;
/// How long a role of the platform may take to answer before its channel is refused.
const ROLE: Duration = Duration::from_secs(4);

/// A link to a role of the platform that is up.
pub(crate) async fn linked(mut link: Link, role: &str) -> Result<Link, Refused> {
    match tokio::time::timeout(ROLE, link.next()).await {
        Ok(Some(LinkEvent::Up)) => Ok(link),
        _ => Err(Refused::busy(format!("the {role} of the platform does not answer at the moment"))),
    }
}
