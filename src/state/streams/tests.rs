//! Two ends over simulated paths, a peer that lies, and single rules by example.

mod ends;
mod halves;
mod lies;
mod model;
mod net;
mod rules;
