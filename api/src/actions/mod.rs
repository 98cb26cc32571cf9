//! What requests ask for, apart from how they ask: the use cases of the api. They know no HTTP but its errors.

pub(crate) mod accounts;
pub(crate) mod calls;
pub(crate) mod identities;
pub(crate) mod keys;
pub(crate) mod nodes;
pub(crate) mod providers;
pub(crate) mod sessions;
pub(crate) mod uploads;
