//! What makes instances: Docker, the built-in sandbox, and a fake for tests.
