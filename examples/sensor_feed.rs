//! A sensor publishes what it measures on a wire. One listener hears it from the start; one joins late and begins with the oldest reading
//! that is kept; one goes away for a while, and goes on with exactly what it has missed.
//!
//! Run it: `cargo run --example sensor_feed`

use voltmesh::policy::{Action, Effect, Pattern, Rule, Source, Subject};
use voltmesh::wire::{Cursor, Delivery, From, Subscription};
use voltmesh::{Node, Session};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// A node with a session to the one that hosts the wire.
async fn connected(host: &Node) -> Outcome<(Node, Session)> {
    let node = Node::builder().listen("127.0.0.1:0".parse()?).bind().await?;
    let session = node.connect(host.ticket()).await?;
    Ok((node, session))
}

/// The next readings, and where to go on after them.
async fn hear(feed: &mut Subscription, count: usize) -> Outcome<(Vec<String>, Cursor)> {
    let mut readings = Vec::new();
    while readings.len() < count {
        match feed.next().await? {
            Delivery::Chunk { chunk, .. } => readings.push(String::from_utf8(chunk.body.to_vec())?),
            // Told, never silent: here nothing is lost, since the wire keeps 4,096 chunks.
            lost => return Err(format!("{lost:?}").into()),
        }
    }
    Ok((readings, feed.cursor()))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome {
    let permit =
        |action| Rule::new(Effect::Permit, Subject::Anyone, action, "sensors/*".parse::<Pattern>().unwrap(), Source::Config);
    let host = Node::builder().listen("127.0.0.1:0".parse()?);
    let host = host.rule(permit(Action::Publish)?).rule(permit(Action::Subscribe)?).bind().await?;
    host.wire("sensors/porch")?.create(Default::default()).await?;

    let (sensor, to_host) = connected(&host).await?;
    let publisher = to_host.wire("sensors/porch")?.publisher();
    let (first, from_host) = connected(&host).await?;
    let mut early = from_host.wire("sensors/porch")?.subscribe(From::Live).await?;
    let (traveller, session) = connected(&host).await?;
    let mut travelling = session.wire("sensors/porch")?.subscribe(From::Live).await?;

    for reading in 1..=3 {
        // Acknowledged: the host has it, under this number.
        let receipt = publisher.publish(format!("{reading} °C")).await?;
        assert_eq!(receipt.seq, Some(reading));
    }
    println!("early:      {:?}", hear(&mut early, 3).await?.0);
    let (readings, cursor) = hear(&mut travelling, 3).await?;
    println!("travelling: {readings:?}, then leaves at {cursor}");
    drop((travelling, session));
    traveller.shutdown().await;

    for reading in 4..=6 {
        publisher.publish(format!("{reading} °C")).await?;
    }
    let (late, from_host) = connected(&host).await?;
    let mut all = from_host.wire("sensors/porch")?.subscribe(From::Oldest).await?;
    println!("late:       {:?}", hear(&mut all, 6).await?.0);

    // Another process, another session: the cursor is all it needs.
    let (traveller, session) = connected(&host).await?;
    let mut travelling = session.wire("sensors/porch")?.subscribe(From::After(cursor)).await?;
    let (missed, _) = hear(&mut travelling, 3).await?;
    println!("travelling: {missed:?}, which is what it missed");
    assert_eq!(missed, ["4 °C", "5 °C", "6 °C"]);
    assert_eq!(hear(&mut early, 3).await?.0, missed);

    for node in [sensor, first, late, traveller, host] {
        node.shutdown().await;
    }
    Ok(())
}
