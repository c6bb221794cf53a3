use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::AtomicBool;

use tokio::task::JoinHandle;

use super::*;

fn turns() -> Turns {
    Turns::new(Handle::current())
}

/// Takes the thread for so long.
fn work(for_so_long: Duration) {
    let began = std::time::Instant::now();
    while began.elapsed() < for_so_long {
        std::hint::spin_loop();
    }
}

/// Has something to do all the time, a whole turn each, and counts.
fn busy(account: &Account) -> (JoinHandle<()>, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let task = tokio::spawn(account.in_turn(async move {
        loop {
            work(TURN);
            counted.fetch_add(1, Relaxed);
            // Ready again at once, unlike after `yield_now`, which lets everybody else go first.
            poll_once_more().await;
        }
    }));
    (task, count)
}

async fn poll_once_more() {
    let mut again = true;
    std::future::poll_fn(|cx| {
        cx.waker().wake_by_ref();
        if std::mem::take(&mut again) { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
}

/// A step after the other, each of which takes next to nothing and is made by another task.
async fn chain(account: &Account, steps: usize) {
    let (to_one, mut one) = tokio::sync::mpsc::channel::<()>(1);
    let (to_two, mut two) = tokio::sync::mpsc::channel::<()>(1);
    let other = tokio::spawn(account.in_turn(async move {
        while one.recv().await.is_some() {
            to_two.send(()).await.unwrap();
        }
    }));
    let this = tokio::spawn(account.in_turn(async move {
        for _ in 0..steps {
            to_one.send(()).await.unwrap();
            two.recv().await.unwrap();
        }
    }));
    this.await.unwrap();
    other.await.unwrap();
}

/// How many turns busy ones have while somebody makes 100 steps forth and back, which take what they take.
async fn turns_beside_a_chain(busy_ones: usize) -> usize {
    let turns = turns();
    let busy: Vec<_> = (0..busy_ones).map(|_| busy(&turns.account())).collect();
    // Both have to have been seen.
    let honest = turns.account();
    chain(&honest, 10).await;
    let count = || busy.iter().map(|(_, count)| count.load(Relaxed)).sum::<usize>();
    let before = count();
    chain(&honest, 100).await;
    let meanwhile = count() - before;
    busy.iter().for_each(|(task, _)| task.abort());
    meanwhile
}

/// What other programs of the machine take from a step is charged to it, so only the least of a few attempts says anything.
async fn least<F: Future<Output = usize>>(attempt: impl Fn() -> F) -> usize {
    let mut least = usize::MAX;
    for _ in 0..10 {
        least = least.min(attempt().await);
    }
    least
}

#[tokio::test]
async fn who_takes_little_does_not_wait_at_each_step() {
    // Without turns there is one of a busy one's at each of the 200 steps.
    let meanwhile = least(|| turns_beside_a_chain(1)).await;
    assert!(meanwhile < 70, "{meanwhile} turns");
}

#[tokio::test]
async fn nor_for_each_of_many() {
    let meanwhile = least(|| turns_beside_a_chain(20)).await;
    assert!(meanwhile < 20 * 70, "{meanwhile} turns");
}

#[tokio::test]
async fn who_wants_the_same_gets_the_same() {
    let turns = turns();
    let busy: Vec<_> = (0..4).map(|_| busy(&turns.account())).collect();
    let all = || busy.iter().map(|(_, count)| count.load(Relaxed)).collect::<Vec<_>>();
    while all().iter().sum::<usize>() < 400 {
        tokio::task::yield_now().await;
    }
    let counts = all();
    busy.iter().for_each(|(task, _)| task.abort());
    let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
    // What a machine that others use takes from one of them is made up for.
    assert!(*least * 3 > *most, "{counts:?}");
}

#[tokio::test]
async fn nobody_saves_up_turns_while_it_is_idle() {
    let meanwhile = least(|| async {
        let turns = turns();
        let (idle, honest) = (turns.account(), turns.account());
        idle.in_turn(async {}).await;
        // All this time the other one takes what there is.
        for _ in 0..100 {
            honest.in_turn(async { work(TURN) }).await;
        }
        let (task, count) = busy(&idle);
        chain(&honest, 100).await;
        task.abort();
        count.load(Relaxed)
    });
    let meanwhile = meanwhile.await;
    assert!(meanwhile < 70, "{meanwhile} turns");
}

#[tokio::test]
async fn who_takes_less_than_its_share_never_waits() {
    let waits = least(|| async {
        let turns = turns();
        let accounts = [turns.account(), turns.account()];
        for _ in 0..50 {
            for account in &accounts {
                account.in_turn(async { work(TURN / 2) }).await;
            }
            // The thread has something else to do, or nothing at all.
            work(TURN);
        }
        turns.waiting().came as usize
    });
    assert_eq!(waits.await, 0);
}

#[tokio::test]
async fn alone_nobody_waits() {
    let turns = turns();
    let (task, count) = busy(&turns.account());
    while count.load(Relaxed) < 50 {
        tokio::task::yield_now().await;
    }
    assert_eq!(turns.waiting().came, 0);
    task.abort();
}

#[tokio::test]
async fn a_thousand_tasks_of_one_peer_are_one_peer() {
    let turns = turns();
    let (account, honest) = (turns.account(), turns.account());
    let done = Arc::new(AtomicUsize::new(0));
    let go = Arc::new(tokio::sync::Semaphore::new(0));
    let many: Vec<_> = (0..1_000)
        .map(|_| {
            let (done, go) = (done.clone(), go.clone());
            tokio::spawn(account.in_turn(async move {
                drop(go.acquire().await);
                work(Duration::from_micros(20));
                done.fetch_add(1, Relaxed);
            }))
        })
        .collect();
    tokio::task::yield_now().await;
    chain(&honest, 10).await;
    go.add_permits(1_000);
    chain(&honest, 10).await;
    assert!(done.load(Relaxed) < 500, "{} were done first", done.load(Relaxed));
    for task in many {
        task.await.unwrap();
    }
    assert!(turns.waiting().peers.is_empty());
}

#[tokio::test]
async fn who_is_dropped_while_it_waits_waits_no_more() {
    let turns = turns();
    let (one, other) = (turns.account(), turns.account());
    other.in_turn(async {}).await;
    one.in_turn(async { work(4 * TURN) }).await;
    let mut waiting = Box::pin(one.in_turn(async {}));
    assert!(futures_util::poll!(waiting.as_mut()).is_pending());
    assert_eq!(turns.waiting().peers.len(), 1);
    drop(waiting);
    assert!(turns.waiting().peers.is_empty());
    // The next one is let in all the same.
    one.in_turn(async {}).await;
}

#[tokio::test]
async fn woken_by_something_else_it_waits_on_with_the_new_waker() {
    let turns = turns();
    let (one, other) = (turns.account(), turns.account());
    other.in_turn(async {}).await;
    one.in_turn(async { work(4 * TURN) }).await;
    let mut waiting = Box::pin(one.in_turn(async { 7 }));
    // Each time twice at once; it is the same place.
    let done = std::future::poll_fn(|cx| match waiting.as_mut().poll(cx) {
        Poll::Pending => waiting.as_mut().poll(cx),
        ready => ready,
    });
    assert_eq!(done.await, 7);
    assert_eq!(turns.waiting().came, 1);
}

#[tokio::test]
async fn one_account_pays_for_another() {
    let turns = turns();
    let (link, session, other) = (turns.account(), turns.account(), turns.account());
    link.paid_by(&session);
    // Not by itself, and not twice.
    session.paid_by(&session);
    link.paid_by(&other);
    link.in_turn(async { work(TURN) }).await;
    assert!(session.had_its_turn());
    assert_eq!([&link, &other].map(|account| account.0.end.load(Relaxed)), [0, 0]);
}

#[tokio::test]
async fn what_is_spawned_within_belongs_to_the_account() {
    let account = turns().account();
    assert!(Account::spawned().is_none());
    account.spawning(|| {
        assert!(Arc::ptr_eq(&Account::spawned().unwrap().0, &account.0));
        assert!(Account::spawned().is_none(), "only the first");
    });
    account.spawning(|| ());
    assert!(Account::spawned().is_none());
}

#[tokio::test]
async fn what_a_task_may_do_at_a_time_follows_what_it_takes() {
    let turns = turns();
    let (one, other) = (turns.account(), turns.account());
    other.in_turn(async {}).await;
    one.in_turn(async {}).await;
    let most = Rc::new(Cell::new(0));
    let (seen, ended) = (most.clone(), AtomicBool::new(false));
    // Each thing it does takes half a turn: after a while it does one or two at a time.
    let task = async {
        let mut at_a_time = 0;
        for nth in 0..100 {
            work(TURN / 2);
            at_a_time += 1;
            let mut consuming = pin!(consume_budget());
            if futures_util::poll!(consuming.as_mut()).is_pending() {
                if nth > 50 {
                    seen.set(seen.get().max(at_a_time));
                }
                at_a_time = 0;
                consuming.await;
            }
        }
        ended.store(true, Relaxed);
    };
    one.in_turn(task).await;
    assert!(ended.load(Relaxed));
    assert!(most.get() <= 4, "{} at a time", most.get());
}
