//! One running node, and what it keeps between runs.

pub mod config;
pub mod home;
pub mod store;
