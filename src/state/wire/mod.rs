//! The log of a wire as a machine: what is kept, who has read how far, what is lost to whom.
