//! A web server that only one node can reach, as a local port of another: a tunnel carries each connection. Then the same without a port,
//! from a program; and what happens when policy changes its mind.
//!
//! Run it: `cargo run --example tunnel`

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use voltmesh::Node;
use voltmesh::policy::{Action, Effect, Pattern, Rule, Source, Subject};
use voltmesh::tunnel::{Carried, Served};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

const REQUEST: &str = "GET / HTTP/1.0\r\n\r\n";

/// A web server of one page, of which nobody but this machine knows.
async fn server() -> Outcome<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let at = listener.local_addr()?.to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; REQUEST.len()];
            if stream.read_exact(&mut request).await.is_ok() {
                let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nhello from behind").await;
            }
        }
    });
    Ok(at)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome {
    let web: Pattern = "web".parse()?;
    let forward = |effect| Rule::new(effect, Subject::Anyone, Action::Forward, web.clone(), Source::Config);
    let host = Node::builder().listen("127.0.0.1:0".parse()?).rule(forward(Effect::Permit)?).bind().await?;
    let mut exposed = host.expose("web", &server().await?)?;

    let node = Node::builder().listen("127.0.0.1:0".parse()?).bind().await?;
    let session = node.connect(host.ticket()).await?;

    // A port of this machine: any program can use it, and knows nothing of nodes.
    let mut port = session.forward("127.0.0.1:0".parse()?, "web").await?;
    let mut stream = TcpStream::connect(port.local()).await?;
    stream.write_all(REQUEST.as_bytes()).await?;
    let mut page = String::new();
    stream.read_to_string(&mut page).await?;
    println!("through port {}: {:?}", port.local().port(), page.lines().last());
    drop(stream);
    while let Some(happened) = port.next().await {
        if let Carried::Ended { sent, received, end, .. } = happened {
            println!("the port carried {sent} bytes there and {received} back, and it ended {end:?}");
            break;
        }
    }
    while let Some(happened) = exposed.next().await {
        if let Served::Ended { peer, .. } = happened {
            println!("the host served {peer}");
            break;
        }
    }

    // The same without a port: two halves, for two tasks.
    let (mut send, mut recv) = session.tunnel("web").await?.split();
    send.write(REQUEST).await?;
    let mut page = Vec::new();
    while let Some(bytes) = recv.read().await? {
        page.extend_from_slice(&bytes);
    }
    println!("from a program: {:?}", String::from_utf8(page)?.lines().last());

    // What policy takes away ends, and what it does not allow is refused.
    let (_send, mut recv) = session.tunnel("web").await?.split();
    host.add_rule(forward(Effect::Deny)?).await?;
    println!("open when the rule came: {}", recv.read().await.expect_err("it is denied"));
    println!("afterwards: {}", session.tunnel("web").await.expect_err("it is denied"));

    node.shutdown().await;
    host.shutdown().await;
    Ok(())
}
