//! Two nodes provide the same service, registered at a third. Whoever calls it by name calls both in turn; one of them is taken away in
//! the middle of it, without a goodbye, and no call fails; when it is back it is called again.
//!
//! Run it: `cargo run --example failover`

use std::collections::BTreeMap;
use std::time::Duration;

use voltmesh::id::SecretKey;
use voltmesh::policy::{Action, Effect, Pattern, Rule, Source, Subject};
use voltmesh::service::{Providers, Registered};
use voltmesh::{Node, Service};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// A node that scales pictures, listed at the hub under the name that both use. The second value keeps it listed.
async fn provider(name: &'static str, key: SecretKey, hub: &Node) -> Outcome<(Node, Registered)> {
    let scale =
        Service::new("scaler").unary("scale", move |_cx, width: u32| async move { Ok(format!("{name} made {width} px")) });
    let node = Node::builder().name(name).key(key).listen("127.0.0.1:0".parse()?).open(true).bind().await?;
    let at_hub = node.connect(hub.ticket()).await?;
    let registered = at_hub.register(scale).await?;
    Ok((node, registered))
}

/// Calls so often, and tells who answered. Scaling a picture twice does no harm, and saying so lets a call that was cut off be made
/// again elsewhere.
async fn call(scaler: &Providers, times: u32) -> Outcome<BTreeMap<String, u32>> {
    let mut answered = BTreeMap::new();
    for width in 1..=times {
        let answer: String = scaler.request("scale").idempotent().unary(&width).await?;
        let who = answer.split(' ').next().unwrap_or_default().to_owned();
        *answered.entry(who).or_default() += 1;
    }
    Ok(answered)
}

/// Waits until so many providers can be called.
async fn until_there_are(scaler: &Providers, count: usize) -> Outcome {
    let there = async {
        while scaler.reachable().len() != count {
            tokio::task::yield_now().await;
        }
    };
    Ok(tokio::time::timeout(Duration::from_secs(20), there).await?)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome {
    // The hub only keeps the list: who may register there and who may look is for it to say.
    let permit = |action| Rule::new(Effect::Permit, Subject::Anyone, action, Pattern::everything(), Source::Config);
    let hub = Node::builder().listen("127.0.0.1:0".parse()?).rule(permit(Action::Register)?).rule(permit(Action::Discover)?);
    let hub = hub.bind().await?;

    let (ann_key, bob_key) = (SecretKey::generate(), SecretKey::generate());
    let (ann, _ann_is_listed) = provider("ann", ann_key, &hub).await?;
    let (bob, bob_is_listed) = provider("bob", bob_key.clone(), &hub).await?;

    let caller = Node::builder().listen("127.0.0.1:0".parse()?).bind().await?;
    let at_hub = caller.connect(hub.ticket()).await?;
    let scaler = caller.providers("scaler", &at_hub)?;
    until_there_are(&scaler, 2).await?;
    let answered = call(&scaler, 100).await?;
    println!("both are there: {answered:?}");
    assert_eq!(answered, BTreeMap::from([("ann".into(), 50), ("bob".into(), 50)]));

    // Bob is gone between one call and the next, as if his machine had lost power.
    drop((bob_is_listed, bob));
    let answered = call(&scaler, 100).await?;
    println!("bob is gone, and no call failed: {answered:?}");
    assert_eq!(answered.values().sum::<u32>(), 100);

    let (bob, _bob_is_listed) = provider("bob", bob_key, &hub).await?;
    until_there_are(&scaler, 2).await?;
    let answered = call(&scaler, 100).await?;
    println!("bob is back: {answered:?}");
    assert!(answered["bob"] >= 49, "{answered:?}");

    for node in [caller, ann, bob, hub] {
        node.shutdown().await;
    }
    Ok(())
}
