//! One running node, and what it keeps between runs.

pub mod home;
pub mod store;
