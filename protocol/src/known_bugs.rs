//! Known bugs that can be put back one at a time, to prove that the simulator's invariants bite.
//!
//! Test-only, never in a release build: without the feature `known-bugs` every switch is a constant `false`, and with it a
//! build without debug assertions does not compile. The switch is per thread, which is per simulation.

#[cfg(all(feature = "known-bugs", not(debug_assertions)))]
compile_error!("the feature known-bugs puts bugs back on purpose; it is for tests, never for a release");

/// A bug that can be put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum KnownBug {
    /// A log entry is acknowledged before it is durable.
    AcknowledgeBeforeFsync,
    /// A worker loads bytes whose digest it did not check.
    SkipDigestCheck,
    /// A request is routed and served by an older traffic revision than is known.
    OlderRevision,
    /// A read is answered without asking a quorum.
    ReadWithoutIndex,
    /// A command that is sent again is carried out again.
    ActTwice,
    /// A version is committed that fewer than a quorum hold.
    HoldersUnderQuorum,
    /// A worker drops a version before the others are ready to serve it.
    DropBeforeReady,
    /// A voter that lost its database votes.
    WipedVoterVotes,
}

impl KnownBug {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::AcknowledgeBeforeFsync,
        Self::SkipDigestCheck,
        Self::OlderRevision,
        Self::ReadWithoutIndex,
        Self::ActTwice,
        Self::HoldersUnderQuorum,
        Self::DropBeforeReady,
        Self::WipedVoterVotes,
    ];
}

#[cfg(feature = "known-bugs")]
thread_local! {
    static PRESENT: std::cell::Cell<Option<KnownBug>> = const { std::cell::Cell::new(None) };
}

/// Puts a bug back on this thread, or takes it out.
#[cfg(feature = "known-bugs")]
pub fn put_back(bug: Option<KnownBug>) {
    PRESENT.set(bug);
}

impl KnownBug {
    /// Whether it was put back on this thread.
    #[cfg(feature = "known-bugs")]
    pub fn is_in(self) -> bool {
        PRESENT.get() == Some(self)
    }

    /// Whether it was put back: never in this build.
    #[cfg(not(feature = "known-bugs"))]
    pub const fn is_in(self) -> bool {
        false
    }
}
