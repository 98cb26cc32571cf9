//! What the database keeps, as the roles see it.

mod builds;
mod calls;
mod functions;

pub use builds::*;
pub use calls::*;
pub use functions::*;
