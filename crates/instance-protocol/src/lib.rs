//! Frames between the agent in an instance and its miniworker.
