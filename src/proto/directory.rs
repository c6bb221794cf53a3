//! What is asked of a directory, and what it tells: every message of a stream with that purpose.
