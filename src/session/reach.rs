//! One attempt to reach a peer: its addresses and, a moment later, a relay, all at once; whichever gives a link first.
//! After "Happy Eyeballs" (RFC 8305), with a link of one's own preferred to a circuit. While an address does not answer, a relay that
//! had no way there is asked again, less and less often.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{Either, select};
use futures_util::stream::FuturesUnordered;
use tokio::time::sleep;

use super::hub::Hub;
use super::via::Via;
use crate::id::NodeId;
use crate::net::{DialError, Link};
use crate::proto::limits;

/// One address more is dialled beside those that have not answered for so long.
const NEXT_ADDRESS: Duration = Duration::from_millis(100);

/// Whom to reach, and how.
pub(super) struct Reach {
    pub hub: Hub,
    pub to: NodeId,
    /// Dialled one after the other, without waiting for each to fail.
    pub addresses: Vec<SocketAddr>,
    pub via: Option<Via>,
    /// So much later than the first address, unless that has failed by then.
    pub via_after: Duration,
}

/// What came of dialling addresses, whatever came of the attempt.
#[derive(Debug, Default)]
pub(super) struct Tried {
    /// It answered here.
    pub reached: Option<SocketAddr>,
    /// Others answered here.
    pub others: Vec<SocketAddr>,
}

/// No way led there.
#[derive(Debug)]
pub(super) struct Unreachable {
    dialled: Option<DialError>,
    relayed: Option<(Via, String)>,
}

impl Reach {
    /// A link to the peer, which is not greeted yet. Dropped, all dials are given up.
    pub async fn link(self, tried: &mut Tried) -> Result<Link, Unreachable> {
        let Self { hub, to, addresses, via, via_after } = self;
        let direct = Box::pin(dial_all(&hub, to, &addresses, tried));
        let Some(via) = via else { return direct.await.map_err(|dialled| Unreachable { dialled, relayed: None }) };
        // With nothing to dial there is nothing to wait for.
        let wait = if addresses.is_empty() { Duration::ZERO } else { via_after };
        let (direct, dialled) = match select(direct, Box::pin(sleep(wait))).await {
            Either::Left((Ok(link), _)) => return Ok(link),
            Either::Left((Err(dialled), _)) => (None, dialled),
            Either::Right(((), direct)) => (Some(direct), None),
        };
        let Some(mut direct) = direct else {
            let relayed = hub.acceptor().begin(via.clone(), to).await;
            return relayed.map_err(|error| Unreachable { dialled, relayed: Some((via, error)) });
        };
        let mut wait = limits::RELAY_AFTER;
        loop {
            let error = match select(direct, hub.acceptor().begin(via.clone(), to)).await {
                Either::Left((Ok(link), _)) | Either::Right((Ok(link), _)) => return Ok(link),
                Either::Left((Err(dialled), relayed)) => {
                    return relayed.await.map_err(|error| Unreachable { dialled, relayed: Some((via, error)) });
                }
                Either::Right((Err(error), dialling)) => {
                    direct = dialling;
                    error
                }
            };
            // An address that is silent is so for long, and what the relay lacks may be there in a moment: it is asked again meanwhile.
            match select(direct, Box::pin(sleep(wait))).await {
                Either::Left((dialled, _)) => {
                    return dialled.map_err(|dialled| Unreachable { dialled, relayed: Some((via, error)) });
                }
                Either::Right(((), dialling)) => direct = dialling,
            }
            wait *= 2;
        }
    }
}

/// The first of these addresses at which the peer answers; the last error if none does.
pub(super) async fn dial_all(
    hub: &Hub,
    to: NodeId,
    addresses: &[SocketAddr],
    tried: &mut Tried,
) -> Result<Link, Option<DialError>> {
    let dial = |(turn, address): (u32, SocketAddr)| async move {
        sleep(turn * NEXT_ADDRESS).await;
        (address, hub.endpoint().dial(address, to).await)
    };
    let mut dials: FuturesUnordered<_> = (0u32..).zip(addresses.iter().copied()).map(dial).collect();
    let mut last = None;
    while let Some((address, dialled)) = dials.next().await {
        match dialled {
            Ok(link) => {
                tried.reached = Some(address);
                return Ok(link);
            }
            Err(error) => {
                if matches!(error, DialError::WrongKey { .. }) {
                    tried.others.push(address);
                }
                last = Some(error);
            }
        }
    }
    Err(last)
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.dialled, &self.relayed) {
            (Some(dialled), Some((via, error))) => write!(f, "{dialled}; and over the relay {via}: {error}"),
            (Some(dialled), None) => dialled.fmt(f),
            (None, Some((via, error))) => write!(f, "over the relay {via}: {error}"),
            (None, None) => f.write_str("nothing is known of where it is"),
        }
    }
}
