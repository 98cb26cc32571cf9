//! The HTTP edge and the dispatcher.
