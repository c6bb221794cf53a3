//! The relay of the yardstick, a process of its own: for each stream that one leg brings it opens one on the other leg and copies
//! bytes both ways, as they come and without a copy in memory, with their end, with RESET and with STOP_SENDING. A leg without room holds
//! the other one back; a RESET waits there, too.
//!
//! It is the fastest plain relay that we know: the endpoint of the other raw nodes (quinn's own windows and datagrams of up to 1,452
//! bytes, 1,024 streams at once, sockets of 4 MiB), so the same mutual TLS on each leg, one socket for both, one thread. Nothing is sealed
//! once more between the ends, nothing asks who may go where, nothing is read: it sees every byte. Each client has a leg onwards of its own,
//! which is there before the client is welcomed.

use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::pin::pin;

use bytes::Bytes;
use quinn::{Connection, ConnectionError, Endpoint, Incoming, ReadError, RecvStream, SendStream, VarInt, WriteError};

use super::{BenchError, Failure, dial, serve_with, welcome};

/// The name by which its server is started.
pub const NAME: &str = "raw-relay";

/// Pieces that are read, and handed on, at once.
const PIECES: usize = 16;
/// Said to one leg when the other is gone.
const LEG_LOST: VarInt = VarInt::from_u32(1);

/// The relay before `next`, which is the server or another relay: as [`super::serve`].
pub fn serve(next: &str, ready: impl Write, until: impl Read + Send + 'static) -> Result<(), BenchError> {
    let failed = |why: String| BenchError::Failed { side: NAME, work: "serving".to_owned(), why };
    let next: SocketAddr = next.parse().map_err(|error| failed(format!("{next:?} is no address: {error}")))?;
    serve_with(ready, until, async |endpoint| {
        while let Some(incoming) = endpoint.accept().await {
            tokio::spawn(carry(incoming, endpoint.clone(), next));
        }
    })
}

/// Carries one client's streams until one of its two legs is gone, and then closes both.
async fn carry(incoming: Incoming, endpoint: Endpoint, next: SocketAddr) -> Result<(), Failure> {
    let near = incoming.await?;
    let far = dial(&endpoint, next).await?;
    welcome(&near).await?;
    let Err(gone) = tokio::try_join!(pass(&near, &far), pass(&far, &near));
    let code = match gone {
        ConnectionError::ApplicationClosed(closed) => closed.error_code,
        _ => LEG_LOST,
    };
    near.close(code, b"");
    far.close(code, b"");
    Ok(())
}

/// Brings every stream of one leg to the other, until the leg is gone.
async fn pass(from: &Connection, to: &Connection) -> Result<Infallible, ConnectionError> {
    loop {
        tokio::select! {
            biased;
            both = from.accept_bi() => {
                tokio::spawn(splice(both?, to.clone()));
            }
            one = from.accept_uni() => {
                tokio::spawn(splice_one(one?, to.clone()));
            }
        }
    }
}

async fn splice((back, out): (SendStream, RecvStream), to: Connection) {
    // Only a leg that is gone has no streams, and then both are closed.
    if let Ok((onwards, reply)) = to.open_bi().await {
        tokio::join!(copy(out, onwards), copy(reply, back));
    }
}

async fn splice_one(out: RecvStream, to: Connection) {
    if let Ok(onwards) = to.open_uni().await {
        copy(out, onwards).await;
    }
}

/// How the bytes of a stream end.
enum End {
    Finished,
    Reset(VarInt),
    /// Whoever they go to wants no more of them.
    Stopped(VarInt),
    /// A leg is gone.
    Lost,
}

async fn copy(mut from: RecvStream, mut to: SendStream) {
    // What fails here is over anyway.
    let _ = match copied(&mut from, &mut to).await {
        End::Finished => to.finish(),
        End::Reset(code) => to.reset(code),
        End::Stopped(code) => from.stop(code),
        // Dropped as it is, it would look finished.
        End::Lost => to.reset(LEG_LOST),
    };
}

async fn copied(from: &mut RecvStream, to: &mut SendStream) -> End {
    let mut stopped = pin!(to.stopped());
    let mut pieces = [const { Bytes::new() }; PIECES];
    loop {
        let count = tokio::select! {
            biased;
            read = from.read_chunks(&mut pieces) => match read {
                Ok(Some(count)) => count,
                Ok(None) => return End::Finished,
                Err(ReadError::Reset(code)) => return End::Reset(code),
                Err(_) => return End::Lost,
            },
            stop = &mut stopped => return stop.ok().flatten().map_or(End::Lost, End::Stopped),
        };
        match to.write_all_chunks(&mut pieces[..count]).await {
            Ok(()) => {}
            Err(WriteError::Stopped(code)) => return End::Stopped(code),
            Err(_) => return End::Lost,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::PipeWriter;
    use std::thread::JoinHandle;

    use super::super::{block_on, call, endpoint, process, send_all};
    use super::*;

    type Ends = Vec<(PipeWriter, JoinHandle<Result<(), BenchError>>)>;

    /// Servers in this process, which end with it.
    struct Servers(Ends);

    impl Drop for Servers {
        fn drop(&mut self) {
            for (end, serving) in self.0.drain(..) {
                drop(end);
                serving.join().unwrap().unwrap();
            }
        }
    }

    /// So many relays before this address, and where the first one is.
    fn before(mut at: String, relays: usize) -> (Servers, SocketAddr) {
        let mut servers = Servers(Vec::new());
        for _ in 0..relays {
            let (here, end, serving) = process::in_here(move |ready, until| serve(&at, ready, until));
            servers.0.push((end, serving));
            at = here;
        }
        (servers, at.parse().unwrap())
    }

    /// A connection through so many relays: who dialled, and who accepted.
    async fn through(relays: usize) -> Result<(Servers, [Endpoint; 2], Connection, Connection), Failure> {
        let (client, server) = (endpoint()?, endpoint()?);
        let (servers, at) = before(server.local_addr()?.to_string(), relays);
        let accepted = async {
            let connection = server.accept().await.ok_or("nobody came")?.await?;
            welcome(&connection).await?;
            Ok(connection)
        };
        let (dialled, accepted) = tokio::try_join!(dial(&client, at), accepted)?;
        Ok((servers, [client, server], dialled, accepted))
    }

    #[test]
    fn calls_and_transfers_go_through_one_relay_and_through_two() {
        for relays in [1, 2] {
            let (server, end, serving) = process::in_here(super::super::serve);
            let (relays, at) = before(server, relays);
            block_on(async {
                let endpoint = endpoint()?;
                let connection = dial(&endpoint, at).await?;
                call(connection.clone(), Bytes::from(vec![7; 16 << 10])).await?;
                send_all(&connection, (8 << 20) + 1).await
            })
            .unwrap();
            drop((relays, end));
            serving.join().unwrap().unwrap();
        }
    }

    #[test]
    fn a_reset_and_a_stop_pass_in_both_directions() {
        block_on(async {
            let (_servers, _ends, dialled, accepted) = through(2).await?;
            let (mut send, mut receive) = dialled.open_bi().await?;
            send.write_all(b"begun").await?;
            let (mut back, mut came) = accepted.accept_bi().await?;
            came.read_exact(&mut [0; 5]).await?;
            send.reset(7u32.into())?;
            back.reset(8u32.into())?;
            assert_eq!(came.read_to_end(1).await.unwrap_err(), ReadError::Reset(7u32.into()).into());
            assert_eq!(receive.read_to_end(1).await.unwrap_err(), ReadError::Reset(8u32.into()).into());

            let (mut send, mut receive) = dialled.open_bi().await?;
            send.write_all(b"begun").await?;
            let (back, mut came) = accepted.accept_bi().await?;
            receive.stop(9u32.into())?;
            came.stop(10u32.into())?;
            assert_eq!(back.stopped().await, Ok(Some(9u32.into())));
            assert_eq!(send.stopped().await, Ok(Some(10u32.into())));
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn a_reset_passes_behind_bytes_that_had_no_room() {
        block_on(async {
            let (_servers, _ends, dialled, accepted) = through(1).await?;
            let mut send = dialled.open_uni().await?;
            // More than one leg's window, less than both legs': the relay waits for room to write.
            send.write_chunk(Bytes::from(vec![1; 2 << 20])).await?;
            let mut came = accepted.accept_uni().await?;
            send.reset(7u32.into())?;
            let end = loop {
                if let Err(end) = came.read_chunk(usize::MAX, true).await {
                    break end;
                }
            };
            assert_eq!(end, ReadError::Reset(7u32.into()));
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn when_one_end_closes_the_other_learns_it_with_the_code() {
        block_on(async {
            let (_servers, _ends, dialled, accepted) = through(2).await?;
            dialled.close(5u32.into(), b"");
            let ConnectionError::ApplicationClosed(closed) = accepted.closed().await else { return Err("lost".into()) };
            assert_eq!(closed.error_code, 5u32.into());
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn what_is_no_address_is_refused() {
        let refused = serve("nowhere", std::io::sink(), std::io::empty());
        assert!(refused.unwrap_err().to_string().contains("nowhere"));
    }
}
