//! What the lab shows, by what happens to the network or to a node.

mod canaries;
mod crash;
mod links;
mod lossy;
mod nat;
mod outage;
mod relayed;
mod spoofed;
mod strangers;
mod tunnelled;
mod uplink;

/// A name, whether it runs alone, and the scenario: it panics if it goes wrong.
pub type Scenario = (&'static str, bool, fn());

/// All of them.
pub fn all() -> Vec<Scenario> {
    macro_rules! scenarios {
        ($($module:ident::$name:ident),* $(,)?) => { vec![$((stringify!($name), false, $module::$name as fn())),*] };
    }
    let mut all = scenarios![
        links::an_emulated_link_delays_loses_doubles_and_reorders_real_packets,
        links::a_black_hole_is_of_one_direction,
        outage::a_call_through_the_node_outlives_eight_seconds_without_a_packet,
        outage::a_visitors_call_outlives_eight_seconds_without_a_packet,
        outage::what_only_we_send_gets_lost_and_both_notice,
        outage::what_only_they_send_gets_lost_and_both_notice,
        uplink::no_call_fails_when_the_diallers_uplink_moves,
        uplink::no_call_fails_when_the_accepters_uplink_moves,
        nat::nobody_notices_that_a_router_forgets_its_mapping,
        nat::nobody_notices_that_a_router_forgets_its_mapping_and_takes_another_port,
        crash::a_killed_and_restarted_peer_is_noticed_at_once,
        crash::a_killed_and_restarted_peer_is_noticed_though_nobody_calls,
        crash::an_accepter_that_was_frozen_is_back_at_once,
        crash::a_dialler_that_was_frozen_is_back_at_once,
        relayed::two_nodes_behind_routers_call_each_other_through_a_relay,
        relayed::no_call_fails_when_a_relay_is_killed_and_another_is_known,
        relayed::a_call_outlives_twenty_seconds_without_its_only_relay,
        tunnelled::a_session_and_a_download_outlive_a_restart_of_their_relay,
        tunnelled::a_session_and_a_download_outlive_an_outage_of_their_relay,
        strangers::five_hundred_identities_of_one_address_keep_nobody_else_out,
        strangers::a_burst_of_dials_from_one_address_slows_that_address_only,
        canaries::a_relay_sees_nothing_of_what_it_carries,
    ];
    all.push((
        "relayed_and_direct_throughput_with_loss_on_each_leg",
        true,
        relayed::relayed_and_direct_throughput_with_loss_on_each_leg,
    ));
    all.push((
        "honest_dials_get_through_twenty_thousand_spoofed_ones_a_second",
        true,
        spoofed::honest_dials_get_through_twenty_thousand_spoofed_ones_a_second,
    ));
    all.push(("calls_and_bytes_per_second_by_loss", true, lossy::calls_and_bytes_per_second_by_loss));
    all
}
