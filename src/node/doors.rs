//! What peers ask of a node that is no matter of the session's, handed to the room that answers it.

use std::any::{Any, TypeId};
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;

use crate::id::NodeId;
use crate::net::{Link, PathRecv, PathSend};
use crate::proto::close::StreamCode;
use crate::proto::stream::{Kind, Purpose};
use crate::relay::Relays;
use crate::service::Server;
use crate::session::{Acceptor, Attached, Core, Serving, StreamRecv, StreamSend, Via};
use crate::wire::Wires;

/// Everything a node serves with.
pub(super) struct Doors {
    pub server: Arc<Server>,
    pub wires: Arc<Wires>,
    pub relays: Relays,
}

impl Acceptor for Doors {
    fn call(&self, send: StreamSend, recv: StreamRecv) -> Serving {
        self.server.call(send, recv)
    }

    fn stream(&self, purpose: Purpose, mut send: StreamSend, mut recv: StreamRecv) -> Serving {
        match purpose {
            Purpose::Directory => self.server.feed(send, recv),
            Purpose::Wire => self.wires.serve(send, recv),
            Purpose::Call | Purpose::Session => Box::pin(async move {
                send.reset(StreamCode::Kind);
                recv.stop(StreamCode::Kind);
            }),
        }
    }

    fn circuit(&self, on: Arc<Attached>, kind: Kind, send: PathSend, recv: PathRecv, first: Bytes) -> Serving {
        self.relays.serve(on, kind, send, recv, first)
    }

    fn begin(&self, via: Via, to: NodeId) -> Pin<Box<dyn Future<Output = Result<Link, String>> + Send>> {
        let relays = self.relays.clone();
        Box::pin(async move { relays.begin(&via, to).await.map_err(|error| error.to_string()) })
    }

    fn attached(&self, attached: &Arc<Attached>, resumed: bool) -> Option<Serving> {
        self.server.attached(attached, resumed)
    }

    fn detached(&self, core: &Arc<Core>) {
        self.server.detached(core);
    }

    fn ended(&self, core: &Arc<Core>) {
        self.server.ended(core);
    }

    fn part(&self, of: TypeId) -> Option<Arc<dyn Any + Send + Sync>> {
        match of {
            of if of == TypeId::of::<Server>() => Some(self.server.clone()),
            of if of == TypeId::of::<Wires>() => Some(self.wires.clone()),
            _ => None,
        }
    }
}
