//! Two nodes, one function, one call: the shortest whole program. Here both nodes live in one process; on two machines the
//! ticket is all that has to get from one to the other.
//!
//! Run it: `cargo run --example hello`

use voltmesh::{Node, Service};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // A node that offers a function. `open` lets anyone call it: fine for a greeting, see `policy.rs` for anything else.
    let greeter = Service::new("greeter").unary("hello", |_cx, name: String| async move { Ok(format!("hello {name}")) });
    let here = Node::builder().listen("127.0.0.1:0".parse()?).open(true).service(greeter).bind().await?;

    // Another one that calls it. A ticket says who a node is and where; the session proves that it is the one.
    let there = Node::builder().listen("127.0.0.1:0".parse()?).bind().await?;
    let session = there.connect(here.ticket()).await?;
    let greeting: String = session.call("greeter/hello", "world").await?;
    println!("{greeting}");
    assert_eq!(greeting, "hello world");

    // Calls in flight end first, then both say goodbye.
    there.shutdown().await;
    here.shutdown().await;
    Ok(())
}
