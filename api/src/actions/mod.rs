//! What requests ask for, apart from how they ask: the use cases of the api. They know no HTTP but its errors.

pub(crate) mod calls;
