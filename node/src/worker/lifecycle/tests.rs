//! The full table of states and events, and what the states promise.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::*;

const RULES: Rules = Rules { executors: 2, drain_min: Duration::from_secs(2) };
/// The longest waits.
fn jitter() -> Jitter {
    Jitter::new(u64::MAX)
}

/// Each kind of state: with no executor and with one left, with nothing behind it and with all but the last failure.
fn states(now: Instant) -> Vec<(String, State)> {
    let attempts: [fn(Past) -> State; 6] = [
        State::Fetching,
        State::FetchWaiting,
        State::Verifying,
        State::Loading,
        State::Warming,
        State::Restarting,
    ];
    let fresh = |live| Past { live, ..Past::default() };
    let worn = |live| Past {
        live,
        fetch_failures: 2,
        damaged: DAMAGED_MAX - 1,
        damage: Some("torn".to_owned()),
        load_failures: LOAD_TRIES_MAX - 1,
        deaths: vec![now; DEATHS_MAX - 1],
    };
    let mut states = Vec::new();
    for attempt in attempts {
        for live in [0, 1] {
            let state = attempt(fresh(live));
            states.push((format!("{}, {live} live", state.name()), state.clone()));
            states.push((format!("{}, {live} live, worn", state.name()), attempt(worn(live))));
        }
    }
    for live in [1, 2] {
        states.push((format!("Ready, {live} live"), State::Ready(fresh(live))));
        states.push((format!("Ready, {live} live, worn"), State::Ready(worn(live))));
        let draining = |since| State::Draining { past: fresh(live), since };
        states.push((format!("Draining since now, {live} live"), draining(now)));
        states.push((format!("Draining long since, {live} live"), draining(now - RULES.drain_min)));
    }
    states.push(("Unloaded".to_owned(), State::Unloaded));
    states.push(("Failed".to_owned(), State::Failed { reason: "why".to_owned() }));
    states
}

fn events() -> Vec<Event> {
    let why = || "why".to_owned();
    vec![
        Event::Wanted,
        Event::Released,
        Event::Fetched,
        Event::FetchFailed(FetchFailure::Unreachable(why())),
        Event::FetchFailed(FetchFailure::Nowhere(why())),
        Event::FetchFailed(FetchFailure::Damaged(why())),
        Event::Verified,
        Event::Damaged(why()),
        Event::VerifyFailed(why()),
        Event::Loaded,
        Event::LoadFailed(LoadFailure::Passing(why())),
        Event::LoadFailed(LoadFailure::Final(why())),
        Event::Warmed,
        Event::ExecutorDied(why()),
        Event::Woken { in_flight: 0 },
        Event::Woken { in_flight: 1 },
    ]
}

fn live(state: &State) -> String {
    match state {
        State::Fetching(past)
        | State::FetchWaiting(past)
        | State::Verifying(past)
        | State::Loading(past)
        | State::Warming(past)
        | State::Ready(past)
        | State::Restarting(past)
        | State::Draining { past, .. } => format!(", {} live", past.live),
        State::Unloaded | State::Failed { .. } => String::new(),
    }
}

#[tokio::test]
async fn the_table_is_as_it_was() {
    let now = Instant::now();
    let mut table = String::new();
    let mut edges: BTreeMap<(&str, &str), BTreeSet<&str>> = BTreeMap::new();
    for (name, state) in states(now) {
        writeln!(table, "{name}").unwrap();
        for event in events() {
            let (from, label) = (state.name(), event.name());
            match handle_event(&RULES, state.clone(), event, now, jitter()) {
                Ok((next, commands)) if next == state && commands.is_empty() => {
                    writeln!(table, "    {label:<24} -").unwrap();
                }
                Ok((next, commands)) => {
                    let to = format!("{}{}", next.name(), live(&next));
                    writeln!(table, "    {label:<24} {to:<24} {commands:?}").unwrap();
                    if next.name() != from {
                        edges.entry((from, next.name())).or_default().insert(label);
                    }
                }
                Err(illegal) => {
                    assert_eq!((illegal.state, illegal.event), (from, label));
                    writeln!(table, "    {label:<24} illegal").unwrap();
                }
            }
        }
    }
    expect_test::expect_file!["table.txt"].assert_eq(&table);

    let mut drawing =
        "// Written by the tests of the lifecycle.\ndigraph lifecycle {\n    rankdir=LR;\n".to_owned();
    drawing.push_str("    node [shape=box];\n");
    for ((from, to), labels) in edges {
        let labels = labels.into_iter().collect::<Vec<_>>().join("\\n");
        writeln!(drawing, "    {from} -> {to} [label=\"{labels}\"];").unwrap();
    }
    drawing.push_str("}\n");
    expect_test::expect_file!["lifecycle.dot"].assert_eq(&drawing);
}

/// A version that is led through events.
struct Life {
    state: State,
    commands: Vec<Command>,
    now: Instant,
}

impl Life {
    fn new() -> Self {
        let (state, commands) = begin();
        Self { state, commands, now: Instant::now() }
    }

    fn ready() -> Self {
        let mut life = Self::new();
        life.goes([Event::Fetched, Event::Verified, Event::Loaded, Event::Warmed]);
        life
    }

    fn goes(&mut self, events: impl IntoIterator<Item = Event>) {
        for event in events {
            (self.state, self.commands) =
                handle_event(&RULES, self.state.clone(), event, self.now, jitter()).unwrap();
        }
    }

    fn stage(&self) -> &'static str {
        self.state.stage(1).name()
    }
}

fn woken() -> Event {
    Event::Woken { in_flight: 0 }
}

fn died() -> Event {
    Event::ExecutorDied("panicked".to_owned())
}

#[test]
fn a_life_goes_its_way() {
    let mut life = Life::new();
    assert_eq!((life.stage(), life.commands.as_slice()), ("fetching", &[Command::Fetch][..]));
    for (event, stage, command) in [
        (Event::Fetched, "verifying", Command::Verify),
        (Event::Verified, "loading", Command::Load),
        (Event::Loaded, "warming", Command::WarmUp),
        (Event::Warmed, "ready", Command::Serve),
    ] {
        life.goes([event]);
        assert_eq!((life.stage(), life.commands.as_slice()), (stage, &[command][..]));
    }
}

#[test]
fn a_fetch_is_tried_again_for_ever_ever_slower() {
    let mut life = Life::new();
    let mut waits = Vec::new();
    for _ in 0..40 {
        life.goes([Event::FetchFailed(FetchFailure::Unreachable("nobody there".to_owned()))]);
        waits.extend(life.commands.iter().filter_map(|command| match command {
            Command::Wake(wait) => Some(wait.as_millis()),
            _ => None,
        }));
        assert_eq!(life.stage(), "fetching");
        life.goes([woken()]);
    }
    assert_eq!((&waits[..4], waits[39]), (&[200, 400, 800, 1600][..], 30_000));
}

#[test]
fn damage_is_fetched_again_and_then_it_is_enough() {
    let damaged = || Event::Damaged("model.onnx has another digest".to_owned());
    let mut life = Life::new();
    for _ in 1..DAMAGED_MAX {
        life.goes([Event::Fetched, damaged()]);
        assert_eq!(life.commands.last(), Some(&Command::Fetch));
    }
    life.goes([Event::Fetched, damaged()]);
    assert_eq!(life.state, State::Failed { reason: "model.onnx has another digest".to_owned() });

    let mut life = Life::new();
    let from_holders = || Event::FetchFailed(FetchFailure::Damaged("all".to_owned()));
    life.goes([from_holders(), woken(), from_holders(), woken(), from_holders()]);
    assert_eq!(life.stage(), "failed");
}

#[test]
fn what_was_damaged_and_is_gone_now_stays_damaged() {
    let gone = || Event::FetchFailed(FetchFailure::Nowhere("nobody has it".to_owned()));
    let mut life = Life::new();
    life.goes([gone(), woken(), gone(), woken(), gone(), woken(), gone()]);
    assert_eq!(life.stage(), "fetching");
    let damaged = Event::FetchFailed(FetchFailure::Damaged("all have other bytes".to_owned()));
    life.goes([woken(), damaged, woken(), gone(), woken(), gone()]);
    assert_eq!(life.state, State::Failed { reason: "all have other bytes".to_owned() });
}

#[test]
fn three_failed_loads_are_enough_and_a_final_one_at_once() {
    let failed = || Event::LoadFailed(LoadFailure::Passing("no memory".to_owned()));
    let mut life = Life::new();
    life.goes([Event::Fetched, Event::Verified, failed(), woken(), Event::Verified, failed(), woken()]);
    assert_eq!(life.stage(), "verifying");
    life.goes([Event::Verified, failed()]);
    assert_eq!(life.state, State::Failed { reason: "3 loads failed, the last: no memory".to_owned() });

    let mut life = Life::new();
    life.goes([Event::Fetched, Event::Verified]);
    life.goes([Event::LoadFailed(LoadFailure::Final("not an ONNX model".to_owned()))]);
    assert_eq!(life.state, State::Failed { reason: "not an ONNX model".to_owned() });
}

#[test]
fn a_version_serves_while_an_executor_is_left() {
    let mut life = Life::ready();
    life.goes([died()]);
    assert_eq!(life.stage(), "ready");
    assert!(!life.commands.contains(&Command::Refuse));
    life.goes([died()]);
    assert_eq!(life.stage(), "loading");
    assert!(life.commands.contains(&Command::Refuse));
    life.goes([woken(), Event::Verified, Event::Loaded, Event::Warmed]);
    assert_eq!((life.stage(), life.commands.as_slice()), ("ready", &[Command::Serve][..]));
}

#[test]
fn what_cannot_be_repaired_serves_with_what_is_left() {
    let mut life = Life::ready();
    let broken = Event::LoadFailed(LoadFailure::Final("the disk's copy is gone".to_owned()));
    life.goes([died(), woken(), Event::Verified, broken]);
    assert_eq!((life.stage(), live(&life.state)), ("ready", ", 1 live".to_owned()));
    assert_eq!(life.commands.last(), Some(&Command::Wake(GIVEN_UP)));
    life.goes([woken(), Event::Verified, Event::Loaded, Event::Warmed]);
    assert_eq!((life.stage(), live(&life.state)), ("ready", ", 2 live".to_owned()));
}

#[test]
fn five_deaths_in_a_minute_are_enough() {
    let die_and_return = [died(), died(), woken(), Event::Verified, Event::Loaded, Event::Warmed];
    let mut life = Life::ready();
    life.goes(die_and_return.clone());
    life.goes(die_and_return.clone());
    life.goes([died()]);
    assert_eq!(life.state.stage(1).name(), "failed");
    assert_eq!(
        life.state,
        State::Failed { reason: "5 executors died within 60 s, the last: panicked".to_owned() }
    );

    let mut life = Life::ready();
    for _ in 0..5 {
        life.goes(die_and_return.clone());
        life.now += DEATHS_WINDOW;
    }
    assert_eq!(life.stage(), "ready");
}

#[test]
fn a_drain_takes_its_time_and_waits_for_quiet() {
    let mut life = Life::ready();
    life.goes([Event::Released]);
    assert_eq!((life.stage(), life.commands.last()), ("draining", Some(&Command::Wake(RULES.drain_min))));
    life.now += RULES.drain_min / 2;
    life.goes([woken()]);
    assert_eq!(life.commands, [Command::Wake(RULES.drain_min / 2)]);
    life.now += RULES.drain_min;
    life.goes([Event::Woken { in_flight: 3 }]);
    assert_eq!((life.stage(), life.commands.as_slice()), ("draining", &[Command::Wake(DRAIN_CHECK)][..]));
    life.goes([woken()]);
    assert_eq!((life.stage(), life.commands.last()), ("unloaded", Some(&Command::Stop)));
}

#[test]
fn a_draining_version_that_is_wanted_again_is_ready() {
    let mut life = Life::ready();
    life.goes([Event::Released, Event::Wanted]);
    assert_eq!((life.stage(), life.commands.as_slice()), ("ready", &[Command::Abandon][..]));
    life.goes([
        Event::Released,
        died(),
        Event::Wanted,
        woken(),
        Event::Verified,
        Event::Loaded,
        Event::Warmed,
    ]);
    assert_eq!((life.stage(), live(&life.state)), ("ready", ", 2 live".to_owned()));
}
