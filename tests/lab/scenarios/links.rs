//! The emulator itself, with real packets.

use std::time::Duration;

use crate::link::{Conditions, Loss};
use crate::net::Net;
use crate::probe::{echo, probe};
use crate::stage::linked;

const MS: Duration = Duration::from_millis(1);
const DATAGRAMS: u32 = 1_000;
/// The kernel sends a few packets of its own, which are counted too.
const OF_THE_KERNEL: u64 = 5;

pub fn an_emulated_link_delays_loses_doubles_and_reorders_real_packets() {
    let mut net = Net::new();
    let (one, other, link) = linked(&mut net);
    let _echo = echo(&other, "10.7.0.2:7");
    let all = u64::from(DATAGRAMS);

    let heard = probe(&one, "10.7.0.2:7", DATAGRAMS);
    println!("untouched: {heard:?}");
    assert_eq!((heard.answers, heard.answered, heard.late), (all, all, 0));

    link.forward(Conditions { delay: MS * 30, ..Conditions::NONE });
    link.back(Conditions { delay: MS * 10, ..Conditions::NONE });
    let heard = probe(&one, "10.7.0.2:7", DATAGRAMS);
    println!("30 ms there, 10 ms back: {heard:?}");
    assert!(heard.least >= MS * 40 && heard.median < MS * 50);

    link.back(Conditions::NONE);
    let before = link.counts()[0];
    link.forward(Conditions { loss: Loss::in_bursts(0.2, 3.0), duplicated: 0.1, ..Conditions::NONE });
    let heard = probe(&one, "10.7.0.2:7", DATAGRAMS);
    let lost = link.counts()[0].lost - before.lost;
    let twice = link.counts()[0].duplicated - before.duplicated;
    println!("20 % lost, 10 % twice: {heard:?}, {lost} lost");
    // Bursts vary a lot in a thousand packets; that each is counted does not.
    assert!((100..300).contains(&lost) && (50..120).contains(&twice));
    assert!((heard.answered + lost).abs_diff(all) <= OF_THE_KERNEL);
    assert!((heard.answered + twice).abs_diff(heard.answers) <= OF_THE_KERNEL);

    link.forward(Conditions { reordered: 0.1, held_back: MS * 20, ..Conditions::NONE });
    let heard = probe(&one, "10.7.0.2:7", DATAGRAMS);
    println!("10 % held back: {heard:?}");
    assert!((60..160).contains(&heard.late));

    // 128 bytes a packet with its headers, one a millisecond: half of them.
    link.forward(Conditions { rate: Some(64_000), queue_bytes: 2_000, ..Conditions::NONE });
    let heard = probe(&one, "10.7.0.2:7", DATAGRAMS);
    println!("half the rate: {heard:?}");
    assert!((450..600).contains(&heard.answered));
}

pub fn a_black_hole_is_of_one_direction() {
    let mut net = Net::new();
    let (one, other, link) = linked(&mut net);
    let _echo = echo(&other, "10.7.0.2:7");
    let hole = Conditions { black_hole: true, ..Conditions::NONE };
    for (there, back) in [(hole, Conditions::NONE), (Conditions::NONE, hole)] {
        let before = link.counts();
        link.forward(there);
        link.back(back);
        assert_eq!(probe(&one, "10.7.0.2:7", 100).answers, 0);
        let arrived = link.counts()[1].seen - before[1].seen;
        let expected = if back.black_hole { 100 } else { 0 };
        assert!(arrived.abs_diff(expected) <= OF_THE_KERNEL, "{arrived} packets came back as far as the link");
    }
    link.both(Conditions::NONE);
    assert_eq!(probe(&one, "10.7.0.2:7", 100).answers, 100);
}
