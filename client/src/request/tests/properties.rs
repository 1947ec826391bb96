//! What holds of a request whatever happens.

use proptest::prelude::*;

use super::*;

fn any_error() -> impl Strategy<Value = InferError> {
    let ms = 0..2_000u64;
    prop_oneof![
        Just(unreachable()),
        Just(not_here()),
        Just(stale()),
        Just(unavailable()),
        ms.prop_map(overloaded),
        Just(executor()),
        Just(InferError::Stopping),
        Just(InferError::DeadlineExceeded),
        Just(model_failed()),
    ]
}

#[derive(Debug, Clone)]
enum Random {
    Answer(u8),
    Fail(u8, InferError),
    Route(u32, Vec<u64>),
    NoRoute(InferError),
    Heard(u64),
    Tick,
}

fn any_step() -> impl Strategy<Value = (u64, Random)> {
    let nodes = proptest::collection::vec(1..6u64, 1..5);
    let step = prop_oneof![
        1 => (0..ATTEMPTS_MAX).prop_map(Random::Answer),
        8 => (0..ATTEMPTS_MAX, any_error()).prop_map(|(attempt, error)| Random::Fail(attempt, error)),
        3 => (1..3u32, nodes).prop_map(|(version, nodes)| Random::Route(version, nodes)),
        2 => any_error().prop_map(Random::NoRoute),
        1 => (1..6u64).prop_map(Random::Heard),
        6 => Just(Random::Tick),
    ];
    (0..50u64, step)
}

proptest! {
    /// Whatever happens: attempts are numbered and bounded, at most two run (one, if only one may), each sent
    /// attempt ends once, one finish, and it comes by the deadline.
    #[test]
    fn a_request_always_ends_well(
        steps in proptest::collection::vec(any_step(), 0..200),
        concurrent: bool,
        tokens in 0..4u32,
        p95_ms in proptest::option::of(0..600u64),
    ) {
        let start = Instant::now();
        let deadline = start + Duration::from_secs(1);
        let mut world = World { tokens, p95: p95_ms.map(Duration::from_millis), ..World::of(&[1, 2, 3]) };
        let mut request = Request::new(Terms { deadline, concurrent });
        let (mut now, mut finished) = (start, false);
        let (mut sent, mut running) = (0u8, Vec::new());
        let end = [(0, Random::Tick), (1_000, Random::Tick)];
        let mut events = vec![Event::Started];
        for (later_ms, step) in steps.into_iter().chain(end) {
            for event in std::mem::take(&mut events) {
                if let Event::Answered { attempt } | Event::Failed { attempt, .. } = &event {
                    running.retain(|running| running != attempt);
                }
                for command in request.handle(event, now, &mut world) {
                    prop_assert!(!finished, "{command:?} after the end");
                    match command {
                        Command::Send { attempt, .. } => {
                            prop_assert_eq!(attempt, sent);
                            sent += 1;
                            running.push(attempt);
                        }
                        Command::Cancel { attempt } => {
                            prop_assert!(running.contains(&attempt));
                            running.retain(|running| *running != attempt);
                        }
                        Command::Suspect { .. } => {}
                        Command::Finish(_) => finished = true,
                    }
                    prop_assert!(sent <= ATTEMPTS_MAX);
                }
                let most = if concurrent { RUNNING_MAX } else { 1 };
                prop_assert!(running.len() <= most);
                prop_assert!(!finished || running.is_empty());
                prop_assert!(finished || request.next_wake() <= deadline);
            }
            now += Duration::from_millis(later_ms);
            events.push(match step {
                // An answer can come only of what was sent.
                Random::Answer(attempt) if attempt < sent => Event::Answered { attempt },
                Random::Fail(attempt, error) if attempt < sent => Event::Failed { attempt, error },
                Random::Route(version, mut nodes) => {
                    nodes.sort_unstable();
                    nodes.dedup();
                    world.route = Ok((version, nodes));
                    Event::ViewChanged
                }
                Random::NoRoute(error) => {
                    world.route = Err(error);
                    Event::ViewChanged
                }
                Random::Heard(node) => {
                    world.heard.insert(NodeId(node), now);
                    continue;
                }
                Random::Tick | Random::Answer(_) | Random::Fail(..) => {
                    now = now.max(request.next_wake().min(now + Duration::from_millis(later_ms)));
                    Event::TimerFired
                }
            });
        }
        for event in events {
            let commands = request.handle(event, now, &mut world);
            finished |= commands.iter().any(|command| matches!(command, Command::Finish(_)));
        }
        prop_assert!(now >= deadline && finished);
    }

    /// Timers lead somewhere: firing them one after the other ends a request in few steps, so that a driver
    /// never spins.
    #[test]
    fn timers_do_not_spin(
        error in any_error(),
        nodes in 1..5u64,
        concurrent: bool,
        p95_ms in proptest::option::of(0..50u64),
    ) {
        let start = Instant::now();
        let mut world = World::of(&(1..=nodes).collect::<Vec<_>>());
        world.p95 = p95_ms.map(Duration::from_millis);
        let mut request = Request::new(Terms { deadline: start + Duration::from_secs(1), concurrent });
        let mut commands = request.handle(Event::Started, start, &mut world);
        let mut now = start;
        for _ in 0..100 {
            let mut next = Vec::new();
            for command in commands.drain(..) {
                match command {
                    // Every second attempt fails at once, the others hang.
                    Command::Send { attempt, .. } if attempt % 2 == 0 => {
                        let event = Event::Failed { attempt, error: error.clone() };
                        next.extend(request.handle(event, now, &mut world));
                    }
                    Command::Finish(_) => return Ok(()),
                    Command::Send { .. } | Command::Cancel { .. } | Command::Suspect { .. } => {}
                }
            }
            if next.is_empty() {
                now = now.max(request.next_wake());
                next = request.handle(Event::TimerFired, now, &mut world);
            }
            commands = next;
        }
        prop_assert!(false, "it did not end");
    }
}
