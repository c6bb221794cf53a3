//! The directory as a machine: what is registered, by whom, and whether it is online.
