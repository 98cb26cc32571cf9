//! Fixtures and conditions shared by tests; never linked into a release.
