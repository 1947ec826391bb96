//! The invariants bite: each known bug, put back, is caught within a hundred seeds.

use std::time::Duration;

use roost_protocol::KnownBug;
use roost_sim::run::{Options, run};

/// Seeds that are tried.
const SEEDS: u64 = 100;
/// Shorter than usual: a bug is there from the beginning.
const SAFETY: Duration = Duration::from_secs(30);

fn check(bug: KnownBug) {
    for seed in 0..SEEDS {
        let options = Options { safety: SAFETY, ..Options::new(seed) };
        let Some(failure) = run(Options { bug: Some(bug), ..options }).failure else { continue };
        println!("{bug:?} is caught by seed {seed}: {failure}");
        // By the bug's own doing.
        assert_eq!(run(options).failure, None, "seed {seed} fails without {bug:?} too");
        return;
    }
    panic!("{bug:?} is not caught by {SEEDS} seeds");
}

#[test]
fn acknowledge_before_fsync() {
    check(KnownBug::AcknowledgeBeforeFsync);
}

#[test]
fn skip_the_digest_check() {
    check(KnownBug::SkipDigestCheck);
}

#[test]
fn use_an_older_traffic_revision() {
    check(KnownBug::OlderRevision);
}

#[test]
fn answer_a_read_without_read_index() {
    check(KnownBug::ReadWithoutIndex);
}

#[test]
fn act_twice_on_a_retried_command() {
    check(KnownBug::ActTwice);
}

#[test]
fn commit_a_version_with_holders_under_quorum() {
    check(KnownBug::HoldersUnderQuorum);
}

#[test]
fn drop_the_old_version_before_the_new_one_is_ready() {
    check(KnownBug::DropBeforeReady);
}

#[test]
fn let_a_wiped_voter_vote() {
    check(KnownBug::WipedVoterVotes);
}
