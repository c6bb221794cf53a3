//! The four shapes of a call, each made once and its answer checked.

use voltmesh::Session;

use super::{Failure, ensure};

/// How many messages a stream of the demo has.
const MESSAGES: u64 = 100;

/// Calls in all four shapes. Says how many messages went to and fro.
pub async fn all_four(session: &Session) -> Result<u64, Failure> {
    unary(session).await?;
    client_stream(session).await?;
    server_stream(session).await?;
    bidi(session).await?;
    Ok(2 + (MESSAGES + 1) + (1 + MESSAGES) + 2 * MESSAGES)
}

async fn unary(session: &Session) -> Result<(), Failure> {
    let echoed: String = session.call("demo/echo", "hello").await?;
    ensure(echoed == "hello", || format!("\"hello\" came back as {echoed:?}"))
}

async fn client_stream(session: &Session) -> Result<(), Failure> {
    let (mut numbers, sum) = session.request("demo/sum").client_stream::<u64, u64>().await?;
    for n in 1..=MESSAGES {
        numbers.send(&n).await?;
    }
    numbers.finish()?;
    let sum = sum.only().await?;
    ensure(sum == MESSAGES * (MESSAGES + 1) / 2, || format!("the numbers to {MESSAGES} were summed to {sum}"))
}

async fn server_stream(session: &Session) -> Result<(), Failure> {
    let mut count = session.request("demo/count").server_stream::<_, u64>(&MESSAGES).await?;
    for n in 1..=MESSAGES {
        let next = count.next().await?;
        ensure(next == Some(n), || format!("{next:?} was counted where {n} comes next"))?;
    }
    let rest = count.next().await?;
    ensure(rest.is_none(), || "it was counted on after the end".into())
}

async fn bidi(session: &Session) -> Result<(), Failure> {
    let (mut numbers, mut doubled) = session.request("demo/double").bidi::<u64, u64>().await?;
    for n in 1..=MESSAGES {
        numbers.send(&n).await?;
        let twice = doubled.next().await?;
        ensure(twice == Some(2 * n), || format!("{n} was doubled to {twice:?}"))?;
    }
    numbers.finish()?;
    let rest = doubled.next().await?;
    ensure(rest.is_none(), || "it was doubled on after the end".into())
}
