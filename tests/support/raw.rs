//! A peer with a valid key on raw quinn: it can say anything. It verifies nobody.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ApplicationClose, Connection, ConnectionError, Endpoint, RecvStream, SendStream, TransportConfig, VarInt};
use rcgen::{CertificateParams, KeyPair, PKCS_ED25519};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, Error, ServerConfig, SignatureScheme};
use tokio::sync::mpsc;
use voltmesh::Node;
use voltmesh::id::NodeId;
use voltmesh::proto::body::ContentType;
use voltmesh::proto::call::{Header, Shape};
use voltmesh::proto::close::CloseCode;
use voltmesh::proto::codec;
use voltmesh::proto::control::{Attach, BootId, Control, Hello, LiveStream, Profile, Role, SessionId};
use voltmesh::proto::frame::{Frames, put_message};
use voltmesh::proto::stream::{Head, Kind, Purpose};
use voltmesh::proto::{limits, varint};

use super::{loopback, soon};

/// A key, its certificate, and a port.
pub struct RawPeer {
    pub id: NodeId,
    pub endpoint: Endpoint,
}

impl RawPeer {
    /// A fresh one. `tune` sets what quinn's side of it allows.
    pub fn new(tune: impl Fn(&mut TransportConfig)) -> Self {
        Self::at(loopback(), tune)
    }

    /// The same, at this address.
    pub fn at(address: SocketAddr, tune: impl Fn(&mut TransportConfig)) -> Self {
        Self::with(&Self::key(), address, tune)
    }

    /// A fresh key.
    pub fn key() -> KeyPair {
        KeyPair::generate_for(&PKCS_ED25519).unwrap()
    }

    /// One with this key.
    pub fn with(key: &KeyPair, address: SocketAddr, tune: impl Fn(&mut TransportConfig)) -> Self {
        let certificate = CertificateParams::new(Vec::new()).unwrap().self_signed(key).unwrap();
        let id = NodeId::from_bytes(key.public_key_raw().try_into().unwrap());
        let secret = || PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let chain = vec![CertificateDer::from(certificate.der().to_vec())];
        let mut transport = TransportConfig::default();
        tune(&mut transport);
        let transport = Arc::new(transport);

        let builder = || ClientConfig::builder_with_provider(Arc::new(default_provider()));
        let mut tls = builder()
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone))
            .with_client_auth_cert(chain.clone(), secret())
            .unwrap();
        tls.alpn_protocols = vec![b"volt/1".to_vec()];
        let mut client = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        client.transport_config(transport.clone());

        let mut tls = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, secret())
            .unwrap();
        tls.alpn_protocols = vec![b"volt/1".to_vec()];
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
        server.transport_config(transport);

        let mut endpoint = Endpoint::server(server, address).unwrap();
        endpoint.set_default_client_config(client);
        Self { id, endpoint }
    }

    /// One that allows what quinn allows by default.
    pub fn plain() -> Self {
        Self::new(|_| {})
    }

    /// A QUIC connection to the node; nothing of ours is said.
    pub async fn connect(&self, node: &Node) -> Connection {
        soon(self.dial(node.listening()[0])).await.unwrap()
    }

    /// The same with whoever is at this address.
    pub async fn dial(&self, address: SocketAddr) -> Result<Connection, ConnectionError> {
        self.endpoint.connect(address, "volt").unwrap().await
    }

    /// A session with the node, as an honest peer would make it.
    pub async fn greet(&self, node: &Node) -> RawSession {
        let (raw, _) = self.attach_as(node, hello(), 0, Vec::new()).await;
        raw
    }

    /// Puts the session on another link and says where the streams stand. Gives what the node says of that.
    pub async fn go_on(
        &self,
        node: &Node,
        before: &RawStreams,
        next_id: u64,
        live: Vec<LiveStream>,
    ) -> (RawSession, Vec<Attach>) {
        let hello = Hello { session: Some(before.session), attach: before.attach + 1, ..before.hello.clone() };
        self.attach_as(node, hello, next_id, live).await
    }

    /// A session for this hello, if the node takes it up, attached with this list.
    pub async fn attach_as(&self, node: &Node, hello: Hello, next_id: u64, live: Vec<LiveStream>) -> (RawSession, Vec<Attach>) {
        let agreed = self.hello_as(node, &hello).await;
        Self::attach(agreed, hello, next_id, live).await
    }

    async fn attach(
        (connection, mut control, theirs): (Connection, RawControl, Hello),
        hello: Hello,
        next_id: u64,
        live: Vec<LiveStream>,
    ) -> (RawSession, Vec<Attach>) {
        let session = theirs.session.expect("it accepts");
        control.send_list(&Attach { next_id, ..attach(session, theirs.attach) }, live).await;
        let mut list = Vec::new();
        while list.last().is_none_or(|part: &Attach| part.more) {
            let Control::Attach(part) = control.next().await else { panic!("no attach") };
            list.push(part);
        }
        (RawSession::new(connection, control, session, Hello { attach: theirs.attach, ..hello }), list)
    }

    /// Says this hello to the node, and gives its answer.
    pub async fn hello_as(&self, node: &Node, hello: &Hello) -> (Connection, RawControl, Hello) {
        let connection = self.connect(node).await;
        let mut control = say_hello(&connection, hello).await.unwrap();
        let Control::Hello(theirs) = control.next().await else { panic!("no hello") };
        (connection, control, theirs)
    }

    /// A session with whoever is at this address, or how the link was closed instead.
    pub async fn try_to_greet(&self, address: SocketAddr) -> Result<RawSession, ConnectionError> {
        let (connection, hello) = (self.dial(address).await?, hello());
        let mut control = say_hello(&connection, &hello).await?;
        let Some(Control::Hello(theirs)) = control.try_next().await else { return Err(connection.closed().await) };
        let (session, _) = Self::attach((connection, control, theirs), hello, 0, Vec::new()).await;
        Ok(session)
    }

    /// Answers the next node that dials with these messages instead of the right ones, except for a hello's attach number of 1,
    /// which is made right.
    pub async fn answer_with(&self, messages: &[Control]) -> Connection {
        let (connection, mut control, theirs) = self.greeted().await;
        for message in messages {
            let message = match message.clone() {
                Control::Hello(hello) if hello.attach == 1 => Control::Hello(Hello { attach: theirs.attach, ..hello }),
                other => other,
            };
            control.send(&message).await;
        }
        // Kept until the connection ends, so that nothing is cut off.
        tokio::spawn({
            let connection = connection.clone();
            async move {
                connection.closed().await;
                drop(control);
            }
        });
        connection
    }

    /// A session with the next node that dials, as an honest peer would make it.
    pub async fn answer(&self) -> RawSession {
        let (connection, mut control, theirs) = self.greeted().await;
        let session = SessionId::random();
        control.send(&Control::Hello(Hello { session: Some(session), attach: theirs.attach, ..hello() })).await;
        control.send(&Control::Attach(Attach { next_id: 1, ..attach(session, theirs.attach) })).await;
        let Control::Attach(_) = control.next().await else { panic!("no attach") };
        RawSession::new(connection, control, session, Hello { attach: theirs.attach, ..hello() })
    }
}

impl RawPeer {
    async fn greeted(&self) -> (Connection, RawControl, Hello) {
        let incoming = self.endpoint.accept().await.expect("the endpoint is open");
        let connection = incoming.accept().unwrap().await.unwrap();
        let (send, mut recv) = connection.accept_bi().await.unwrap();
        let mut kind = [0];
        recv.read_exact(&mut kind).await.unwrap();
        let mut control = RawControl { send, recv, frames: Frames::new(limits::CONTROL_MESSAGE_BYTES) };
        let Control::Hello(theirs) = control.next().await else { panic!("no hello") };
        (connection, control, theirs)
    }
}

/// A session of a raw peer.
pub struct RawSession {
    pub control: RawControl,
    streams: RawStreams,
    to_say: mpsc::UnboundedReceiver<Control>,
}

/// The streams of a session of a raw peer.
#[derive(Clone)]
pub struct RawStreams {
    pub connection: Connection,
    pub session: SessionId,
    pub attach: u64,
    /// What the raw peer said of itself.
    pub hello: Hello,
    said: mpsc::UnboundedSender<Control>,
}

impl std::ops::Deref for RawSession {
    type Target = RawStreams;

    fn deref(&self) -> &RawStreams {
        &self.streams
    }
}

impl RawSession {
    fn new(connection: Connection, control: RawControl, session: SessionId, hello: Hello) -> Self {
        let (said, to_say) = mpsc::unbounded_channel();
        Self { control, streams: RawStreams { connection, session, attach: hello.attach, hello, said }, to_say }
    }

    /// Answers pings and says what it is told to from now on, as long as the connection lives.
    pub fn answering(self) -> RawStreams {
        let Self { mut control, streams, mut to_say } = self;
        tokio::spawn(async move {
            loop {
                let mut buf = Vec::new();
                tokio::select! {
                    chunk = control.recv.read_chunk(usize::MAX, true) => {
                        let Ok(Some(chunk)) = chunk else { return };
                        control.frames.push(chunk.bytes);
                        while let Ok(Some(frame)) = control.frames.next_frame() {
                            if let Ok(Control::Ping { seq }) = codec::decode(&frame) {
                                put_message(&mut buf, &Control::Pong { seq });
                            }
                        }
                    }
                    Some(message) = to_say.recv() => put_message(&mut buf, &message),
                }
                if control.send.write_all(&buf).await.is_err() {
                    return;
                }
            }
        });
        streams
    }
}

/// A control stream.
pub struct RawControl {
    pub send: SendStream,
    pub recv: RecvStream,
    frames: Frames,
}

impl RawControl {
    /// The half of a control stream that is read.
    pub fn receiving(recv: RecvStream) -> RawReceived {
        RawReceived { recv, frames: Frames::new(limits::CONTROL_MESSAGE_BYTES) }
    }

    pub async fn send(&mut self, message: &Control) {
        let mut buf = Vec::new();
        put_message(&mut buf, message);
        self.send.write_all(&buf).await.unwrap();
    }

    /// An attach with this list, in as many parts as it takes.
    pub async fn send_list(&mut self, attach: &Attach, live: Vec<LiveStream>) {
        let mut parts = live.chunks(limits::PROGRESS_ENTRIES).map(<[LiveStream]>::to_vec).peekable();
        loop {
            let live = parts.next().unwrap_or_default();
            let more = parts.peek().is_some();
            self.send(&Control::Attach(Attach { live, more, ..attach.clone() })).await;
            if !more {
                return;
            }
        }
    }

    pub async fn next(&mut self) -> Control {
        soon(self.try_next()).await.expect("the control stream goes on")
    }

    /// The next message, if one comes before the end.
    pub async fn try_next(&mut self) -> Option<Control> {
        loop {
            if let Some(frame) = self.frames.next_frame().unwrap() {
                return Some(codec::decode(&frame).unwrap());
            }
            self.frames.push(self.recv.read_chunk(usize::MAX, true).await.ok()??.bytes);
        }
    }
}

/// What is read of a control stream.
pub struct RawReceived {
    recv: RecvStream,
    frames: Frames,
}

impl RawReceived {
    /// The first message, if one comes before the end.
    pub async fn first(&mut self) -> Option<Control> {
        loop {
            if let Some(frame) = self.frames.next_frame().unwrap() {
                return Some(codec::decode(&frame).unwrap());
            }
            self.frames.push(self.recv.read_chunk(usize::MAX, true).await.ok()??.bytes);
        }
    }
}

impl RawStreams {
    /// The head of the stream with this id.
    pub fn head(&self, stream: u64) -> Vec<u8> {
        let mut buf = Vec::new();
        Head::Fresh { stream }.put(&mut buf);
        buf
    }

    /// Has this said on the control stream, by a session that is [answering](RawSession::answering).
    pub fn tell(&self, message: Control) {
        self.said.send(message).unwrap();
    }

    /// The head of this stream where it goes on from another path.
    pub fn carried(&self, stream: u64, offset: u64, received: u64) -> Vec<u8> {
        let mut buf = Vec::new();
        Head::CarriedOn { stream, offset, received }.put(&mut buf);
        buf
    }

    /// Loses the link, as the network would, only sooner: the code says nothing of the session.
    pub async fn lose(&self) {
        self.connection.close((CloseCode::Timeout as u32).into(), b"");
        // Waits until the packet that says so has left.
        tokio::task::yield_now().await;
    }

    /// Opens a path stream that begins with these bytes.
    pub async fn open(&self, bytes: &[u8]) -> (SendStream, RecvStream) {
        let (mut send, recv) = soon(self.connection.open_bi()).await.unwrap();
        soon(send.write_all(bytes)).await.unwrap();
        (send, recv)
    }

    /// A call on the stream with this id: everything up to the first message.
    pub fn call(&self, stream: u64, header: &Header<'_>) -> Vec<u8> {
        let mut buf = self.head(stream);
        buf.push(Purpose::Call as u8);
        put_message(&mut buf, header);
        buf
    }
}

/// A header for this method, with nothing special.
pub fn header(method: &str, shape: Shape, content: ContentType) -> Header<'_> {
    Header {
        method,
        shape,
        content,
        deadline_us: Some(10_000_000),
        idempotency_key: None,
        traceparent: None,
        metadata: Vec::new(),
    }
}

/// A message of a call.
pub fn message(body: &[u8]) -> Vec<u8> {
    let mut buf = Vec::new();
    varint::put(&mut buf, body.len() as u64 + 1);
    buf.push(0);
    buf.extend_from_slice(body);
    buf
}

/// An honest hello.
pub fn hello() -> Hello {
    Hello {
        versions: (1, 1),
        boot: BootId::random(),
        role: Role::Node,
        session: None,
        attach: 1,
        name: "raw".into(),
        profile: Profile::Active,
        resume_window_ms: 120_000,
        addresses: Vec::new(),
        observed: "127.0.0.1:1".parse().unwrap(),
        extensions: Vec::new(),
    }
}

/// A control stream that begins with this hello.
async fn say_hello(connection: &Connection, hello: &Hello) -> Result<RawControl, ConnectionError> {
    let (mut send, recv) = connection.open_bi().await?;
    // Whoever closes the link before is to be asked why, and not the stream.
    let _ = send.write_all(&hello_bytes(hello)).await;
    Ok(RawControl { send, recv, frames: Frames::new(limits::CONTROL_MESSAGE_BYTES) })
}

/// The first bytes of a control stream that says this hello.
pub fn hello_bytes(hello: &Hello) -> Vec<u8> {
    let mut buf = vec![Kind::Control as u8];
    put_message(&mut buf, &Control::Hello(hello.clone()));
    buf
}

/// An honest attach of a new session, from the side that dialled.
pub fn attach(session: SessionId, attach: u64) -> Attach {
    Attach { session, attach, next_id: 0, live: Vec::new(), more: false }
}

/// Where a stream stands that nothing more is said of.
pub fn stands(stream: u64, received: u64) -> LiveStream {
    LiveStream { stream, received, ended: false, reset: None, stop: None }
}

/// The code the node closes the connection with.
pub async fn close_code(connection: &Connection) -> CloseCode {
    match soon(connection.closed()).await {
        ConnectionError::ApplicationClosed(ApplicationClose { error_code, .. }) => {
            CloseCode::from_number(error_code.into_inner()).expect("one of our codes")
        }
        other => panic!("not closed by the node: {other}"),
    }
}

/// Everything up to the end of the stream, or the code it was reset with.
pub async fn rest(recv: &mut RecvStream) -> Result<Bytes, VarInt> {
    match soon(recv.read_to_end(usize::MAX)).await {
        Ok(bytes) => Ok(bytes.into()),
        Err(quinn::ReadToEndError::Read(quinn::ReadError::Reset(code))) => Err(code),
        Err(other) => panic!("{other}"),
    }
}

/// Takes every certificate.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}
