//! The network: endpoints, links and what proves who is at the other end. The only room that names quinn, rustls and rcgen.

pub(crate) mod certificate;
pub(crate) mod tls;
