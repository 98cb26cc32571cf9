//! What the database keeps, as the roles see it.

mod accounts;
mod builds;
mod calls;
mod functions;
mod images;
mod nodes;
mod providers;

pub use accounts::*;
pub use builds::*;
pub use calls::*;
pub use functions::*;
pub use images::*;
pub use nodes::*;
pub use providers::*;
