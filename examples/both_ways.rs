//! Either end of a session calls the other, in all four shapes. It does not matter who dialled whom: a phone behind a NAT that
//! dials out can serve calls like everybody else.
//!
//! Run it: `cargo run --example both_ways`

use voltmesh::{Node, Receiver, Sender, Service, Session};

/// One method of each shape. A handler returns its answer, or a status; `?` turns every failure of a stream into one.
fn math() -> Service {
    Service::new("math")
        .unary("square", |_cx, n: u64| async move { Ok(n * n) })
        .client_stream("sum", |_cx, mut numbers: Receiver<u64>| async move {
            let mut sum = 0;
            while let Some(n) = numbers.next().await? {
                sum += n;
            }
            Ok(sum)
        })
        .server_stream("count", |_cx, to: u64, mut out: Sender<u64>| async move {
            for n in 1..=to {
                out.send(&n).await?; // waits while the caller takes no more
            }
            Ok(())
        })
        .bidi("double", |_cx, mut numbers: Receiver<u64>, mut out: Sender<u64>| async move {
            while let Some(n) = numbers.next().await? {
                out.send(&(n * 2)).await?;
            }
            Ok(())
        })
}

/// The same four calls, over whichever end of the session this is.
async fn call_all(who: &str, session: &Session) -> Result<(), Box<dyn std::error::Error>> {
    // One message there, one back.
    let square: u64 = session.call("math/square", &12u64).await?;

    // Many there, one back: send them all, then ask for the one answer.
    let (mut numbers, sum) = session.request("math/sum").client_stream::<u64, u64>().await?;
    for n in 1..=10 {
        numbers.send(&n).await?;
    }
    numbers.finish()?;
    let sum = sum.only().await?;

    // One there, many back.
    let mut counting = session.request("math/count").server_stream::<_, u64>(&5u64).await?;
    let mut counted = Vec::new();
    while let Some(n) = counting.next().await? {
        counted.push(n);
    }

    // Many each way, at the same time.
    let (mut numbers, mut doubled) = session.request("math/double").bidi::<u64, u64>().await?;
    let mut last = 1;
    for _ in 0..10 {
        numbers.send(&last).await?;
        last = doubled.next().await?.ok_or("the other end stopped doubling")?;
    }
    numbers.finish()?;

    println!("{who}: 12² = {square}, 1 + … + 10 = {sum}, counted {counted:?}, 2^10 = {last}");
    assert_eq!((square, sum, counted.len(), last), (144, 55, 5, 1024));
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let ann = Node::builder().name("ann").listen("127.0.0.1:0".parse()?).open(true).service(math()).bind().await?;
    let bob = Node::builder().name("bob").listen("127.0.0.1:0".parse()?).open(true).service(math()).bind().await?;

    // Ann dials Bob …
    let to_bob = ann.connect(bob.ticket()).await?;
    call_all("ann calls bob", &to_bob).await?;

    // … and Bob, who dialled nobody, calls back over the very same session.
    let to_ann = bob.session(ann.id()).ok_or("bob has no session with ann")?;
    call_all("bob calls ann", &to_ann).await?;
    assert_eq!(to_bob.id(), to_ann.id());

    ann.shutdown().await;
    bob.shutdown().await;
    Ok(())
}
