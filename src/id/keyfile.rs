//! The files that keep the keys of a node.
