//! Methods that other processes serve through this node. Each comes and goes by itself; those of one service are merged under
//! its name. Calls are handed to whoever offered the method; what happens with them is not known here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc, oneshot};

use super::failure::{Cause, Failure};
use super::peers::{Guest, Guests, resolve};
use super::types::{EventLine, Offer};
use crate::id::NodeId;
use crate::proto::body::ContentType;
use crate::proto::call::Shape;
use crate::proto::limits;
use crate::proto::status::{Code, Status};
use crate::service::{Registered, Registration};
use crate::{Context, Node, Receiver, Sender, Service};

/// Calls one offered method has in hand at once; more are turned away.
pub const CALLS: usize = 64;

/// What other processes serve through a node. Clones share it.
#[derive(Clone, Debug)]
pub struct Offers(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    node: Node,
    services: Mutex<BTreeMap<String, Offered>>,
    /// Where services are listed: what serves methods of one service shares it.
    announced: tokio::sync::Mutex<BTreeMap<(String, NodeId), Weak<Announced>>>,
    events: broadcast::Sender<EventLine>,
}

/// The methods offered of one service.
#[derive(Debug)]
struct Offered {
    registration: Registration,
    methods: BTreeMap<String, Method>,
}

#[derive(Clone, Debug)]
struct Method {
    offer: Offer,
    calls: mpsc::Sender<Incoming>,
    slots: Arc<Semaphore>,
}

/// A call that came in for an offered method.
#[derive(Debug)]
pub struct Incoming {
    /// What is known of it.
    pub cx: Context,
    /// What was offered.
    pub offer: Offer,
    /// What the caller sends.
    pub requests: Receiver<Bytes>,
    /// The answer. To be dropped before `done` is told.
    pub replies: Sender<Bytes>,
    /// Takes how the call ended. Closed when the caller gave up.
    pub done: oneshot::Sender<Result<(), Status>>,
    _slot: OwnedSemaphorePermit,
}

/// A service is listed at a peer as long as this is kept.
#[derive(Debug)]
pub struct Announced {
    at: NodeId,
    _registered: Registered,
    _guest: Guest,
}

impl Announced {
    /// Whose directory.
    pub fn at(&self) -> NodeId {
        self.at
    }
}

/// A method is offered as long as this is kept.
#[derive(Debug)]
pub struct Offering {
    offers: Offers,
    service: String,
    method: String,
}

impl Offers {
    /// Nothing yet, for this node.
    pub fn new(node: Node) -> Self {
        let (services, announced, events) = (Mutex::default(), Default::default(), broadcast::channel(256).0);
        Self(Arc::new(Inner { node, services, announced, events }))
    }

    /// Who provides what is offered.
    pub fn provider(&self) -> NodeId {
        self.0.node.id()
    }

    /// Services that come and go.
    pub fn events(&self) -> broadcast::Receiver<EventLine> {
        self.0.events.subscribe()
    }

    /// Offers a method; its calls go to this channel. Not more than [`CALLS`] at once, so the channel should hold as many.
    ///
    /// # Errors
    /// [`Failure`]: a name that cannot be one, or is taken.
    pub fn add(&self, offer: Offer, calls: mpsc::Sender<Incoming>) -> Result<Offering, Failure> {
        let wrong = || Failure::usage(format!("{:?} is no method: write SERVICE/METHOD", offer.method));
        let (service, method) = offer.method.split_once('/').ok_or_else(wrong)?;
        let (service, method) = (service.to_owned(), method.to_owned());
        let taken = || {
            Failure::new(Cause::Local, Code::AlreadyExists, format!("{} is served already", offer.method))
                .hint("end the other `volt serve` first, or choose another name")
        };
        let mut services = self.lock();
        let mut methods = services.get(&service).map(|offered| offered.methods.clone()).unwrap_or_default();
        if methods.contains_key(&method) {
            return Err(taken());
        }
        methods.insert(method.clone(), Method { offer, calls, slots: Arc::new(Semaphore::new(CALLS)) });
        let merged = merged(&service, &methods);
        match services.get_mut(&service) {
            Some(offered) => {
                offered.registration.replace(merged)?;
                offered.methods = methods;
            }
            None => {
                let registration = self.0.node.serve(merged)?;
                services.insert(service.clone(), Offered { registration, methods });
                self.tell(&service, true);
            }
        }
        Ok(Offering { offers: self.clone(), service, method })
    }

    fn remove(&self, service: &str, method: &str) {
        let mut services = self.lock();
        let Some(offered) = services.get_mut(service) else { return };
        offered.methods.remove(method);
        if offered.methods.is_empty() {
            services.remove(service);
            self.tell(service, false);
        } else if let Err(error) = offered.registration.replace(merged(service, &offered.methods)) {
            tracing::error!(%error, service, "the methods that remain could not be served anew; this is a bug");
        }
    }

    fn tell(&self, service: &str, online: bool) {
        let event = EventLine::Service { name: service.to_owned(), provider: self.0.node.id(), online };
        let _ = self.0.events.send(event);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Offered>> {
        self.0.services.lock().expect("nothing panics while it is held")
    }
}

impl Offering {
    /// Lists the service at the peers it is to be listed at, when they have taken it in.
    ///
    /// # Errors
    /// [`Failure`]: no such peer, nobody there, or it refuses.
    pub async fn announce(&self, guests: &Guests, offer: &Offer) -> Result<Vec<Arc<Announced>>, Failure> {
        let mut all = Vec::new();
        for peer in &offer.at {
            all.push(self.announce_at(guests, offer, peer).await?);
        }
        Ok(all)
    }

    async fn announce_at(&self, guests: &Guests, offer: &Offer, peer: &str) -> Result<Arc<Announced>, Failure> {
        let node = &self.offers.0.node;
        let target = resolve(node, peer).await?;
        let mut announced = self.offers.0.announced.lock().await;
        announced.retain(|_, announced| announced.strong_count() > 0);
        let key = (self.service.clone(), target.id);
        if let Some(there) = announced.get(&key).and_then(Weak::upgrade) {
            return Ok(there);
        }
        let guest = guests.session(node, &target, limits::CALL_DEADLINE, false).await?;
        let registered = guest.session().announce(&self.service).mode(offer.mode.clone()).start().await?;
        let new = Arc::new(Announced { at: target.id, _registered: registered, _guest: guest });
        announced.insert(key, Arc::downgrade(&new));
        Ok(new)
    }
}

impl Drop for Offering {
    fn drop(&mut self) {
        self.offers.remove(&self.service, &self.method);
    }
}

fn merged(service: &str, methods: &BTreeMap<String, Method>) -> Service {
    methods.iter().fold(Service::new(service), |service, (name, method)| {
        let shape = if method.offer.stream { Shape::Bidi } else { Shape::Unary };
        let to = method.clone();
        let service = service.raw(name, shape, move |cx, requests, replies| to.clone().hand_on(cx, requests, replies));
        if method.offer.description.is_empty() { service } else { service.describe(&method.offer.description) }
    })
}

impl Method {
    async fn hand_on(self, cx: Context, requests: Receiver<Bytes>, replies: Sender<Bytes>) -> Result<(), Status> {
        if cx.content_type() == ContentType::Bincode {
            let text = "a program serves this method and reads no bincode: call it with content type json or raw";
            return Err(Status::new(Code::InvalidArgument, text));
        }
        let busy = |_| Status::new(Code::ResourceExhausted, format!("{CALLS} calls of this method run already; try again later"));
        let slot = self.slots.try_acquire_owned().map_err(busy)?;
        let (done, ended) = oneshot::channel();
        let gone = || Status::new(Code::Unavailable, "the program that served this method is gone");
        let call = Incoming { cx, offer: self.offer, requests, replies, done, _slot: slot };
        self.calls.send(call).await.map_err(|_| gone())?;
        ended.await.unwrap_or_else(|_| Err(gone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::Mode;

    fn offer(method: &str) -> Offer {
        Offer { method: method.into(), stream: false, raw: false, description: String::new(), at: Vec::new(), mode: Mode::Public }
    }

    fn served(node: &Node) -> Vec<String> {
        let of = |service: &crate::service::ServiceDescription| {
            service.methods.iter().map(|method| format!("{}/{}", service.name, method.name)).collect::<Vec<_>>()
        };
        node.services().iter().flat_map(of).collect()
    }

    #[tokio::test]
    async fn methods_of_one_service_come_and_go_one_by_one() {
        let node = Node::builder().listen("127.0.0.1:0".parse().unwrap()).bind().await.unwrap();
        let offers = Offers::new(node.clone());
        let mut events = offers.events();
        let (calls, _taken) = mpsc::channel(1);
        let one = offers.add(offer("greeter/hello"), calls.clone()).unwrap();
        let other = offers.add(offer("greeter/bye"), calls.clone()).unwrap();
        assert_eq!(served(&node), ["greeter/bye", "greeter/hello"]);
        assert_eq!(offers.add(offer("greeter/bye"), calls.clone()).unwrap_err().code, "already_exists");
        drop(one);
        assert_eq!(served(&node), ["greeter/bye"]);
        drop(other);
        assert!(served(&node).is_empty());
        for online in [true, false] {
            let event = EventLine::Service { name: "greeter".into(), provider: node.id(), online };
            assert_eq!(events.try_recv().unwrap(), event);
        }
        for bad in ["greeter", "a b/c", "/x", "volt/x"] {
            assert!(offers.add(offer(bad), calls.clone()).is_err(), "{bad}");
        }
        node.shutdown().await;
    }

    #[tokio::test]
    async fn programs_get_no_bincode_and_not_too_much_at_once() {
        let listen = || Node::builder().listen("127.0.0.1:0".parse().unwrap());
        let (server, client) = (listen().open(true).bind().await.unwrap(), listen().bind().await.unwrap());
        let (calls, mut taken) = mpsc::channel(CALLS);
        let offers = Offers::new(server.clone());
        let offering = offers.add(offer("x/y"), calls).unwrap();
        let session = client.connect(server.ticket()).await.unwrap();
        let refused = session.call::<_, ()>("x/y", &()).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);

        let call = || session.request("x/y").content_type(ContentType::Json).unary_raw(b"1".to_vec());
        let waiting = futures_util::future::join_all((0..CALLS).map(|_| call()));
        let too_many = async {
            let mut held = Vec::new();
            while held.len() < CALLS {
                held.push(taken.recv().await.unwrap());
            }
            call().await
        };
        let (waited, too_many) = tokio::join!(waiting, too_many);
        assert_eq!(too_many.unwrap_err().code(), Code::ResourceExhausted);
        // Whoever held the calls has dropped them.
        assert!(waited.into_iter().all(|ended| ended.unwrap_err().code() == Code::Unavailable));
        drop(offering);
        assert_eq!(call().await.unwrap_err().code(), Code::NotFound);
        client.shutdown().await;
        server.shutdown().await;
    }
}
