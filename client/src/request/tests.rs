//! Requests that are routed, tried again and hedged, as a state machine.

use std::collections::BTreeMap;

use roost_protocol::messages::infer::Choice;
use roost_protocol::{Epoch, Revision, Version};

use super::*;
use crate::tests::digits;

mod properties;

/// The surroundings of one request, as plain values.
struct World {
    /// The version and its nodes; or why there is none.
    route: Result<(u32, Vec<u64>), InferError>,
    hoped: bool,
    tokens: u32,
    p95: Option<Duration>,
    heard: BTreeMap<NodeId, Instant>,
    /// Nodes that owe answers, from when on.
    owing: BTreeMap<NodeId, Instant>,
}

impl World {
    fn of(nodes: &[u64]) -> Self {
        let (heard, owing) = (BTreeMap::new(), BTreeMap::new());
        Self { route: Ok((1, nodes.to_vec())), hoped: false, tokens: 10, p95: None, heard, owing }
    }
}

impl Surroundings for World {
    fn route(&mut self) -> Result<Route, InferError> {
        let (version, nodes) = self.route.clone()?;
        let picked = Picked {
            model: digits(),
            version: Version(version),
            revision: Revision(1),
            choice: Choice::Split,
            epoch: Epoch::default(),
            manifest: Default::default(),
            replicas: Default::default(),
        };
        Ok(Route { picked, nodes: nodes.into_iter().map(NodeId).collect(), hoped: self.hoped })
    }

    fn take_token(&mut self) -> bool {
        let some = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        some
    }

    fn p95(&self, _: &Picked) -> Option<Duration> {
        self.p95
    }

    fn silent_since(&self, node: NodeId, since: Instant) -> bool {
        self.heard.get(&node).is_none_or(|heard| *heard < since)
    }

    fn owes_since(&self, node: NodeId) -> Option<Instant> {
        self.owing.get(&node).copied()
    }
}

fn unreachable() -> InferError {
    InferError::Unreachable { node: "n".to_owned(), reason: "gone".to_owned() }
}

fn not_here() -> InferError {
    InferError::NotHere { model: "digits".to_owned(), version: 1, generation: 1, index: 9 }
}

fn stale() -> InferError {
    InferError::StaleView { model: "digits".to_owned(), used: 1, newest: 2, generation: 1 }
}

fn unavailable() -> InferError {
    InferError::Unavailable { model: "digits".to_owned(), version: 1 }
}

fn overloaded(ms: u64) -> InferError {
    InferError::Overloaded { retry_after_us: ms * 1_000 }
}

fn executor() -> InferError {
    InferError::ExecutorFailed { reason: "panic".to_owned() }
}

fn model_failed() -> InferError {
    InferError::ModelFailed { reason: "bad".to_owned() }
}

/// What happens in a table, beside the events of a request.
enum Step {
    Start,
    Ok(u8),
    Err(u8, InferError),
    /// The routes change to this version and these nodes.
    Now(u32, &'static [u64]),
    /// So, but the nodes are merely owners.
    Hoped(u32, &'static [u64]),
    /// The routes change to none.
    None(InferError),
    /// A node answered somebody else.
    Heard(u64),
    /// The timer that the request asked for fires; the time is checked.
    Tick,
}
use Step::{Err as Fails, Heard, Hoped, None as Nowhere, Now, Ok as Answers, Start, Tick};

fn show(commands: &[Command]) -> String {
    let show = |command: &Command| match command {
        Command::Send { attempt, node } => format!("send {attempt} to {}", node.0),
        Command::Cancel { attempt } => format!("cancel {attempt}"),
        Command::Suspect { node } => format!("suspect {}", node.0),
        Command::Finish(Ok(attempt)) => format!("answer of {attempt}"),
        Command::Finish(Err(error)) => {
            let text = format!("{error:?}");
            text.split([' ', '{']).next().unwrap_or_default().to_owned()
        }
    };
    commands.iter().map(show).collect::<Vec<_>>().join(", ")
}

/// Runs a request of one second; each row is a time in ms, what happens, and what the request does.
fn check(what: &str, concurrent: bool, mut world: World, rows: &[(u64, Step, &str)]) {
    let start = Instant::now();
    let at = |ms| start + Duration::from_millis(ms);
    let mut request = Request::new(Terms { deadline: at(1_000), concurrent });
    for (ms, step, expected) in rows {
        let mut now = at(*ms);
        let event = match step {
            Start => Event::Started,
            Answers(attempt) => Event::Answered { attempt: *attempt },
            Fails(attempt, error) => Event::Failed { attempt: *attempt, error: error.clone() },
            Now(version, nodes) => {
                (world.route, world.hoped) = (Ok((*version, nodes.to_vec())), false);
                Event::ViewChanged
            }
            Hoped(version, nodes) => {
                (world.route, world.hoped) = (Ok((*version, nodes.to_vec())), true);
                Event::ViewChanged
            }
            Nowhere(error) => {
                world.route = Err(error.clone());
                Event::ViewChanged
            }
            Heard(node) => {
                world.heard.insert(NodeId(*node), now);
                continue;
            }
            Tick => {
                now = request.next_wake();
                let wake = now.duration_since(start).as_millis();
                assert_eq!(wake, u128::from(*ms), "{what}: the timer ahead of {expected:?}");
                Event::TimerFired
            }
        };
        let commands = request.handle(event, now, &mut world);
        assert_eq!(show(&commands), *expected, "{what}, at {ms} ms");
    }
}

#[test]
fn answers_and_errors() {
    check(
        "one attempt",
        true,
        World::of(&[1, 2]),
        &[(0, Start, "send 0 to 1"), (1, Answers(0), "answer of 0"), (2, Answers(0), ""), (1_000, Tick, "")],
    );
    check(
        "an error that repeats itself",
        true,
        World::of(&[1, 2]),
        &[(0, Start, "send 0 to 1"), (1, Fails(0, model_failed()), "ModelFailed")],
    );
    let unknown = InferError::UnknownModel { model: "cats".to_owned() };
    check(
        "no such model",
        true,
        World { route: Err(unknown), ..World::of(&[]) },
        &[(0, Start, "UnknownModel")],
    );
    check(
        "the deadline, with an attempt on its way",
        true,
        World::of(&[1]),
        &[(0, Start, "send 0 to 1"), (1_000, Tick, "cancel 0, DeadlineExceeded")],
    );
}

#[test]
fn retries_without_a_token() {
    let broke = |nodes| World { tokens: 0, ..World::of(nodes) };
    check(
        "nodes die one after the other",
        true,
        broke(&[1, 2, 3]),
        &[
            (0, Start, "send 0 to 1"),
            (2, Fails(0, unreachable()), "send 1 to 2"),
            (4, Fails(1, unreachable()), "send 2 to 3"),
            (5, Answers(2), "answer of 2"),
        ],
    );
    check(
        "a node stops, another just began",
        true,
        broke(&[1, 2, 3]),
        &[
            (0, Start, "send 0 to 1"),
            (1, Fails(0, InferError::Stopping), "send 1 to 2"),
            (2, Fails(1, not_here()), "send 2 to 3"),
            (3, Answers(2), "answer of 2"),
        ],
    );
    check(
        "an executor dies, and another",
        true,
        broke(&[1, 2, 3]),
        &[
            (0, Start, "send 0 to 1"),
            (1, Fails(0, executor()), "send 1 to 2"),
            (2, Fails(1, executor()), "ExecutorFailed"),
        ],
    );
    check(
        "overloaded",
        true,
        broke(&[1, 2]),
        &[(0, Start, "send 0 to 1"), (1, Fails(0, overloaded(1)), "Overloaded")],
    );
    check(
        "the only node is gone, and comes back",
        true,
        broke(&[1]),
        &[
            (0, Start, "send 0 to 1"),
            (1, Fails(0, unreachable()), ""),
            (6, Tick, "send 1 to 1"),
            (7, Fails(1, unreachable()), ""),
            (17, Tick, "send 2 to 1"),
            (18, Answers(2), "answer of 2"),
        ],
    );
    check(
        "a slow node that answers others is left alone",
        true,
        broke(&[1, 2]),
        &[(0, Start, "send 0 to 1"), (400, Heard(1), ""), (500, Tick, ""), (900, Answers(0), "answer of 0")],
    );
    check(
        "a silent node is overtaken",
        true,
        broke(&[1, 2]),
        &[
            (0, Start, "send 0 to 1"),
            (500, Tick, "suspect 1, send 1 to 2"),
            (501, Answers(1), "cancel 0, answer of 1"),
        ],
    );
}

#[test]
fn retries_with_a_token() {
    check(
        "overloaded here, not there",
        true,
        World::of(&[1, 2]),
        &[
            (0, Start, "send 0 to 1"),
            (1, Fails(0, overloaded(50)), "send 1 to 2"),
            (2, Answers(1), "answer of 1"),
        ],
    );
    check(
        "overloaded everywhere",
        true,
        World { tokens: 2, ..World::of(&[1, 2]) },
        &[
            (0, Start, "send 0 to 1"),
            (1, Fails(0, overloaded(50)), "send 1 to 2"),
            (2, Fails(1, overloaded(50)), ""),
            (52, Tick, "send 2 to 1"),
            (53, Fails(2, overloaded(50)), "Overloaded"),
        ],
    );
    check(
        "overloaded for longer than there is time",
        true,
        World::of(&[1]),
        &[(0, Start, "send 0 to 1"), (1, Fails(0, overloaded(2_000)), "Overloaded")],
    );
    check(
        "a slow node is overtaken, and may still win",
        true,
        World::of(&[1, 2]),
        &[
            (0, Start, "send 0 to 1"),
            (400, Heard(1), ""),
            (500, Tick, "send 1 to 2"),
            (600, Answers(0), "cancel 1, answer of 0"),
        ],
    );
    check(
        "a third of the time each with three nodes",
        true,
        World::of(&[1, 2, 3, 4, 5]),
        &[(0, Start, "send 0 to 1"), (333, Tick, "suspect 1, send 1 to 2")],
    );
}

#[test]
fn one_at_a_time_for_sequences_and_streams() {
    check(
        "no hedge",
        false,
        World { p95: Some(Duration::from_millis(10)), ..World::of(&[1, 2]) },
        &[
            (0, Start, "send 0 to 1"),
            (500, Tick, "suspect 1, cancel 0, send 1 to 2"),
            (501, Answers(0), ""),
            (502, Answers(1), "answer of 1"),
        ],
    );
}

#[test]
fn hedges() {
    let known = |tokens| World { tokens, p95: Some(Duration::from_millis(10)), ..World::of(&[1, 2, 3]) };
    check(
        "after the percentile, once",
        true,
        known(5),
        &[
            (0, Start, "send 0 to 1"),
            (10, Tick, "send 1 to 2"),
            (12, Fails(1, unreachable()), ""),
            (13, Answers(0), "answer of 0"),
        ],
    );
    check(
        "the hedge wins",
        true,
        known(5),
        &[(0, Start, "send 0 to 1"), (10, Tick, "send 1 to 2"), (12, Answers(1), "cancel 0, answer of 1")],
    );
    let owing = |ms| World {
        owing: [(NodeId(1), Instant::now().checked_sub(Duration::from_millis(ms)).unwrap())].into(),
        ..known(5)
    };
    check(
        "the hedge wins over one that has been silent to others too",
        true,
        owing(600),
        &[
            (0, Start, "send 0 to 1"),
            (10, Tick, "send 1 to 2"),
            (12, Answers(1), "suspect 1, cancel 0, answer of 1"),
        ],
    );
    check(
        "the hedge wins over one that was not silent for long",
        true,
        owing(100),
        &[(0, Start, "send 0 to 1"), (10, Tick, "send 1 to 2"), (12, Answers(1), "cancel 0, answer of 1")],
    );
    check(
        "both fail",
        true,
        known(5),
        &[
            (0, Start, "send 0 to 1"),
            (10, Tick, "send 1 to 2"),
            (11, Fails(0, executor()), ""),
            (12, Fails(1, unreachable()), "send 2 to 3"),
            (13, Answers(2), "answer of 2"),
        ],
    );
    check(
        "an error of the model ends both",
        true,
        known(5),
        &[
            (0, Start, "send 0 to 1"),
            (10, Tick, "send 1 to 2"),
            (11, Fails(0, model_failed()), "cancel 1, ModelFailed"),
        ],
    );
    check(
        "not without a token",
        true,
        known(0),
        &[(0, Start, "send 0 to 1"), (10, Tick, ""), (333, Tick, "suspect 1, send 1 to 2")],
    );
    check(
        "not after an overload",
        true,
        known(5),
        &[
            (0, Start, "send 0 to 1"),
            (0, Fails(0, overloaded(1)), "send 1 to 2"),
            (500, Tick, "suspect 2, send 2 to 3"),
        ],
    );
    check(
        "to the same version, whatever the view says meanwhile",
        true,
        known(5),
        &[(0, Start, "send 0 to 1"), (5, Now(2, &[7, 8]), ""), (10, Tick, "send 1 to 2")],
    );
    let slow = World { p95: Some(Duration::from_millis(400)), ..World::of(&[1, 2]) };
    check(
        "a model that is always slow has no early timeout",
        true,
        World { tokens: 0, ..slow },
        &[(0, Start, "send 0 to 1"), (400, Tick, ""), (1_000, Tick, "cancel 0, DeadlineExceeded")],
    );
}

#[test]
fn waiting_for_a_newer_view() {
    check(
        "no view yet",
        true,
        World { route: Err(unavailable()), ..World::of(&[]) },
        &[(0, Start, ""), (3, Now(1, &[1]), "send 0 to 1")],
    );
    check(
        "a worker is ahead",
        true,
        World::of(&[1, 2]),
        &[
            (0, Start, "send 0 to 1"),
            // Whoever runs this request notes the newer revision, so that there is no route until it is
            // there.
            (1, Nowhere(stale()), ""),
            (1, Fails(0, stale()), ""),
            (2, Nowhere(stale()), ""),
            (4, Now(2, &[1, 2]), "send 1 to 1"),
            (5, Answers(1), "answer of 1"),
        ],
    );
    check(
        "it never comes",
        true,
        World::of(&[1, 2]),
        &[
            (0, Start, "send 0 to 1"),
            (1, Nowhere(stale()), ""),
            (1, Fails(0, stale()), ""),
            (1_000, Tick, "StaleView"),
        ],
    );
    check(
        "nobody has it",
        true,
        World::of(&[1, 2]),
        &[
            (0, Start, "send 0 to 1"),
            (1, Fails(0, not_here()), "send 1 to 2"),
            (2, Fails(1, not_here()), ""),
            (3, Now(1, &[1, 2]), ""),
            (4, Now(1, &[1, 2, 3]), "send 2 to 3"),
            (5, Answers(2), "answer of 2"),
        ],
    );
    check(
        "owners are asked once, then news is waited for",
        true,
        World { hoped: true, ..World::of(&[1, 2]) },
        &[
            (0, Start, "send 0 to 1"),
            (1, Fails(0, not_here()), "send 1 to 2"),
            (2, Fails(1, not_here()), ""),
            (300, Hoped(1, &[1, 2]), ""),
            (600, Now(1, &[2]), "send 2 to 2"),
            (601, Answers(2), "answer of 2"),
        ],
    );
    check(
        "news of other owners",
        true,
        World { hoped: true, ..World::of(&[1]) },
        &[
            (0, Start, "send 0 to 1"),
            (1, Fails(0, not_here()), ""),
            (300, Hoped(1, &[1, 2]), "send 1 to 2"),
            (400, Fails(1, not_here()), ""),
            (1_000, Tick, "Unavailable"),
        ],
    );
    let mut late = World { route: Err(unavailable()), ..World::of(&[]) };
    late.tokens = 0;
    check(
        "patience ends",
        true,
        late,
        &[(0, Start, ""), (999, Nowhere(unavailable()), ""), (1_000, Tick, "Unavailable")],
    );
}

#[test]
fn patience_is_shorter_than_a_long_deadline() {
    let (start, mut world) = (Instant::now(), World { route: Err(unavailable()), ..World::of(&[]) });
    let mut request = Request::new(Terms { deadline: start + Duration::from_secs(60), concurrent: true });
    assert_eq!(request.handle(Event::Started, start, &mut world), []);
    assert_eq!(request.next_wake(), start + PATIENCE);
    let commands = request.handle(Event::TimerFired, start + PATIENCE, &mut world);
    assert_eq!(commands, [Command::Finish(Err(unavailable()))]);
}

#[test]
fn attempts_are_bounded() {
    let (start, mut world) = (Instant::now(), World::of(&[1]));
    let mut request = Request::new(Terms { deadline: start + Duration::from_secs(60), concurrent: true });
    let mut now = start;
    request.handle(Event::Started, now, &mut world);
    for attempt in 0..ATTEMPTS_MAX {
        let commands = request.handle(Event::Failed { attempt, error: unreachable() }, now, &mut world);
        if attempt + 1 == ATTEMPTS_MAX {
            assert_eq!(commands, [Command::Finish(Err(unreachable()))]);
        } else {
            now = request.next_wake();
            request.handle(Event::TimerFired, now, &mut world);
        }
    }
    assert!(now - start < Duration::from_secs(1));
}
