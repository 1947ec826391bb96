//! The invariants bite: each known bug, put back, is caught within a hundred seeds, by an invariant that is
//! about it.
//!
//! The seeds are tried from [`Case::first`] on, which is known to catch the bug, and round, until one does: a
//! change of anything that is drawn moves what a seed meets, and then the search takes longer, but fails only
//! when a hundred seeds pass in vain. Release builds have no known bugs.
#![cfg(debug_assertions)]

use roost_protocol::KnownBug;
use roost_sim::run::{Failure, Options, run};

/// Seeds that are tried.
const SEEDS: u64 = 100;

/// A bug, and what catches it.
struct Case {
    bug: KnownBug,
    /// The seed that is tried first.
    first: u64,
    /// The invariants that are about it, by their names.
    invariants: &'static [&'static str],
}

fn check(case: &Case) {
    let Case { bug, first, invariants } = *case;
    for seed in (0..SEEDS).map(|i| (first + i) % SEEDS) {
        let options = Options::new(seed);
        let Some(failure) = run(Options { bug: Some(bug), ..options }).failure else { continue };
        let fits = matches!(&failure, Failure::Broken(by) if invariants.contains(&by.invariant));
        println!("{bug:?}: seed {seed}, fits: {fits}: {failure}");
        if fits {
            // By the bug's own doing.
            assert_eq!(run(options).failure, None, "seed {seed} fails without {bug:?} too");
            return;
        }
    }
    panic!("{bug:?} is not caught by {SEEDS} seeds");
}

#[test]
fn acknowledge_before_fsync() {
    let invariants = &["what is acknowledged to Raft is durable"];
    check(&Case { bug: KnownBug::AcknowledgeBeforeFsync, first: 3, invariants });
}

#[test]
fn skip_the_digest_check() {
    let invariants = &["bundles are held and whole", "answers are their model's"];
    check(&Case { bug: KnownBug::SkipDigestCheck, first: 61, invariants });
}

#[test]
fn use_an_older_traffic_revision() {
    let invariants = &["everyone picks alike", "keys keep to their versions"];
    check(&Case { bug: KnownBug::OlderRevision, first: 61, invariants });
}

#[test]
fn answer_a_read_without_read_index() {
    check(&Case { bug: KnownBug::ReadWithoutIndex, first: 18, invariants: &["linearizable"] });
}

#[test]
fn act_twice_on_a_retried_command() {
    let invariants = &["linearizable", "nothing acknowledged is lost"];
    check(&Case { bug: KnownBug::ActTwice, first: 61, invariants });
}

#[test]
fn commit_a_version_with_holders_under_quorum() {
    check(&Case { bug: KnownBug::HoldersUnderQuorum, first: 0, invariants: &["bundles are held and whole"] });
}

#[test]
fn drop_the_old_version_before_the_new_one_is_ready() {
    check(&Case {
        bug: KnownBug::DropBeforeReady,
        first: 14,
        invariants: &["a stable version is always served"],
    });
}

#[test]
fn let_a_wiped_voter_vote() {
    let invariants = &["a wiped voter does not vote", "election safety", "log matching"];
    check(&Case { bug: KnownBug::WipedVoterVotes, first: 28, invariants });
}
