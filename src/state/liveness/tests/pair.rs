//! Both ends of one path: two machines that ping, answer and send to each other, over a path that may swallow one direction from
//! some moment on. Whichever way that is, both must find out.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// Long enough for the rarest ping to be missed.
const END: Duration = Duration::from_secs(300);

#[derive(Clone, Debug)]
struct World {
    profiles: [Profile; 2],
    /// One way, by the end it leads to.
    ways: [Duration; 2],
    /// What each end sends, and when.
    sends: [Vec<Duration>; 2],
    /// From then on nothing arrives at these ends.
    hole: Option<(Duration, [bool; 2])>,
}

#[derive(Clone, Copy, Debug)]
enum Packet {
    Data,
    Ack,
    Ping(u64),
    Pong(u64),
}

struct End {
    liveness: Liveness,
    pulse: Pulse,
    timer: Duration,
    /// Since when it has been suspect without a break.
    suspect_since: Option<Duration>,
    died: Option<Duration>,
    answered: Duration,
    suspicions: u32,
}

struct Path<'a> {
    world: &'a World,
    start: Instant,
    ends: [End; 2],
    under_way: BTreeMap<(Duration, u64), (usize, Packet)>,
    count: u64,
}

impl<'a> Path<'a> {
    fn new(world: &'a World) -> Self {
        let start = Instant::now();
        let end = |at: usize| End {
            liveness: Liveness::new(world.profiles[at], world.profiles[1 - at], start),
            pulse: Pulse::default(),
            timer: Duration::ZERO,
            suspect_since: None,
            died: None,
            answered: Duration::ZERO,
            suspicions: 0,
        };
        Self { world, start, ends: [end(0), end(1)], under_way: BTreeMap::new(), count: 0 }
    }

    fn send(&mut self, now: Duration, from: usize, packet: Packet) {
        let to = 1 - from;
        let at = now + self.world.ways[to];
        if !self.world.hole.is_some_and(|(since, swallowed)| swallowed[to] && at >= since) {
            self.count += 1;
            self.under_way.insert((at, self.count), (to, packet));
        }
    }

    fn tick(&mut self, now: Duration, at: usize) {
        let end = &mut self.ends[at];
        let step = end.liveness.tick(self.start + now, &end.pulse);
        if step.dead.is_some() {
            end.died = Some(now);
            return;
        }
        end.suspicions += u32::from(step.suspect && end.suspect_since.is_none());
        end.suspect_since = step.suspect.then(|| end.suspect_since.unwrap_or(now));
        end.timer = step.wake.expect("it is alive") - self.start;
        assert!(end.timer > now);
        if let Some(seq) = step.ping {
            self.send(now, at, Packet::Ping(seq));
        }
    }

    fn arrived(&mut self, now: Duration, at: usize, packet: Packet) {
        let end = &mut self.ends[at];
        if end.died.is_some() {
            return;
        }
        match packet {
            Packet::Data => self.send(now, at, Packet::Ack),
            Packet::Ack => {
                end.answered = now;
                end.pulse.acked(1);
            }
            Packet::Pong(seq) => {
                end.answered = now;
                end.liveness.pong(seq, self.start + now);
            }
            Packet::Ping(seq) => {
                let own = end.liveness.pinged(self.start + now).then(|| end.liveness.ping(self.start + now));
                self.send(now, at, Packet::Pong(seq));
                if let Some(own) = own {
                    self.ends[at].timer = self.ends[at].liveness.wake() - self.start;
                    self.send(now, at, Packet::Ping(own));
                }
            }
        }
    }

    fn run(mut self) -> [End; 2] {
        let mut sends: BTreeMap<(Duration, u64), usize> = BTreeMap::new();
        for (at, times) in self.world.sends.iter().enumerate() {
            sends.extend(times.iter().zip(0..).map(|(time, n)| ((*time, 2 * n + at as u64), at)));
        }
        loop {
            let timers = self.ends.iter().enumerate().filter(|(_, end)| end.died.is_none());
            let Some((timer, at)) = timers.map(|(at, end)| (end.timer, at)).min() else { return self.ends };
            let packet = self.under_way.first_key_value().map(|((time, _), _)| *time);
            let send = sends.first_key_value().map(|((time, _), _)| *time);
            let now = [Some(timer), packet, send].into_iter().flatten().min().expect("a timer runs");
            if now >= END {
                return self.ends;
            } else if packet == Some(now) {
                let (_, (at, packet)) = self.under_way.pop_first().expect("it is due");
                self.arrived(now, at, packet);
            } else if send == Some(now) {
                let (_, at) = sends.pop_first().expect("it is due");
                if self.ends[at].died.is_none() {
                    self.send(now, at, Packet::Data);
                    if self.ends[at].pulse.sent(1) {
                        self.ends[at].timer = now;
                    }
                }
            } else {
                self.tick(now, at);
            }
        }
    }
}

impl World {
    /// The longest an end may go on believing in the path.
    fn bound(&self) -> Duration {
        let battery = self.profiles.contains(&Profile::Battery);
        let (idle, grace) = if battery { (30 * S, 10 * S) } else { (5 * S, limits::ANSWER_BOUND) };
        // Whoever follows the other's pings waits a tick for them.
        idle + grace + 2 * TICK
    }
}

fn worlds(hole: impl Strategy<Value = Option<(Duration, [bool; 2])>>) -> impl Strategy<Value = World> {
    let profile = || prop_oneof![2 => Just(Profile::Active), 1 => Just(Profile::Battery)];
    let way = || (1u64..450).prop_map(Duration::from_millis);
    let sends = || {
        let burst = (0u64..200_000, 1usize..20, 1u64..3_000);
        prop::collection::vec(burst, 0..10).prop_map(|bursts| {
            let burst = |(at, count, gap)| (0..count as u64).map(move |n| Duration::from_millis(at + n * gap));
            bursts.into_iter().flat_map(burst).collect::<Vec<_>>()
        })
    };
    ([profile(), profile()], [way(), way()], [sends(), sends()], hole).prop_map(|(profiles, ways, sends, hole)| World {
        profiles,
        ways,
        sends,
        hole,
    })
}

fn holes() -> impl Strategy<Value = Option<(Duration, [bool; 2])>> {
    let swallowed = prop_oneof![Just([true, false]), Just([false, true]), Just([true, true])];
    ((100u64..200_000).prop_map(Duration::from_millis), swallowed).prop_map(Some)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn a_black_hole_in_either_direction_is_seen_by_both_ends_which_suspect_it_first(world in worlds(holes())) {
        let (since, _) = world.hole.expect("there is one");
        for end in Path::new(&world).run() {
            let died = end.died.expect("it was seen");
            // What was under way towards the hole when it opened is lost as well.
            let lost = since.saturating_sub(world.ways[0] + world.ways[1]);
            prop_assert!(died >= lost + limits::ANSWER_BOUND - SUSPECT_AFTER, "too early: {died:?}");
            prop_assert!(died >= end.answered + limits::ANSWER_BOUND, "{:?} after an answer", died - end.answered);
            prop_assert!(died <= end.answered.max(lost) + world.bound(), "{:?} after the last answer", died - end.answered);
            let suspect_since = end.suspect_since.expect("first it is suspect");
            let ahead = SUSPECT_AFTER.min(2 * (S - world.ways[0] - world.ways[1]));
            prop_assert!(died - suspect_since >= ahead, "{:?} before", died - suspect_since);
        }
    }

    #[test]
    fn while_answers_arrive_in_time_no_end_suspects_anything(world in worlds(Just(None))) {
        for end in Path::new(&world).run() {
            prop_assert_eq!((end.died, end.suspicions), (None, 0));
        }
    }
}
