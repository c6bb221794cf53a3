//! What lanes do for the streams of a circuit, seen from above: nothing but that small ones are fast.

use std::time::Instant;

use super::*;

/// Answers every stream with what came on it.
fn echo(link: Link) {
    tokio::spawn(async move {
        while let Ok((mut send, mut recv)) = link.accept().await {
            tokio::spawn(async move {
                let mut whole = Vec::new();
                while let Ok(Some(bytes)) = recv.read().await {
                    whole.extend_from_slice(&bytes);
                }
                let _ = send.write(whole.into()).await;
                let _ = send.finish();
            });
        }
    });
}

/// A call: its body there and back.
async fn call(link: &Link, body: Bytes, alone: bool) -> Vec<u8> {
    let (mut send, mut recv) = link.open().await.unwrap();
    if alone {
        send.urgent();
    }
    send.write(body).await.unwrap();
    send.finish().unwrap();
    read_all(&mut recv).await.unwrap()
}

/// How many echoes of 64 bytes a circuit carries in a second. Prints; asserts nothing. Run it with `--release -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn measure_small_echoes_over_a_circuit() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for (name, alone) in [("lanes", false), ("a stream for each direction of each call", true)] {
            let ends = circuit(faithful).await.unwrap();
            echo(ends.b.clone());
            for flights in [1usize, 64] {
                let calls = if flights == 1 { 2_000 } else { 50_000 };
                let begun = Instant::now();
                let mut all = tokio::task::JoinSet::new();
                for _ in 0..flights {
                    let link = ends.a.clone();
                    all.spawn(async move {
                        for _ in 0..calls / flights {
                            call(&link, Bytes::from_static(&[7; 64]), alone).await;
                        }
                    });
                }
                all.join_all().await;
                let took = begun.elapsed();
                let rate = calls as f64 / took.as_secs_f64();
                println!("{name}, {flights} in flight: {rate:.0} calls/s, {:.1} us each", took.as_micros() as f64 / calls as f64);
            }
        }
    });
}
