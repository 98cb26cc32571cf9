//! The sandbox's spawner: namespaces, mounts and limits around the agent.
