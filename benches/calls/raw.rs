//! Raw quinn doing what the nodes do: one bidirectional stream per call or transfer, the cryptography and the socket buffers of
//! a node. No framing, no policy, no session: what those cost is the distance between the two.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::{
    ClientConfig, Connection, Endpoint, EndpointConfig, RecvStream, SendStream, ServerConfig, TokioRuntime, TransportConfig,
};

use crate::network::{CHUNK_BYTES, Failure, Side};

#[path = "../../src/bin/volt/bench/baseline/tls.rs"]
#[allow(dead_code, reason = "the yardstick's tests use more of it")]
mod tls;

/// Of UDP sockets, as a node's.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// A stream with more than this is a transfer, and answered with its length alone.
const BODY_BYTES_MAX: usize = 1 << 20;

/// Two endpoints and their connection, which ends with them.
#[derive(Clone)]
pub struct Raw {
    connection: Connection,
    _endpoints: (Endpoint, Endpoint),
}

impl Raw {
    /// Brings both ends up.
    pub async fn start() -> Result<Self, Failure> {
        let (server, client) = (endpoint()?, endpoint()?);
        let accepting = server.clone();
        tokio::spawn(async move {
            while let Some(incoming) = accepting.accept().await {
                // A client that ends its work closes: nothing to report.
                if let Ok(connection) = incoming.await {
                    let _ = attend(connection).await;
                }
            }
        });
        let connection = client.connect(server.local_addr()?, tls::SERVER_NAME)?.await?;
        Ok(Self { connection, _endpoints: (server, client) })
    }
}

impl Side for Raw {
    async fn call(&self, body: Bytes) -> Result<usize, Failure> {
        let (mut send, mut receive) = self.connection.open_bi().await?;
        send.write_chunk(body).await?;
        send.finish()?;
        Ok(receive.read_to_end(BODY_BYTES_MAX).await?.len())
    }

    async fn transfer(&self, bytes: usize) -> Result<u64, Failure> {
        let chunk = Bytes::from(vec![7; CHUNK_BYTES]);
        let (mut send, mut receive) = self.connection.open_bi().await?;
        for _ in 0..bytes / CHUNK_BYTES {
            send.write_chunk(chunk.clone()).await?;
        }
        send.finish()?;
        let arrived = receive.read_to_end(8).await?;
        Ok(u64::from_be_bytes(arrived.as_slice().try_into()?))
    }
}

fn endpoint() -> Result<Endpoint, Failure> {
    let identity = tls::Identity::generate()?;
    let mut transport = TransportConfig::default();
    transport.max_concurrent_bidi_streams(1_024u32.into()).initial_rtt(Duration::from_millis(100));
    let transport = Arc::new(transport);
    let mut server = ServerConfig::with_crypto(identity.server()?);
    server.transport_config(transport.clone());
    let mut client = ClientConfig::new(identity.client()?);
    client.transport_config(transport);
    let mut endpoint = Endpoint::new(EndpointConfig::default(), Some(server), socket()?, Arc::new(TokioRuntime))?;
    endpoint.set_default_client_config(client);
    Ok(endpoint)
}

fn socket() -> Result<UdpSocket, Failure> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let options = socket2::SockRef::from(&socket);
    // A system may grant less; then a node gets less, too.
    let _ = options.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = options.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    Ok(socket)
}

async fn attend(connection: Connection) -> Result<(), Failure> {
    loop {
        let (send, receive) = connection.accept_bi().await?;
        tokio::spawn(answer(send, receive));
    }
}

/// Small bodies go back as they came, large ones are counted.
async fn answer(mut send: SendStream, mut receive: RecvStream) -> Result<(), Failure> {
    let (mut body, mut bytes) = (Vec::new(), 0u64);
    while let Some(chunk) = receive.read_chunk(usize::MAX, true).await? {
        bytes += chunk.bytes.len() as u64;
        if bytes <= BODY_BYTES_MAX as u64 {
            body.extend_from_slice(&chunk.bytes);
        }
    }
    let large = bytes > BODY_BYTES_MAX as u64;
    send.write_chunk(if large { Bytes::copy_from_slice(&bytes.to_be_bytes()) } else { body.into() }).await?;
    Ok(send.finish()?)
}
