//! A camera behind somebody's router registers at a node that everybody knows. A viewer finds it there, looks at what it is, fetches a
//! picture as it is taken, and is told when the camera goes and comes back.
//!
//! Run it: `cargo run --example camera`

use voltmesh::id::SecretKey;
use voltmesh::policy::{Action, Effect, Pattern, Rule, Source, Subject};
use voltmesh::service::{Presence, Registered, Watch};
use voltmesh::{Node, Sender, Service};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// The rows of a small picture, each sent as soon as it is there.
async fn take(rows: u32, picture: Sender<Vec<u8>>) -> Result<(), voltmesh::proto::status::Status> {
    let mut picture = picture;
    for row in 0..rows {
        picture.send(&vec![(row * 16) as u8; 32]).await?;
    }
    Ok(())
}

/// A camera, for as long as both values are kept.
async fn camera(key: SecretKey, hub: &Node) -> Outcome<(Node, Registered)> {
    let camera = Service::new("camera").version("2.1").server_stream("picture", |_cx, rows: u32, out| take(rows, out));
    let node = Node::builder().name("camera").key(key).listen("127.0.0.1:0".parse()?).open(true).bind().await?;
    let at_hub = node.connect(hub.ticket()).await?;
    let registered = at_hub.announce("camera").service(camera).metadata("room", "porch").start().await?;
    Ok((node, registered))
}

async fn next(watch: &mut Watch) -> Outcome<Presence> {
    Ok(watch.next().await.ok_or("the viewer's node has stopped")?)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome {
    let permit =
        |action, what: &str| Rule::new(Effect::Permit, Subject::Anyone, action, what.parse::<Pattern>().unwrap(), Source::Config);
    let hub = Node::builder().listen("127.0.0.1:0".parse()?);
    let hub = hub.rule(permit(Action::Register, "camera")?).rule(permit(Action::Discover, "camera")?).bind().await?;
    let key = SecretKey::generate();
    let (node, registered) = camera(key.clone(), &hub).await?;

    let viewer = Node::builder().listen("127.0.0.1:0".parse()?).bind().await?;
    let at_hub = viewer.connect(hub.ticket()).await?;
    let mut watch = at_hub.watch("cam*").await?;
    let Presence::Online(found) = next(&mut watch).await? else { return Err("the camera should be there".into()) };
    let room = String::from_utf8_lossy(found.value("room").unwrap_or_default()).into_owned();
    println!("{} {} in the {room}", found.name, found.service().map(|service| service.version).unwrap_or_default());

    // The hub says who the camera is and where; the picture comes straight from it.
    let cameras = viewer.providers("camera", &at_hub)?;
    let mut rows = cameras.request("picture").server_stream::<_, Vec<u8>>(&12u32).await?;
    let mut bytes = 0;
    while let Some(row) = rows.next().await? {
        bytes += row.len();
    }
    println!("a picture of {bytes} bytes");
    assert_eq!((room.as_str(), bytes), ("porch", 12 * 32));

    // The camera loses its power: nobody says goodbye, and its name is free for it when it is back.
    drop((registered, node));
    let gone = next(&mut watch).await?;
    println!("it is gone: {}", matches!(gone, Presence::Offline(_) | Presence::Withdrawn(_)));
    let (node, _registered) = camera(key, &hub).await?;
    loop {
        match next(&mut watch).await? {
            Presence::Online(again) => {
                assert!(again.provider == found.provider && again.epoch > found.epoch);
                println!("it is back");
                break;
            }
            Presence::Offline(_) | Presence::Withdrawn(_) => {}
            other => return Err(format!("{other:?}").into()),
        }
    }
    for node in [viewer, node, hub] {
        node.shutdown().await;
    }
    Ok(())
}
