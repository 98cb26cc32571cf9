//! A node: joining, slots, images, egress.
