//! Calls with an idempotency key between two nodes on real UDP: executed once, however often they are made.

mod support;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use support::{Alive, Pair, disconnected, echo, join_directly, loopback, open_node, pair, soon, until};
use tokio::sync::Semaphore;
use voltmesh::id::SecretKey;
use voltmesh::node::config::Config;
use voltmesh::policy::{Action, Effect, Rule, Source, Subject};
use voltmesh::proto::body::ContentType;
use voltmesh::proto::call::Shape;
use voltmesh::proto::limits::{IDEMPOTENCY_KEY_BYTES, Limits, REPLAY_ANSWER_BYTES};
use voltmesh::proto::status::{Code, Status};
use voltmesh::service::Call;
use voltmesh::{CallError, Node, Outcome, Receiver, Sender, Service};

/// A bank whose payments end when the test lets them.
#[derive(Clone)]
struct Bank {
    begun: Arc<AtomicU32>,
    /// A permit for each payment that may end.
    leave: Arc<Semaphore>,
    handlers: Alive,
    keys: Arc<std::sync::Mutex<HashSet<Vec<u8>>>>,
}

impl Bank {
    fn new(leave: usize) -> Self {
        let leave = Arc::new(Semaphore::new(leave));
        Self { begun: Arc::default(), leave, handlers: Alive::new().0, keys: Arc::default() }
    }

    fn service(&self) -> Service {
        let (pay, refuse, panics, statement, spawned, blocking, count) =
            (self.clone(), self.clone(), self.clone(), self.clone(), self.clone(), self.clone(), self.clone());
        Service::new("bank")
            .unary("pay", move |cx, amount: u64| pay.clone().pay(cx.idempotency_key().map(<[u8]>::to_vec), amount))
            .unary("refuse", move |_cx, ()| {
                let number = refuse.begun.fetch_add(1, SeqCst);
                async move { Err::<(), _>(Status::new(Code::Unavailable, format!("closed, says number {number}"))) }
            })
            .unary("panic", move |_cx, ()| {
                let number = panics.begun.fetch_add(1, SeqCst);
                async move { if number == 0 { panic!("as the test wants it") } else { Ok(number) } }
            })
            .unary("statement", move |_cx, bytes: usize| {
                statement.begun.fetch_add(1, SeqCst);
                async move { Ok("x".repeat(bytes)) }
            })
            .unary("spawned", move |_cx, amount: u64| spawned.clone().pay(None, amount))
            .spawned()
            .unary("blocking", move |_cx, amount: u64| blocking.clone().pay(None, amount))
            .blocking()
            .server_stream("count", move |_cx, (), mut out: Sender<u32>| {
                let number = count.begun.fetch_add(1, SeqCst);
                async move { out.send(&number).await }
            })
    }

    async fn pay(self, key: Option<Vec<u8>>, amount: u64) -> Result<(u32, u64), Status> {
        let _life = self.handlers.begin();
        if let Some(key) = key {
            self.keys.lock().unwrap().insert(key);
        }
        let number = self.begun.fetch_add(1, SeqCst);
        self.leave.acquire().await.unwrap().forget();
        Ok((number, amount))
    }

    fn begun(&self) -> u32 {
        self.begun.load(SeqCst)
    }
}

/// Two nodes, of which `b` is the bank.
async fn bank(leave: usize) -> (Pair, Bank) {
    let bank = Bank::new(leave);
    (pair(echo(), bank.service()).await, bank)
}

fn pay(call: Call<'_>) -> impl Future<Output = Result<(u32, u64), CallError>> {
    soon(call.unary(&100u64))
}

#[tokio::test]
async fn a_call_made_again_is_answered_and_not_executed() {
    let (pair, bank) = bank(9).await;
    for method in ["bank/pay", "bank/spawned", "bank/blocking"] {
        let begun = bank.begun();
        let call = pair.to_b.request(method).idempotency_key(*b"k");
        assert_eq!(pay(call.clone()).await.unwrap(), (begun, 100), "{method}");
        assert_eq!(pay(call).await.unwrap(), (begun, 100), "{method}");
        assert_eq!(bank.begun(), begun + 1, "{method}");
    }
    // Without a key, with another one, and by another caller it is another call.
    assert_eq!(pay(pair.to_b.request("bank/pay")).await.unwrap().0, 3);
    assert_eq!(pay(pair.to_b.request("bank/pay").idempotency_key(*b"l")).await.unwrap().0, 4);
    let c = open_node(echo()).await;
    let from_c = soon(c.connect(pair.b.ticket())).await.unwrap();
    assert_eq!(pay(from_c.request("bank/pay").idempotency_key(*b"k")).await.unwrap().0, 5);
    assert_eq!(pair.b.counts().repeated_calls, 3);
    soon(c.shutdown()).await;
    pair.shutdown().await;
}

#[tokio::test]
async fn each_call_that_is_marked_has_a_key_of_its_own_and_its_clones_have_the_same() {
    let (pair, bank) = bank(9).await;
    let marked = pair.to_b.request("bank/pay").idempotent();
    assert_eq!(pay(marked.clone()).await.unwrap(), pay(marked.clone().idempotent()).await.unwrap());
    assert_ne!(pay(marked).await.unwrap(), pay(pair.to_b.request("bank/pay").idempotent()).await.unwrap());
    let keys = bank.keys.lock().unwrap().clone();
    assert_eq!(keys.iter().map(Vec::len).collect::<Vec<_>>(), [16, 16]);
    // One that was chosen stays.
    pay(pair.to_b.request("bank/pay").idempotency_key([7; IDEMPOTENCY_KEY_BYTES]).idempotent()).await.unwrap();
    assert!(bank.keys.lock().unwrap().contains(&vec![7; IDEMPOTENCY_KEY_BYTES]));
    pair.shutdown().await;
}

#[tokio::test]
async fn a_hundred_at_once_with_one_key_run_once() {
    let (pair, bank) = bank(0).await;
    for method in ["bank/pay", "bank/spawned", "bank/blocking"] {
        let begun = bank.begun();
        let joined = pair.b.counts().repeated_calls;
        let calls: Vec<_> = (0..100)
            .map(|_| {
                let to_b = pair.to_b.clone();
                tokio::spawn(async move { to_b.request(method).idempotency_key(*b"one").unary::<_, (u32, u64)>(&100u64).await })
            })
            .collect();
        until(|| pair.b.counts().repeated_calls == joined + 99).await;
        // None holds up the others.
        pair.to_b.services().await.unwrap();
        bank.leave.add_permits(1);
        for answer in soon(join_all(calls)).await {
            assert_eq!(answer.unwrap().unwrap(), (begun, 100));
        }
        assert_eq!((bank.begun(), bank.handlers.most()), (begun + 1, 1), "{method}");
    }
    pair.shutdown().await;
}

#[tokio::test]
async fn the_same_key_for_another_request_is_refused() {
    let (pair, bank) = bank(0).await;
    let call = || pair.to_b.request("bank/pay").idempotency_key(*b"k");
    let running = tokio::spawn({
        let to_b = pair.to_b.clone();
        async move { to_b.request("bank/pay").idempotency_key(*b"k").unary::<_, (u32, u64)>(&100u64).await }
    });
    until(|| bank.begun() == 1).await;
    let error = soon(call().unary::<_, (u32, u64)>(&101u64)).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    bank.leave.add_permits(1);
    assert_eq!(soon(running).await.unwrap().unwrap(), (0, 100));
    let error = soon(call().unary::<_, (u32, u64)>(&101u64)).await.unwrap_err();
    assert_eq!((error.code(), error.outcome()), (Code::FailedPrecondition, Outcome::Answered));
    // An answer in another content type would be another answer.
    let error = soon(call().content_type(ContentType::Json).unary::<_, (u32, u64)>(&100u64)).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    // Metadata and deadlines may differ.
    assert_eq!(pay(call().metadata("attempt", b"2").timeout(Duration::from_secs(9))).await.unwrap(), (0, 100));
    assert_eq!((bank.begun(), pair.b.counts().refused_keys), (1, 3));
    pair.shutdown().await;
}

#[tokio::test]
async fn an_answer_too_large_to_keep_is_given_once_and_its_call_never_executed_again() {
    let (pair, bank) = bank(0).await;
    let statement = |key: &'static [u8], bytes: usize| {
        let call = pair.to_b.request("bank/statement").content_type(ContentType::Json).idempotency_key(key);
        async move { soon(call.unary::<_, String>(&bytes)).await.map(|text| text.len()) }
    };
    // With its quotes the first is just small enough.
    let most = REPLAY_ANSWER_BYTES - 2;
    for _ in 0..2 {
        assert_eq!(statement(b"kept", most).await.unwrap(), most);
    }
    assert_eq!(statement(b"lost", most + 1).await.unwrap(), most + 1);
    let error = statement(b"lost", most + 1).await.unwrap_err();
    assert_eq!((error.code(), error.outcome()), (Code::AlreadyExists, Outcome::Answered), "{error}");
    assert_eq!((bank.begun(), pair.b.counts().forgotten_calls), (2, 1));
    pair.shutdown().await;
}

#[tokio::test]
async fn a_large_body_is_compared_too() {
    let text = Service::new("text").unary("length", |_cx, text: String| async move { Ok(text.len()) });
    let pair = pair(echo(), text).await;
    let call = || pair.to_b.request("text/length").idempotency_key(*b"k");
    let mut large = "x".repeat(3 << 20);
    for _ in 0..2 {
        assert_eq!(soon(call().unary::<_, usize>(&large)).await.unwrap(), large.len());
    }
    large.replace_range(large.len() - 1.., "y");
    assert_eq!(soon(call().unary::<_, usize>(&large)).await.unwrap_err().code(), Code::FailedPrecondition);
    pair.shutdown().await;
}

#[tokio::test]
async fn the_handlers_error_is_its_answer_and_is_not_asked_for_again() {
    let (pair, bank) = bank(0).await;
    let call = pair.to_b.request("bank/refuse").idempotent();
    for _ in 0..2 {
        let error = soon(call.clone().unary::<_, ()>(&())).await.unwrap_err();
        assert_eq!(error, CallError::Status(Status::new(Code::Unavailable, "closed, says number 0")));
    }
    assert_eq!(bank.begun(), 1);
    pair.shutdown().await;
}

#[tokio::test]
async fn a_handler_that_panics_frees_its_key() {
    let (pair, _bank) = bank(0).await;
    let call = pair.to_b.request("bank/panic").idempotent();
    assert_eq!(soon(call.clone().unary::<_, u32>(&())).await.unwrap_err().code(), Code::Internal);
    for _ in 0..2 {
        assert_eq!(soon(call.clone().unary::<_, u32>(&())).await.unwrap(), 1);
    }
    pair.shutdown().await;
}

#[tokio::test]
async fn the_first_caller_gives_up_and_the_handler_goes_on_for_the_second() {
    let (pair, bank) = bank(0).await;
    for method in ["bank/pay", "bank/spawned"] {
        let begun = bank.begun();
        let call = pair.to_b.request(method).idempotency_key(*b"k");
        let joined = pair.b.counts().repeated_calls;
        // The first waits for less long than the second.
        let mut first = Box::pin(call.clone().timeout(Duration::from_millis(500)).unary::<_, (u32, u64)>(&100u64));
        assert!(first.as_mut().now_or_never().is_none());
        until_polling(&mut first, || bank.begun() == begun + 1).await;
        let mut second = Box::pin(call.unary::<_, (u32, u64)>(&100u64));
        until_polling(&mut second, || pair.b.counts().repeated_calls == joined + 1).await;
        let error = soon(first).await.unwrap_err();
        assert_eq!(error.code(), Code::DeadlineExceeded);
        // What the first caller says arrives before this.
        pair.to_b.services().await.unwrap();
        assert_eq!(bank.handlers.now(), 1, "{method}");
        bank.leave.add_permits(1);
        assert_eq!(soon(second).await.unwrap(), (begun, 100));
        assert_eq!(bank.begun(), begun + 1);
    }
    pair.shutdown().await;
}

#[tokio::test]
async fn nobody_waits_any_more_and_the_handler_is_dropped_and_its_key_free() {
    let (pair, bank) = bank(0).await;
    for method in ["bank/pay", "bank/spawned"] {
        let begun = bank.begun();
        let call = pair.to_b.request(method).idempotency_key(*b"k");
        let joined = pair.b.counts().repeated_calls;
        let mut both = Box::pin(join_all([call.clone().unary::<_, (u32, u64)>(&100u64), call.clone().unary(&100u64)]));
        until_polling(&mut both, || pair.b.counts().repeated_calls == joined + 1).await;
        assert_eq!((bank.begun(), bank.handlers.now()), (begun + 1, 1));
        drop(both);
        until(|| bank.handlers.now() == 0).await;
        bank.leave.add_permits(1);
        // Also for another request.
        assert_eq!(soon(call.unary::<_, (u32, u64)>(&7u64)).await.unwrap(), (begun + 1, 7), "{method}");
    }
    pair.shutdown().await;
}

/// Goes on with a call until this is so.
async fn until_polling<T>(call: &mut (impl Future<Output = T> + Unpin), so: impl Fn() -> bool) {
    tokio::select! {
        biased;
        _ = call => panic!("it is not to end yet"),
        () = until(so) => {}
    }
}

#[tokio::test]
async fn policy_is_asked_before_the_record() {
    let (pair, bank) = bank(1).await;
    let call = pair.to_b.request("bank/pay").idempotency_key(*b"k");
    pay(call.clone()).await.unwrap();
    let deny = Rule::new(Effect::Deny, Subject::Node(pair.a.id()), Action::Call, "bank/*".parse().unwrap(), Source::Store);
    pair.b.add_rule(deny.unwrap()).await.unwrap();
    assert_eq!(pay(call).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(bank.begun(), 1);
    pair.shutdown().await;
}

#[tokio::test]
async fn a_raw_handler_of_a_unary_method_is_executed_once_too() {
    let begun = Arc::new(AtomicU32::new(0));
    let raw = Service::new("raw").raw("pay", Shape::Unary, {
        let begun = begun.clone();
        move |_cx, mut requests: Receiver<_>, mut replies: Sender<_>| {
            begun.fetch_add(1, SeqCst);
            async move {
                let request = requests.next_raw().await?.expect("there is one");
                assert!(requests.next_raw().await?.is_none());
                match &request[..] {
                    b"none" => Ok(()),
                    b"refuse" => Err(Status::new(Code::Aborted, "no")),
                    b"two" => {
                        replies.send_raw(b"1".to_vec()).await?;
                        replies.send_raw(b"2".to_vec()).await
                    }
                    _ => replies.send_raw(request.to_vec()).await,
                }
            }
        }
    });
    let pair = pair(echo(), raw).await;
    for (body, code) in [("hello", Code::Ok), ("none", Code::Internal), ("refuse", Code::Aborted), ("two", Code::Internal)] {
        let before = begun.load(SeqCst);
        let call = pair.to_b.request("raw/pay").content_type(ContentType::Raw).idempotency_key(body);
        for _ in 0..2 {
            match soon(call.clone().unary_raw(body.into())).await {
                Ok(answer) => assert_eq!((code, &answer[..]), (Code::Ok, body.as_bytes())),
                Err(error) => assert_eq!(error.code(), code, "{body}: {error}"),
            }
        }
        assert_eq!(begun.load(SeqCst), before + 1, "{body}");
    }
    pair.shutdown().await;
}

#[tokio::test]
async fn on_calls_that_stream_the_key_is_the_handlers_only() {
    let (pair, bank) = bank(0).await;
    for number in 0..2 {
        let call = pair.to_b.request("bank/count").idempotency_key(*b"k");
        let mut count = soon(call.server_stream::<_, u32>(&())).await.unwrap();
        assert_eq!(soon(count.next()).await.unwrap(), Some(number));
    }
    assert_eq!(bank.begun(), 2);
    pair.shutdown().await;
}

#[tokio::test]
async fn a_marked_call_is_sent_again_when_its_session_ended_and_others_are_not() {
    let (pair, bank) = bank(0).await;
    let mut marked = Box::pin(pair.to_b.request("bank/pay").idempotent().unary::<_, (u32, u64)>(&100u64));
    until_polling(&mut marked, || bank.begun() == 1).await;
    let mut plain = Box::pin(pair.to_b.request("bank/pay").unary::<_, (u32, u64)>(&7u64));
    until_polling(&mut plain, || bank.begun() == 2).await;
    let mut hasty = Box::pin(pair.to_b.request("bank/pay").idempotent().fail_fast().unary::<_, (u32, u64)>(&7u64));
    until_polling(&mut hasty, || bank.begun() == 3).await;
    let mut events = pair.a.events();
    pair.to_a.close();
    let both = soon(async { tokio::join!(biased; plain, hasty, disconnected(&mut events, pair.b.id())) });
    let (plain, hasty, _) = tokio::select! {
        biased;
        _ = &mut marked => panic!("it is not to end yet"),
        ended = both => ended,
    };
    for error in [plain.unwrap_err(), hasty.unwrap_err()] {
        assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
    }
    bank.leave.add_permits(1);
    let (_, amount) = soon(marked).await.unwrap();
    assert_eq!(amount, 100);
    // The handler of the first attempt was dropped with its session, and begun anew; or the second came in before, and joined it.
    let joined = u32::try_from(pair.b.counts().repeated_calls).unwrap();
    assert_eq!((bank.begun() + joined, bank.keys.lock().unwrap().len()), (4, 2));
    pair.shutdown().await;
}

#[tokio::test]
async fn an_answer_that_was_lost_with_its_session_is_there_for_the_next() {
    let (pair, bank) = bank(9).await;
    let call = pair.to_b.request("bank/pay").idempotency_key(*b"k");
    assert_eq!(pay(call.clone()).await.unwrap(), (0, 100));
    pair.to_a.close();
    let mut events = pair.a.events();
    disconnected(&mut events, pair.b.id()).await;
    assert_eq!(pay(call).await.unwrap(), (0, 100));
    assert_eq!(bank.begun(), 1);
    pair.shutdown().await;
}

/// A bank with this key at this address, which goes down without waiting for its calls.
async fn at(address: std::net::SocketAddr, key: &SecretKey, bank: &Bank) -> Node {
    let limits = Limits { drain: Duration::ZERO, ..Limits::default() };
    let config = Config { limits, ..Config::default() };
    let builder = || Node::builder().config(config.clone()).open(true).listen(address).key(key.clone()).service(bank.service());
    // The port is free when the last of the calls that were cut off is dropped.
    soon(async {
        loop {
            match builder().bind().await {
                Ok(node) => return node,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_marked_call_is_sent_again_to_a_callee_that_was_restarted_and_has_forgotten() {
    let (bank, key) = (Bank::new(0), SecretKey::generate());
    let Pair { a, b, to_b, to_a } = join_directly(open_node(echo()).await, at(loopback(), &key, &bank).await).await;
    let address = b.listening()[0];
    let mut call = Box::pin(to_b.request("bank/pay").idempotent().unary::<_, (u32, u64)>(&100u64));
    until_polling(&mut call, || bank.begun() == 1).await;
    let restarted = soon(async {
        tokio::select! {
            biased;
            _ = &mut call => panic!("it is not to end yet"),
            restarted = async {
                b.shutdown().await;
                drop((b, to_a));
                at(address, &key, &bank).await
            } => restarted,
        }
    });
    let restarted = restarted.await;
    bank.leave.add_permits(1);
    assert_eq!(soon(call).await.unwrap(), (1, 100));
    // A new process knows nothing of the one before: what was done is done again, unless the handler remembers the key.
    assert_eq!((bank.begun(), bank.keys.lock().unwrap().len()), (2, 1));
    soon(async { tokio::join!(a.shutdown(), restarted.shutdown()) }).await;
}

#[tokio::test]
async fn a_marked_call_whose_session_never_comes_back_ends_at_its_deadline() {
    let (bank, key) = (Bank::new(0), SecretKey::generate());
    let pair = join_directly(open_node(echo()).await, at(loopback(), &key, &bank).await).await;
    let call = pair.to_b.request("bank/pay").timeout(Duration::from_millis(700)).idempotent();
    let mut call = Box::pin(call.unary::<_, (u32, u64)>(&100u64));
    until_polling(&mut call, || bank.begun() == 1).await;
    let (ended, ()) = soon(async { tokio::join!(biased; call, pair.b.shutdown()) }).await;
    assert_eq!(ended.unwrap_err().outcome(), Outcome::Unknown);
    soon(pair.a.shutdown()).await;
}
