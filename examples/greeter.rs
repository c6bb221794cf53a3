//! Two nodes in one program: one offers a function, the other calls it. `cargo run --example greeter`

use voltmesh::policy::{Action, Effect, Rule, Source, Subject};
use voltmesh::{Node, Service};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // One side offers a function, and says who may call it: here everyone.
    let greeter = Service::new("greeter").unary("hello", |_cx, name: String| async move { Ok(format!("hello {name}")) });
    let greet = Rule::new(Effect::Permit, Subject::Anyone, Action::Call, "greeter/*".parse()?, Source::Config)?;
    let here = Node::builder().service(greeter).rule(greet).bind().await?;
    println!("the ticket: {}", here.ticket());

    // The other side needs its ticket, one line of text, and calls.
    let there = Node::builder().bind().await?;
    let session = there.connect(here.ticket()).await?;
    let greeting: String = session.call("greeter/hello", "world").await?;
    println!("{greeting}");

    there.shutdown().await;
    here.shutdown().await;
    Ok(())
}
