//! One typed handler, called in bincode by a program that shares its types and in JSON by one that has only read the service's
//! description: the caller chooses how its messages are written, the handler never notices.
//!
//! Run it: `cargo run --example typed_json`

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use voltmesh::proto::body::ContentType;
use voltmesh::proto::status::{Code, Status};
use voltmesh::{CallError, Node, Service};

/// A place and a day. Field docs become descriptions in the schema.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Question {
    /// Name of the place.
    place: String,
    /// Days from today, 0 to 6.
    #[serde(default)]
    in_days: u8,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
struct Forecast {
    celsius: f32,
    rain: bool,
}

async fn forecast(question: Question) -> Result<Forecast, Status> {
    match question.in_days {
        0..=6 => Ok(Forecast { celsius: question.place.len() as f32, rain: question.in_days % 2 == 1 }),
        days => Err(Status::new(Code::OutOfRange, format!("nobody knows what comes in {days} days"))),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let weather = Service::new("weather")
        .version("1.2")
        .describe("What the sky will do")
        .unary("forecast", |_cx, question: Question| forecast(question))
        .describe("The forecast for one day at one place");
    let server = Node::builder().listen("127.0.0.1:0".parse()?).open(true).service(weather).bind().await?;
    let client = Node::builder().listen("127.0.0.1:0".parse()?).bind().await?;
    let session = client.connect(server.ticket()).await?;

    // With the types: bincode, unless asked otherwise.
    let question = Question { place: "Ghent".into(), in_days: 1 };
    let typed: Forecast = session.call("weather/forecast", &question).await?;
    println!("bincode: {typed:?}");

    // Without them: what is there, and what does it take?
    for service in session.services().await? {
        println!("{} {}: {}", service.name, service.version, service.description);
        for method in service.methods {
            println!("  {}, {}: {}", method.name, method.shape.name(), method.description);
            println!("  takes {}", serde_json::to_string(&method.request)?);
            println!("  gives {}", serde_json::to_string(&method.reply)?);
        }
    }

    // The same handler answers JSON. This is what `volt call` and the browser do.
    let request = session.request("weather/forecast").content_type(ContentType::Json);
    let untyped: serde_json::Value = request.unary(&json!({ "place": "Ghent", "in_days": 1 })).await?;
    println!("json: {untyped}");
    assert_eq!(serde_json::from_value::<Forecast>(untyped)?, typed);

    // A body that does not fit is refused before the handler runs; what the handler refuses comes with its own code.
    for (body, code) in [(json!({ "place": 7 }), Code::InvalidArgument), (json!({ "place": "", "in_days": 9 }), Code::OutOfRange)]
    {
        let request = session.request("weather/forecast").content_type(ContentType::Json);
        let refused: Result<serde_json::Value, CallError> = request.unary(&body).await;
        let error = refused.err().ok_or("it was answered")?;
        println!("{body}: {error}");
        assert_eq!(error.code(), code);
    }

    client.shutdown().await;
    server.shutdown().await;
    Ok(())
}
