//! Black-box tests of the `faena` binary; see `tests/`.
