//! Nobody may do anything unasked. A node refuses strangers without saying why, tells its owner which rule decided, and a rule
//! that is added or taken back while it runs counts from that moment on.
//!
//! Run it: `cargo run --example policy`

use voltmesh::node::ConnectError;
use voltmesh::policy::{Action, Effect, Rule, Source, Subject};
use voltmesh::proto::status::Code;
use voltmesh::{CallError, Event, Node, Service};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let vault = Service::new("vault")
        .unary("read", |cx, ()| async move { Ok(format!("a secret, for {}", cx.peer().short())) })
        .unary("write", |_cx, _text: String| async move { Ok(()) });
    let host = Node::builder().listen("127.0.0.1:0".parse()?).service(vault).bind().await?;
    let guest = Node::builder().listen("127.0.0.1:0".parse()?).bind().await?;

    // A stranger is refused, and learns nothing more. The owner can ask why.
    let refused = guest.connect(host.ticket()).await;
    assert_eq!(refused.err(), Some(ConnectError::Refused));
    println!("{}", host.policy().current().explain(&guest.id(), Action::Connect, ""));

    // One rule lets this one identity call this one function. To be allowed anything is to be allowed to connect.
    let rule = Rule::new(Effect::Permit, Subject::Node(guest.id()), Action::Call, "vault/read".parse()?, Source::Store)?;
    host.add_rule(rule.clone()).await?;
    println!("{}", host.policy().current().explain(&guest.id(), Action::Call, "vault/read"));
    let session = guest.connect(host.ticket()).await?;
    let secret: String = session.call("vault/read", &()).await?;
    println!("{secret}");

    // Everything else stays as it was. What the guest may not call it does not even see.
    let denied: Result<(), CallError> = session.call("vault/write", "mine").await;
    assert_eq!(denied.map_err(|error| error.code()), Err(Code::PermissionDenied));
    let [seen] = &session.services().await?[..] else { return Err("one service is to be seen".into()) };
    assert_eq!(seen.methods.iter().map(|method| method.name.as_str()).collect::<Vec<_>>(), ["read"]);

    // Taken back, it counts at once as well: the session is closed.
    let mut events = guest.events();
    host.remove_rule(rule.id()).await?;
    let event = events.next().await;
    assert!(matches!(event, Some(Event::Disconnected { .. })), "{event:?}");
    println!("{}", host.policy().current().explain(&guest.id(), Action::Connect, ""));

    guest.shutdown().await;
    host.shutdown().await;
    Ok(())
}
