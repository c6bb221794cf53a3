//! Calls between two nodes on real UDP: every shape, in both directions.

use voltmesh::{Node, Receiver, Sender, Service, Session};

fn echo() -> Service {
    Service::new("echo")
        .unary("one", |_cx, text: String| async move { Ok(text) })
        .client_stream("sum", |_cx, mut numbers: Receiver<u64>| async move {
            let mut sum = 0;
            while let Some(n) = numbers.next().await? {
                sum += n;
            }
            Ok(sum)
        })
        .server_stream("count", |_cx, to: u64, mut out: Sender<u64>| async move {
            for n in 1..=to {
                out.send(&n).await?;
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

async fn node() -> Node {
    Node::builder().listen("127.0.0.1:0".parse().unwrap()).open(true).service(echo()).bind().await.unwrap()
}

async fn all_four(session: &Session) {
    let text: String = session.call("echo/one", "hello").await.unwrap();
    assert_eq!(text, "hello");
    let (mut numbers, sum) = session.request("echo/sum").client_stream::<u64, u64>().await.unwrap();
    for n in 1..=100 {
        numbers.send(&n).await.unwrap();
    }
    numbers.finish().unwrap();
    assert_eq!(sum.only().await.unwrap(), 5_050);
    let mut count = session.request("echo/count").server_stream::<_, u64>(&100u64).await.unwrap();
    for n in 1..=100 {
        assert_eq!(count.next().await.unwrap(), Some(n));
    }
    assert_eq!(count.next().await.unwrap(), None);
    let (mut numbers, mut doubled) = session.request("echo/double").bidi::<u64, u64>().await.unwrap();
    for n in 1..=100 {
        numbers.send(&n).await.unwrap();
        assert_eq!(doubled.next().await.unwrap(), Some(2 * n));
    }
    numbers.finish().unwrap();
    assert_eq!(doubled.next().await.unwrap(), None);
}

#[tokio::test]
async fn every_shape_works_in_both_directions_over_one_session() {
    let (a, b) = (node().await, node().await);
    let at_a = a.connect(b.ticket()).await.unwrap();
    all_four(&at_a).await;
    let at_b = b.session(a.id()).unwrap();
    all_four(&at_b).await;
    assert_eq!(at_a.id(), at_b.id());
    a.shutdown().await;
    b.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn and_on_a_multi_thread_runtime_too() {
    let (a, b) = (node().await, node().await);
    all_four(&a.connect(b.ticket()).await.unwrap()).await;
    all_four(&b.session(a.id()).unwrap()).await;
}
