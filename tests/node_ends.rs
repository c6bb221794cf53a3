//! How a node ends: completely, whatever it keeps.

use voltmesh::Node;

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
