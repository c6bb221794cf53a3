//! How a node ends: completely, whatever it keeps.

use voltmesh::Node;
use voltmesh::node::config::RelayMode;

#[tokio::test]
async fn a_node_with_a_home_shuts_down_and_its_events_end() {
    let home = tempfile::tempdir().unwrap();
    let node = Node::builder().home(home.path().join("node")).listen("127.0.0.1:0".parse().unwrap()).bind().await.unwrap();
    let mut events = node.events();
    node.shutdown().await;
    assert_eq!(events.next().await, None);
    // Asked for afterwards, they have ended too.
    assert_eq!(node.events().next().await, None);
}

/// Rooms that know each other must not keep each other: the socket goes with the last handle, whatever the node had.
#[tokio::test]
async fn regression_a_node_that_is_dropped_gives_its_port_back_whatever_it_had() {
    let any = "127.0.0.1:0".parse().unwrap();
    let relay = Node::builder().listen(any).open(true).relay(RelayMode::Open).bind().await.unwrap();
    let there = Node::builder().listen(any).open(true).home_relay(relay.ticket()).bind().await.unwrap();
    soon(there.session(relay.id()).unwrap().connected(SOON)).await.unwrap();
    let here = Node::builder().listen(any).bind().await.unwrap();
    let port = here.listening()[0];
    let session = soon(here.connect_via(&[relay.ticket()], there.id(), SOON)).await.unwrap();
    assert!(session.path().is_some_and(|path| path.is_relayed()));
    drop((session, here));
    let again = soon(async {
        loop {
            match Node::builder().listen(port).bind().await {
                Ok(node) => return node,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    });
    again.await.shutdown().await;
}

const SOON: std::time::Duration = std::time::Duration::from_secs(20);

async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(SOON, future).await.expect("this happens in time")
}
