//! What is asked of wires, and the records that carry their chunks: every message of a stream with that purpose.
