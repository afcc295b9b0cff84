use super::*;

const MIB: usize = 1 << 20;

fn writes(mib: u64) -> IoLimits {
    IoLimits { max_write_bandwidth: Some(mib << 20), ..IoLimits::default() }
}

fn later(admission: Admission) -> Delay {
    match admission {
        Admission::Later(delay) => delay,
        other => panic!("{other:?}"),
    }
}

/// The seconds until a call is due that is charged now.
async fn secs(throttle: &Arc<Throttle>, io: Io, bytes: usize) -> f64 {
    let begun = Instant::now();
    match throttle.admit(io, bytes) {
        Admission::Now => 0.0,
        Admission::Later(delay) => {
            delay.passed().await;
            begun.elapsed().as_secs_f64()
        }
        Admission::Refused => panic!("refused"),
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_volume_saves_up_a_second() {
    let throttle = Throttle::new(writes(2));
    for _ in 0..3 {
        tokio::time::advance(Duration::from_secs(100)).await;
        for due in [0.0, 0.0, 0.5, 0.5] {
            let waited = secs(&throttle, Io::Write, MIB).await;
            assert!((waited - due).abs() < 0.01, "{waited} instead of {due}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn each_limit_is_of_its_kind_and_the_longer_wait_holds() {
    let limits = IoLimits { max_iops: Some(10), ..writes(1) };
    let throttle = Throttle::new(limits);
    assert!(matches!(throttle.admit(Io::Write, MIB), Admission::Now));
    let write = later(throttle.admit(Io::Write, MIB));
    for _ in 0..8 {
        assert!(matches!(throttle.admit(Io::Read, 50 * MIB), Admission::Now));
    }
    let begun = Instant::now();
    later(throttle.admit(Io::Read, MIB)).passed().await;
    assert_eq!(begun.elapsed().as_millis() / 10, 10, "the eleventh call");
    write.passed().await;
    assert_eq!(begun.elapsed().as_millis() / 10, 100, "the second MiB");
}

#[tokio::test(start_paused = true)]
async fn calls_are_due_in_their_order_and_late_ones_are_not_charged() {
    let throttle = Throttle::new(writes(1));
    let mut waiting = Vec::new();
    loop {
        match throttle.admit(Io::Write, MIB) {
            Admission::Now => {}
            Admission::Later(delay) => waiting.push(delay),
            Admission::Refused => break,
        }
    }
    assert_eq!(waiting.len(), 30);
    for _ in 0..1000 {
        assert!(matches!(throttle.admit(Io::Write, MIB), Admission::Refused));
    }
    let begun = Instant::now();
    for (delay, secs) in waiting.into_iter().zip(1..) {
        delay.passed().await;
        assert_eq!(rounded(begun), secs);
    }
    assert!((secs(&throttle, Io::Write, MIB).await - 1.0).abs() < 0.01);
}

/// Seconds since then.
fn rounded(begun: Instant) -> u64 {
    (begun.elapsed() + Duration::from_millis(500)).as_secs()
}

#[tokio::test(start_paused = true)]
async fn a_changed_limit_holds_for_those_that_wait() {
    let throttle = Throttle::new(writes(1));
    assert!(matches!(throttle.admit(Io::Write, MIB), Admission::Now));
    let slow = later(throttle.admit(Io::Write, 20 * MIB));
    let begun = Instant::now();
    let waiting = tokio::spawn(async move { slow.passed().await });
    tokio::time::sleep(Duration::from_secs(10)).await;
    throttle.set(writes(5));
    waiting.await.unwrap();
    assert_eq!(rounded(begun), 12, "10 MiB at 1, 10 at 5");
    let second = later(throttle.admit(Io::Write, 100 * MIB));
    let waiting = tokio::spawn(async move { second.passed().await });
    tokio::task::yield_now().await;
    throttle.lift();
    waiting.await.unwrap();
    assert_eq!(rounded(begun), 12, "no limit, no wait");
    assert!(matches!(throttle.admit(Io::Write, usize::MAX), Admission::Now));
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_begins_again_owes_nothing() {
    let throttle = Throttle::new(writes(1));
    let _waiting = (throttle.admit(Io::Write, MIB), throttle.admit(Io::Write, 25 * MIB));
    throttle.lift();
    throttle.set(writes(1));
    assert!(matches!(throttle.admit(Io::Write, MIB), Admission::Now));
    assert!((secs(&throttle, Io::Write, MIB).await - 1.0).abs() < 0.01);
}

/// Waits of 1 MiB each, as many as are admitted.
fn fill(throttle: &Arc<Throttle>, io: Io) -> Vec<Delay> {
    let admitted = std::iter::repeat_with(|| match throttle.admit(io, MIB) {
        Admission::Now => Some(None),
        Admission::Later(delay) => Some(Some(delay)),
        Admission::Refused => None,
    });
    admitted.map_while(|delay| delay).flatten().collect()
}

#[tokio::test(start_paused = true)]
async fn a_lowered_limit_makes_no_call_wait_longer_than_it_was_told() {
    let throttle = Throttle::new(writes(100));
    let waiting = fill(&throttle, Io::Write);
    assert_eq!(waiting.len(), 3000);
    let begun = Instant::now();
    tokio::time::sleep(Duration::from_secs(10)).await;
    // Once and again, and with a change of something else.
    throttle.set(writes(10));
    throttle.set(writes(1));
    throttle.set(IoLimits { max_iops: Some(10_000_000), ..writes(1) });
    assert!(matches!(throttle.admit(Io::Write, 11 * MIB), Admission::Refused));
    let later = later(throttle.admit(Io::Write, 5 * MIB));
    for (at, secs) in [(1099, 11), (2499, 25), (2999, 30)] {
        waiting[at].passed().await;
        assert_eq!(begun.elapsed().as_millis() / 10, secs * 100, "the call at {at}");
    }
    later.passed().await;
    assert_eq!(rounded(begun), 35, "what came under the new limit");
    assert!((secs(&throttle, Io::Write, MIB).await - 1.0).abs() < 0.01);
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_is_raised_after_it_was_lowered_holds_at_once() {
    let throttle = Throttle::new(writes(10));
    let waiting = fill(&throttle, Io::Write);
    let begun = Instant::now();
    throttle.set(writes(1));
    throttle.set(writes(5));
    waiting[9].passed().await;
    assert_eq!(rounded(begun), 1, "as it was told under the first limit");
    throttle.set(writes(290));
    waiting[299].passed().await;
    assert_eq!(rounded(begun), 2);
    // The limit before the first call is not remembered: nothing waited for it.
    throttle.set(writes(1));
    assert!(matches!(throttle.admit(Io::Write, 30 * MIB), Admission::Later(_)));
    assert!(matches!(throttle.admit(Io::Write, 2 * MIB), Admission::Refused));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_not_carried_out_is_not_charged() {
    let throttle = Throttle::new(writes(1));
    for _ in 0..3 {
        let waiting = fill(&throttle, Io::Write);
        assert_eq!(waiting.len(), 30);
        // In any order, among others that wait on; one is half paid.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let (kept, cancelled): (Vec<_>, Vec<_>) =
            waiting.into_iter().enumerate().partition(|(at, _)| at % 3 == 1);
        cancelled.into_iter().for_each(|(_, delay)| delay.cancel());
        let later = fill(&throttle, Io::Write);
        assert_eq!(kept.len() + later.len(), 30, "as if nothing else had been charged");
        let begun = Instant::now();
        for (_, delay) in kept {
            delay.passed().await;
        }
        for delay in later {
            delay.passed().await;
        }
        assert!(rounded(begun) <= 30);
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    let mut all = fill(&throttle, Io::Write);
    all.pop().expect("one waits").cancel();
    all.drain(..).for_each(Delay::cancel);
    assert!((secs(&throttle, Io::Write, MIB).await - 1.0).abs() < 0.01, "nothing is owed");
    // Also where there was no limit, or is none now.
    let limits = IoLimits { max_iops: Some(10), ..IoLimits::default() };
    throttle.set(limits);
    let delays: Vec<Delay> = (0..20)
        .filter_map(|_| match throttle.admit(Io::Read, MIB) {
            Admission::Later(delay) => Some(delay),
            _ => None,
        })
        .collect();
    throttle.set(IoLimits { max_read_bandwidth: Some(1 << 20), ..IoLimits::default() });
    delays.into_iter().for_each(Delay::cancel);
    assert!(matches!(throttle.admit(Io::Read, MIB), Admission::Now));
    assert!((secs(&throttle, Io::Read, MIB).await - 1.0).abs() < 0.01);
}

/// A record in the bucket may hold any numbers.
#[tokio::test(start_paused = true)]
async fn limits_beyond_all_bounds_harm_nothing() {
    let at = |rate| IoLimits {
        max_read_bandwidth: Some(rate),
        max_write_bandwidth: Some(rate),
        max_iops: Some(rate),
    };
    let throttle = Throttle::new(at(0));
    for rate in [0, u64::MAX, 1, 0, 1, u64::MAX, 1] {
        throttle.set(at(rate));
        for io in [Io::Read, Io::Write] {
            let _any = throttle.admit(io, usize::MAX);
            let _any = throttle.admit(io, 0);
        }
        tokio::time::advance(Duration::from_secs(365 * 86_400)).await;
    }
    throttle.set(at(0));
    assert!(matches!(throttle.admit(Io::Write, MIB), Admission::Now), "zero is no limit");
}

#[test]
fn time_that_goes_backwards_pays_nothing_twice() {
    let mut bucket = Bucket::default();
    let now = Instant::now() + Duration::from_secs(100);
    bucket.set_rate(Some(10), now);
    bucket.charged = bucket.paid;
    for secs in [5, 2, 4] {
        bucket.settle(now + Duration::from_secs(secs));
        bucket.set_rate(Some(10), now);
        bucket.settle(now - Duration::from_secs(secs));
    }
    assert_eq!(bucket.paid, bucket.charged + 10 * SCALE);
    bucket.charged += 100 * SCALE;
    let before = bucket.paid;
    bucket.set_rate(Some(10), now);
    bucket.settle(now + Duration::from_secs(5));
    assert_eq!(bucket.paid, before, "these seconds were paid");
    bucket.settle(now + Duration::from_secs(6));
    assert_eq!(bucket.paid, before + 10 * SCALE);
}

#[tokio::test(start_paused = true)]
async fn neither_kind_of_calls_keeps_the_other_from_the_limit_of_both() {
    let limits = IoLimits { max_iops: Some(10), ..IoLimits::default() };
    let throttle = Throttle::new(limits);
    for (flood, other) in [(Io::Read, Io::Write), (Io::Write, Io::Read)] {
        let mut waiting = fill(&throttle, flood);
        assert_eq!(waiting.len(), 150);
        let mut few = Vec::new();
        // Whenever there is room, the flood comes first.
        for _ in 0..50 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            waiting.remove(0).passed().await;
            waiting.extend(fill(&throttle, flood));
            few.push(later(throttle.admit(other, 0)));
        }
        drop((waiting, few));
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
}
