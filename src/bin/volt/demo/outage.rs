//! The network is cut under a call and a stream, and comes back: two steps, and what the first leaves for the second.

use std::time::{Duration, Instant};

use aws_lc_rs::digest::{Context, Digest, SHA256};
use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::sleep_until;
use voltmesh::id::{SecretKey, Ticket};
use voltmesh::session::DisconnectReason;
use voltmesh::{CallError, Event, Session};

use super::forwarder::{Forwarder, V6_ONLY};
use super::stage::{Player, Seen, Stage, allow};
use super::{Told, ensure, ms};

/// The handler of the call is done within the outage: its answer waits for the network.
const CALL_MS: u64 = 4_000;
/// Messages of the stream, one every [`NOISE_EVERY`].
const NOISE_MESSAGES: u64 = 250;
/// What one of them carries.
pub const NOISE_BYTES: usize = 16 << 10;
/// The time between two of them.
pub const NOISE_EVERY: Duration = Duration::from_millis(20);
/// Both are under way for so long when the network is cut.
const BEFORE: Duration = Duration::from_millis(500);
/// How long it is cut. The loss is noticed within 3.5 s.
const OUTAGE: Duration = Duration::from_millis(4_500);

/// A node behind a network that is cut, and what it waits for.
pub struct Outage {
    e: Player,
    forwarder: Forwarder,
    since: Instant,
    call: JoinHandle<Result<u64, CallError>>,
    stream: JoinHandle<Result<(u64, Digest), CallError>>,
}

/// The message of the stream with this number: nobody knows it who has not received it, or made it.
pub fn noise(number: u64) -> Bytes {
    // SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
    let mut state = number << 32;
    let words = std::iter::repeat_with(|| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)).to_le_bytes()
    });
    words.take(NOISE_BYTES / 8).flatten().collect::<Vec<u8>>().into()
}

/// e calls b through a network of their own, which is cut as soon as all is under way.
pub async fn cut(stage: &mut Stage) -> Told {
    let (_, b) = stage.both()?;
    let at = b.node.listening().first().copied().ok_or("b is nowhere")?;
    let Ok(forwarder) = Forwarder::start(at).await else { return Ok("not shown: this machine has no IPv6 on loopback".into()) };
    let key = SecretKey::generate();
    b.node.add_rule(allow(key.id(), "demo/*")?).await?;
    let mut e = Player::start("e", key, V6_ONLY, Vec::new()).await?;
    let session = e.node.connect(Ticket::new(b.node.id()).with_address(forwarder.at())).await?;
    let connected = e.event_of(b.node.id()).await?;
    ensure(matches!(connected, Event::Connected { .. }), || format!("e was told {connected:?}"))?;
    let called = session.clone();
    let call = tokio::spawn(async move { called.call("demo/wait", &CALL_MS).await });
    ensure(b.saw().await? == Seen::Begun, || "the call did not arrive".into())?;
    let stream = tokio::spawn(listen(session));
    tokio::time::sleep(BEFORE).await;
    forwarder.cut();
    let since = Instant::now();
    let lost = e.event_of(b.node.id()).await?;
    let after = since.elapsed();
    let unanswered = matches!(lost, Event::Disconnected { reason: DisconnectReason::NoAnswer, .. });
    ensure(unanswered && after < OUTAGE, || format!("after {} e was told {lost:?}", ms(after)))?;
    ensure(!call.is_finished() && !stream.is_finished(), || "the call or the stream ended with the path".into())?;
    stage.outage = Some(Outage { e, forwarder, since, call, stream });
    Ok(format!("between e and b; e is told after {}: no answer. The call and the stream wait", ms(after)))
}

/// The network is back.
pub async fn back(stage: &mut Stage) -> Told {
    let Some(Outage { mut e, forwarder, since, call, stream }) = stage.outage.take() else { return Ok("not shown".into()) };
    let (_, b) = stage.both()?;
    sleep_until((since + OUTAGE).into()).await;
    let swallowed = forwarder.swallowed();
    ensure(swallowed > 0, || "nothing was swallowed".into())?;
    forwarder.heal();
    let healed = Instant::now();
    let connected = e.event_of(b.node.id()).await?;
    let after = healed.elapsed();
    ensure(matches!(connected, Event::Connected { resumed: true, .. }), || format!("e was told {connected:?}"))?;
    let answer = call.await?;
    ensure(answer == Ok(CALL_MS), || format!("the call: {answer:?}"))?;
    let again = b.seen.try_recv();
    ensure(again.is_err(), || format!("the handler did not run once, undisturbed: {again:?}"))?;
    let (bytes, hash) = stream.await??;
    let sent = sum((0..NOISE_MESSAGES).map(noise));
    let whole = bytes == NOISE_MESSAGES * NOISE_BYTES as u64 && hash.as_ref() == sent.as_ref();
    ensure(whole, || format!("{bytes} bytes of the stream came, and not those that were sent"))?;
    e.node.shutdown().await;
    let (seconds, megabytes) = (OUTAGE.as_secs_f64(), bytes as f64 / 1e6);
    let hash = data_encoding::HEXLOWER.encode(&hash.as_ref()[..4]);
    let after = ms(after);
    Ok(format!(
        "after {seconds} s; resumed {after} later: the answer, run once; {megabytes:.1} MB of stream, sha256 {hash}… as sent"
    ))
}

/// Takes all of the stream; its length and its hash.
async fn listen(session: Session) -> Result<(u64, Digest), CallError> {
    let mut noise = session.request("demo/noise").server_stream::<_, Bytes>(&NOISE_MESSAGES).await?;
    let (mut bytes, mut hash) = (0, Context::new(&SHA256));
    while let Some(message) = noise.next().await? {
        bytes += message.len() as u64;
        hash.update(&message);
    }
    Ok((bytes, hash.finish()))
}

fn sum(messages: impl Iterator<Item = Bytes>) -> Digest {
    let mut hash = Context::new(&SHA256);
    messages.for_each(|message| hash.update(&message));
    hash.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_messages_of_the_stream_are_the_same_and_each_is_made_again_the_same() {
        assert_eq!(noise(3), noise(3));
        assert_eq!(noise(3).len(), NOISE_BYTES);
        assert!((0..NOISE_MESSAGES).all(|number| noise(number) != noise(number + 1)));
        assert_ne!(sum([noise(0), noise(1)].into_iter()).as_ref(), sum([noise(1), noise(0)].into_iter()).as_ref());
    }
}
