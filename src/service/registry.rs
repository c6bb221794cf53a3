//! What this node serves: services by name, methods by `service/method`. Changes take effect for the next call.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, RwLock};

use tokio::sync::watch;

use super::describe::ServiceDescription;
use super::method::{Handler, Method, Service};
use super::rate::Limiter;
use super::run::Place;
use crate::proto::call::Shape;
use crate::proto::directory::is_name;
use crate::proto::status::{Code, Status};

/// Services a node serves at once.
const SERVICES: usize = 256;

/// Why a service could not be added.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// A name that cannot be written in `service/method`.
    #[error("{0:?} cannot be a name here: use 1 to 255 letters, digits, '.', '_' or '-'")]
    Name(String),
    /// A method is defined twice.
    #[error("the service has two methods {0:?}")]
    Twice(String),
    /// The name is taken.
    #[error("a service {0:?} is served already; stop that one first, or choose another name")]
    Taken(String),
    /// The node serves too many.
    #[error("this node serves {SERVICES} services already")]
    TooMany,
}

/// What a node serves. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Registry(Arc<Inner>);

#[derive(Default)]
struct Inner {
    services: RwLock<BTreeMap<String, Entry>>,
    /// The node's own service, which is listed nowhere. Its methods decide themselves what they tell whom.
    own: RwLock<Option<Entry>>,
    /// Told of each change, in order.
    observer: OnceLock<Observer>,
    changes: watch::Sender<u64>,
}

/// Gets the name of a service, and what it is now; none if it is not served any more.
type Observer = Box<dyn Fn(&str, Option<&ServiceDescription>) + Send + Sync>;

#[derive(Debug)]
struct Entry {
    service: Service,
    methods: BTreeMap<String, (Arc<str>, Method)>,
    registration: Arc<()>,
}

/// A service is served as long as this is kept; dropped, the service is gone.
#[derive(Debug)]
pub struct Registration {
    registry: Registry,
    name: String,
    is: Arc<()>,
}

/// A method that was found.
pub(super) struct Lookup {
    pub path: Arc<str>,
    pub shape: Shape,
    pub place: Place,
    pub handler: Arc<dyn Handler>,
    pub rate: Option<Arc<Limiter>>,
}

impl Registry {
    /// Serves a service until the registration is dropped. Names are 1 to 255 letters, digits, `.`, `_` or `-`; the name
    /// `volt` is the node's own.
    ///
    /// # Errors
    /// [`ServiceError`]; then nothing has changed.
    pub fn add(&self, service: Service) -> Result<Registration, ServiceError> {
        let entry = Entry::new(service)?;
        let (name, registration) = (entry.service.name.clone(), entry.registration.clone());
        let mut services = self.write();
        if services.contains_key(&name) || name == super::describe::OWN_SERVICE {
            return Err(ServiceError::Taken(name));
        }
        if services.len() >= SERVICES {
            return Err(ServiceError::TooMany);
        }
        services.insert(name.clone(), entry);
        self.0.changed(&services, &name);
        Ok(Registration { registry: self.clone(), name, is: registration })
    }

    /// Adds these methods to the node's own service, which every peer that may connect may call: the methods decide whom they answer.
    /// One that is there already is replaced.
    pub(crate) fn add_own(&self, service: Service) -> Result<(), ServiceError> {
        let entry = Entry::new(service)?;
        let mut own = self.0.own.write().expect("nothing panics while it is held");
        match &mut *own {
            Some(there) => there.methods.extend(entry.methods),
            None => *own = Some(entry),
        }
        Ok(())
    }

    /// What is served, by name, with the methods for which `allowed` says yes. A service of which none is allowed is left out.
    pub fn describe(&self, allowed: impl Fn(&str) -> bool) -> Vec<ServiceDescription> {
        let services = self.read();
        let described = services.values().map(|entry| entry.describe(&allowed));
        described.filter(|service| !service.methods.is_empty()).collect()
    }

    /// What is served under this name, with the methods for which `allowed` says yes.
    pub(super) fn describe_one(&self, name: &str, allowed: impl Fn(&str) -> bool) -> Option<ServiceDescription> {
        self.read().get(name).map(|entry| entry.describe(allowed))
    }

    /// The methods of a service, each as `service/method`.
    pub(super) fn methods(&self, name: &str) -> Vec<Arc<str>> {
        self.read().get(name).map(|entry| entry.methods.values().map(|(path, _)| path.clone()).collect()).unwrap_or_default()
    }

    /// Tells of what is served, and from then on of each change. There is one observer, the first. It must not look here.
    pub(super) fn observe(&self, observer: impl Fn(&str, Option<&ServiceDescription>) + Send + Sync + 'static) {
        let services = self.write();
        if self.0.observer.set(Box::new(observer)).is_ok() {
            services.keys().for_each(|name| self.0.changed(&services, name));
        }
    }

    /// Changes whenever something does.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    pub(super) fn lookup(&self, path: &str) -> Result<Lookup, Status> {
        let Some((service, method)) = path.split_once('/') else {
            return Err(Status::new(Code::InvalidArgument, "a method is named service/method"));
        };
        if is_own(path) {
            let own = self.0.own.read().expect("nothing panics while it is held");
            if let Some(entry) = &*own {
                return entry.lookup(service, method);
            }
        }
        let services = self.read();
        let unknown = || Status::new(Code::NotFound, format!("no service {service:?} here"));
        services.get(service).ok_or_else(unknown)?.lookup(service, method)
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<String, Entry>> {
        self.0.services.read().expect("nothing panics while it is held")
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<String, Entry>> {
        self.0.services.write().expect("nothing panics while it is held")
    }
}

impl Inner {
    /// Under the lock of the services, so that the observer is told in order.
    fn changed(&self, services: &BTreeMap<String, Entry>, name: &str) {
        if let Some(observer) = self.observer.get() {
            observer(name, services.get(name).map(|entry| entry.describe(|_| true)).as_ref());
        }
        self.changes.send_modify(|changes| *changes += 1);
    }
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("services", &self.services).finish_non_exhaustive()
    }
}

impl Entry {
    fn lookup(&self, service: &str, method: &str) -> Result<Lookup, Status> {
        let unimplemented = || Status::new(Code::Unimplemented, format!("service {service:?} has no method {method:?}"));
        let (path, method) = self.methods.get(method).ok_or_else(unimplemented)?;
        let (handler, rate) = (method.handler.clone(), method.rate.clone());
        Ok(Lookup { path: path.clone(), shape: method.shape, place: method.place, handler, rate })
    }

    fn describe(&self, allowed: impl Fn(&str) -> bool) -> ServiceDescription {
        let methods = self.methods.values().filter(|(path, _)| allowed(path)).map(|(_, method)| method);
        ServiceDescription::new(&self.service, methods)
    }

    fn new(mut service: Service) -> Result<Self, ServiceError> {
        check_name(&service.name)?;
        let mut methods = BTreeMap::new();
        for method in std::mem::take(&mut service.methods) {
            check_name(&method.name)?;
            let path: Arc<str> = format!("{}/{}", service.name, method.name).into();
            if methods.insert(method.name.clone(), (path, method.clone())).is_some() {
                return Err(ServiceError::Twice(method.name));
            }
        }
        Ok(Self { service, methods, registration: Arc::new(()) })
    }
}

impl Registration {
    /// Serves this service in place of the one registered, with no moment in between when neither is there. Calls that are
    /// being handled go on. The name stays what it was.
    ///
    /// # Errors
    /// [`ServiceError`]; then nothing has changed.
    pub fn replace(&self, service: Service) -> Result<(), ServiceError> {
        let entry = Entry::new(Service { name: self.name.clone(), ..service })?;
        let mut services = self.registry.write();
        if let Some(there) = services.get_mut(&self.name).filter(|there| Arc::ptr_eq(&there.registration, &self.is)) {
            *there = Entry { registration: self.is.clone(), ..entry };
            self.registry.0.changed(&services, &self.name);
        }
        Ok(())
    }

    /// Serves the service for as long as the node runs.
    pub fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut services = self.registry.write();
        if services.get(&self.name).is_some_and(|entry| Arc::ptr_eq(&entry.registration, &self.is)) {
            services.remove(&self.name);
            self.registry.0.changed(&services, &self.name);
        }
    }
}

/// Whether a method is of the node's own service.
pub(super) fn is_own(path: &str) -> bool {
    path.split_once('/').is_some_and(|(service, _)| service == super::describe::OWN_SERVICE)
}

/// Whether this may name a service or a method.
pub(super) fn check_name(name: &str) -> Result<(), ServiceError> {
    if is_name(name) { Ok(()) } else { Err(ServiceError::Name(name.to_owned())) }
}
