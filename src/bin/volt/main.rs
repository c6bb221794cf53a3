mod bench;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    if a.get(1).map(|s| s.as_str()) == Some(bench::SERVER_COMMAND) {
        bench::serve(&a[2]).unwrap();
        return;
    }
    let only = match a.get(1).map(|s| s.as_str()) {
        Some("unary") => Some(bench::Group::Unary),
        Some("stream") => Some(bench::Group::Stream),
        Some("sessions") => Some(bench::Group::Sessions),
        _ => None,
    };
    bench::run(
        &bench::Options { only, json: true, rounds: a.get(2).map_or(5, |n| n.parse().unwrap()), ..Default::default() },
        &mut std::io::stdout(),
        &mut std::io::stderr(),
    )
    .unwrap();
}
