//! How often each caller may call: a bucket for each identity and rate, which never lets more through than its burst and what has been
//! added since. It says when to try again, and keeps nobody waiting.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::state::keyed::ShrinkableKeyedStateStore;
use governor::{Quota, RateLimiter};

use crate::id::NodeId;
use crate::policy::{Pattern, PolicyHandle, Subject};
use crate::proto::limits::RATED_IDENTITIES;
use crate::proto::status::{Code, Status};

/// Largest rate, and largest burst.
pub const RATE_MAX: u32 = 1_000_000;

/// Buckets that are full again are forgotten at most this often: a flood must not make us search them for every call.
const SWEEP: Duration = Duration::from_secs(1);

/// So many calls per second of each caller, and so many at once after a time of quiet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Calls per second, 1 to [`RATE_MAX`].
    pub per_second: u32,
    /// Calls at once, 1 to [`RATE_MAX`].
    pub burst: u32,
}

impl Rate {
    /// So many calls per second, and as many at once.
    ///
    /// ```
    /// use voltmesh::Service;
    /// use voltmesh::service::Rate;
    ///
    /// let camera = Service::new("camera")
    ///     .unary("snap", |_cx, ()| async move { Ok("click") })
    ///     .rate(Rate::per_second(10).burst(20));
    /// # drop(camera);
    /// ```
    pub fn per_second(per_second: u32) -> Self {
        Self { per_second, burst: per_second }
    }

    /// So many at once.
    pub fn burst(self, burst: u32) -> Self {
        Self { burst, ..self }
    }

    /// What is wrong with it, if anything.
    pub fn check(&self) -> Result<(), String> {
        for (name, value) in [("per_second", self.per_second), ("burst", self.burst)] {
            if !(1..=RATE_MAX).contains(&value) {
                return Err(format!("{name} of a rate is {value}, and may be 1 to {RATE_MAX}"));
            }
        }
        Ok(())
    }
}

/// A rate of the configuration: whose calls of which methods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateRule {
    /// Which methods, all of them together in one bucket.
    pub method: Pattern,
    /// Whose calls. Each identity has a bucket of its own, also of a group and of everyone.
    pub who: Subject,
    /// How often.
    pub rate: Rate,
}

/// The rates of the configuration.
#[derive(Debug, Default)]
pub(crate) struct Rates(Vec<Entry>);

#[derive(Debug)]
struct Entry {
    method: Pattern,
    who: Subject,
    limiter: Limiter,
}

impl Rates {
    /// All buckets are full.
    pub fn new(rules: &[RateRule]) -> Self {
        let entry = |rule: &RateRule| Entry {
            method: rule.method.clone(),
            who: rule.who.clone(),
            limiter: Limiter::new(rule.rate, TokioClock),
        };
        Self(rules.iter().map(entry).collect())
    }

    /// Whether there are none: then nothing has to be asked.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one more call may go on, by all rates that it is subject to; else how long to wait. A rate that comes before one that
    /// says no has counted the call. Who is in a group is what the policy in force says.
    pub fn check(&self, caller: &NodeId, method: &str, policy: &PolicyHandle) -> Result<(), Duration> {
        let is_about = |who: &Subject| match who {
            Subject::Node(id) => id == caller,
            Subject::Group(group) => policy.current().is_member(caller, group),
            Subject::Anyone => true,
        };
        let subject = |entry: &&Entry| entry.method.matches(method) && is_about(&entry.who);
        self.0.iter().filter(subject).try_for_each(|entry| entry.limiter.check(caller))
    }
}

/// What a caller is told: when to try again.
pub(super) fn refusal(wait: Duration) -> Status {
    // Rounded up: who comes back then is not too early by a fraction.
    let ms = wait.as_micros().div_ceil(1_000).max(1);
    Status::new(Code::ResourceExhausted, format!("more calls than may be made of this: try again in {ms} ms"))
}

/// One rate: a bucket for each identity.
#[derive(Debug)]
pub(super) struct Limiter<C: Clock<Instant = Instant> = TokioClock> {
    limiter: RateLimiter<NodeId, Buckets, C, NoOpMiddleware<Instant>>,
    buckets: Buckets,
    clock: C,
    began: Instant,
    /// When buckets were last looked through, in nanoseconds since it began.
    swept: AtomicU64,
}

impl<C: Clock<Instant = Instant> + Clone> Limiter<C> {
    /// A rate that is out of bounds is the nearest one within.
    pub fn new(rate: Rate, clock: C) -> Self {
        let within = |n: u32| NonZeroU32::new(n.clamp(1, RATE_MAX)).expect("it is at least 1");
        let quota = Quota::per_second(within(rate.per_second)).allow_burst(within(rate.burst));
        let (buckets, began) = (Buckets::default(), clock.now());
        let limiter = RateLimiter::new(quota, buckets.clone(), clock.clone());
        Self { limiter, buckets, clock, began, swept: AtomicU64::new(0) }
    }

    /// Takes one call out of this identity's bucket; else says how long to wait.
    pub fn check(&self, identity: &NodeId) -> Result<(), Duration> {
        self.sweep();
        self.limiter.check_key(identity).map_err(|until| until.wait_time_from(self.clock.now()))
    }

    /// When there were no buckets left for somebody, forgets those that are full again.
    fn sweep(&self) {
        if !self.buckets.0.short.load(Relaxed) {
            return;
        }
        let now = self.clock.now().saturating_duration_since(self.began).as_nanos() as u64;
        let swept = self.swept.load(Relaxed);
        let due = swept == 0 || now.saturating_sub(swept) >= SWEEP.as_nanos() as u64;
        if due && self.swept.compare_exchange(swept, now.max(1), Relaxed, Relaxed).is_ok() {
            self.limiter.retain_recent();
        }
    }
}

/// The time of the node's timers, which a simulation can set.
#[derive(Clone, Copy, Debug)]
pub(super) struct TokioClock;

impl Clock for TokioClock {
    type Instant = Instant;

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }
}

/// The buckets of one rate, at most [`RATED_IDENTITIES`]. Identities beyond those share one, so that whoever makes up ever new ones has no more.
#[derive(Clone, Debug, Default)]
struct Buckets(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    known: Mutex<Known>,
    /// Somebody found no bucket of his own.
    short: AtomicBool,
}

#[derive(Debug, Default)]
struct Known {
    of: HashMap<NodeId, Nanos>,
    shared: Option<Nanos>,
}

impl Buckets {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().expect("nothing panics while it is held")
    }
}

impl StateStore for Buckets {
    type Key = NodeId;

    fn measure_and_replace<T, F, E>(&self, identity: &NodeId, measure: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut known = self.known();
        if let Some(state) = known.of.get_mut(identity) {
            let (allowed, next) = measure(Some(*state))?;
            *state = next;
            return Ok(allowed);
        }
        // A bucket of one's own begins as full as the one that it may have shared until now: to change it gives nobody more.
        let full = known.of.len() >= RATED_IDENTITIES;
        self.0.short.fetch_or(full, Relaxed);
        let (allowed, next) = measure(known.shared)?;
        if full {
            known.shared = Some(next);
        } else {
            known.of.insert(*identity, next);
        }
        Ok(allowed)
    }
}

impl ShrinkableKeyedStateStore<NodeId> for Buckets {
    fn retain_recent(&self, drop_below: Nanos) {
        self.known().of.retain(|_, state| *state > drop_below);
        self.0.short.store(false, Relaxed);
    }

    fn len(&self) -> usize {
        self.known().of.len()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use proptest::prelude::*;

    use super::*;
    use crate::policy::{Policy, PolicyInput};

    #[derive(Clone, Debug)]
    struct Set(Rc<Cell<Instant>>);

    impl Set {
        fn new() -> Self {
            Self(Rc::new(Cell::new(Instant::now())))
        }

        fn pass(&self, time: Duration) {
            self.0.set(self.0.get() + time);
        }
    }

    impl Clock for Set {
        type Instant = Instant;

        fn now(&self) -> Instant {
            self.0.get()
        }
    }

    fn id(n: u32) -> NodeId {
        let mut id = [7; 32];
        id[..4].copy_from_slice(&n.to_le_bytes());
        NodeId::from_bytes(id)
    }

    fn rule(method: &str, who: Subject, rate: Rate) -> RateRule {
        RateRule { method: method.parse().unwrap(), who, rate }
    }

    proptest! {
        #[test]
        fn in_no_window_do_more_pass_than_the_burst_and_what_was_added(
            pauses_us in prop::collection::vec(0u64..50_000, 1..300),
            per_second in 1u32..2_000,
            burst in 1u32..50,
        ) {
            let clock = Set::new();
            let limiter = Limiter::new(Rate::per_second(per_second).burst(burst), clock.clone());
            let mut passed = Vec::new();
            for pause in pauses_us {
                clock.pass(Duration::from_micros(pause));
                if limiter.check(&id(1)).is_ok() {
                    passed.push(clock.now());
                }
            }
            for (first, from) in passed.iter().enumerate() {
                for (count, to) in passed[first..].iter().enumerate() {
                    let may = f64::from(burst) + f64::from(per_second) * (*to - *from).as_secs_f64() + 1e-3;
                    prop_assert!((count + 1) as f64 <= may, "{} of {may}", count + 1);
                }
            }
        }

        #[test]
        fn whoever_waits_as_long_as_told_passes(per_second in 1u32..2_000, burst in 1u32..50) {
            let clock = Set::new();
            let limiter = Limiter::new(Rate::per_second(per_second).burst(burst), clock.clone());
            for _ in 0..3 * burst {
                if let Err(wait) = limiter.check(&id(1)) {
                    clock.pass(wait);
                    prop_assert!(limiter.check(&id(1)).is_ok());
                }
            }
        }
    }

    #[test]
    fn each_identity_has_a_bucket_of_its_own_as_long_as_there_are_some() {
        let clock = Set::new();
        let limiter = Limiter::new(Rate::per_second(1), clock.clone());
        let bound = RATED_IDENTITIES as u32;
        assert!((0..bound).all(|n| limiter.check(&id(n)).is_ok()));
        assert!((0..bound).all(|n| limiter.check(&id(n)).is_err()));
        // Those beyond share one.
        let passed = (bound..3 * bound).filter(|n| limiter.check(&id(*n)).is_ok()).count();
        assert_eq!(passed, 1);
        assert_eq!(limiter.limiter.len(), RATED_IDENTITIES);
        // Buckets that are full again make room for others.
        clock.pass(Duration::from_secs(5));
        assert!((bound..2 * bound).all(|n| limiter.check(&id(n)).is_ok()));
        assert_eq!(limiter.limiter.len(), RATED_IDENTITIES);
    }

    #[test]
    fn a_shared_bucket_is_not_left_for_a_fuller_one() {
        let clock = Set::new();
        let limiter = Limiter::new(Rate::per_second(1).burst(2), clock.clone());
        let bound = RATED_IDENTITIES as u32;
        assert!((0..bound).all(|n| limiter.check(&id(n)).is_ok()));
        clock.pass(Duration::from_millis(900));
        // With the last of the shared bucket.
        assert!(limiter.check(&id(bound)).is_ok() && limiter.check(&id(bound)).is_ok());
        assert!(limiter.check(&id(bound)).is_err());
        clock.pass(Duration::from_millis(200));
        limiter.limiter.retain_recent();
        let passed = (0..5).filter(|_| limiter.check(&id(bound)).is_ok()).count();
        assert_eq!(passed, 0, "a fifth of a second has gone by");
    }

    #[tokio::test]
    async fn a_rate_is_about_its_methods_and_its_callers_and_all_that_fit_must_allow() {
        let friends = |who: u32| {
            let groups = [("friends".parse().unwrap(), [id(who), id(2)].into())].into();
            Policy::new(PolicyInput { groups, ..PolicyInput::default() }).unwrap()
        };
        let policy = PolicyHandle::new(friends(1));
        let rates = Rates::new(&[
            rule("camera/*", Subject::Anyone, Rate::per_second(1).burst(3)),
            rule("camera/snap", Subject::Group("friends".parse().unwrap()), Rate::per_second(1)),
            rule("*", Subject::Node(id(9)), Rate::per_second(1)),
        ]);
        let passed = |caller, method| (0..10).filter(|_| rates.check(&id(caller), method, &policy).is_ok()).count();
        assert_eq!(passed(1, "camera/snap"), 1);
        assert_eq!(passed(3, "camera/snap"), 3);
        assert_eq!(passed(4, "camera/zoom"), 3);
        assert_eq!(passed(4, "door/open"), 10);
        assert_eq!(passed(9, "door/open"), 1);
        // Who is in a group is asked each time.
        policy.replace(friends(5));
        assert_eq!(passed(5, "camera/snap"), 1);
        assert!(Rates::default().is_empty());
    }

    #[test]
    fn a_rate_out_of_bounds_is_named() {
        assert_eq!(Rate::per_second(10).check(), Ok(()));
        assert_eq!(Rate::per_second(0).check().unwrap_err(), "per_second of a rate is 0, and may be 1 to 1000000");
        assert!(Rate::per_second(1).burst(0).check().unwrap_err().starts_with("burst of a rate is 0"));
    }

    #[test]
    fn a_refusal_says_when_to_try_again() {
        let status = refusal(Duration::from_micros(119_500));
        assert_eq!(status.code, Code::ResourceExhausted);
        assert_eq!(status.message, "more calls than may be made of this: try again in 120 ms");
        assert!(refusal(Duration::ZERO).message.ends_with("1 ms"));
    }
}
