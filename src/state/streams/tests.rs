//! Two ends over simulated paths, a peer that lies, and single rules by example.

mod rules;
