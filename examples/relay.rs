//! Two nodes that do not know where the other is call each other through a relay, which carries what it cannot read.

use voltmesh::node::config::RelayMode;
use voltmesh::{Node, Service};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let any = "127.0.0.1:0".parse()?;
    // A relay for anyone. `RelayMode::Closed` would carry between nodes that its owner knows.
    let relay = Node::builder().listen(any).relay(RelayMode::Open).bind().await?;

    // A node that is attached to it: its ticket names the relay, and would do without addresses.
    let greeter = Service::new("greeter").unary("hello", |_cx, name: String| async move { Ok(format!("hello {name}")) });
    let there = Node::builder().listen(any).open(true).service(greeter).home_relay(relay.ticket()).bind().await?;
    there.session(relay.id()).expect("it is wanted from the start").connected(std::time::Duration::from_secs(10)).await?;

    // Here only the relay is known, and whose key is to answer; this way and no other.
    let here = Node::builder().listen(any).bind().await?;
    let session = here.connect_via(&[relay.ticket()], there.id(), std::time::Duration::from_secs(10)).await?;
    let greeting: String = session.call("greeter/hello", "from afar").await?;
    println!("{greeting}, {}", session.path().map(|path| path.to_string()).unwrap_or_default());
    println!("the relay carried {} circuit, {} bytes", relay.relay_counts().circuits, relay.relay_counts().bytes);

    here.shutdown().await;
    there.shutdown().await;
    relay.shutdown().await;
    Ok(())
}
