//! What every process of the user's is born with, whoever starts it: the agent, or the sandbox with an interpreter that
//! was loaded beforehand.

pub mod seccomp;
pub mod user;
