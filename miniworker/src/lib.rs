//! One attempt: code, instance, result.
