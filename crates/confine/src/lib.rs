//! What every process of a user is started with, by the agent or by a zygote of the sandbox. That is the list
//! of system calls, and the change from a process of ours to one of the user's.

pub mod gateway;
pub mod privileges;
pub mod seccomp;
pub mod user;
