//! Known bugs that can be put back one at a time, to prove that the simulator's invariants bite.
//!
//! The switches are there in builds with debug assertions alone, which tests are; in a release build each is a constant
//! `false`, and nothing can turn it. Not a cargo feature: features unify over a whole `cargo test --workspace`, so one for the
//! simulator's tests would either be on in every binary of that build, or cost a build of its own. A profile cannot leak
//! that way. The switch is per thread, which is per simulation; only the simulator and tests of the disk
//! call [`put_back`].

/// A bug that can be put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum KnownBug {
    /// A log entry is acknowledged before it is durable.
    AcknowledgeBeforeFsync,
    /// Nobody checks the digest of bytes: neither who serves them, nor who takes them, nor the worker that loads them.
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

#[cfg(debug_assertions)]
thread_local! {
    static PRESENT: std::cell::Cell<Option<KnownBug>> = const { std::cell::Cell::new(None) };
}

/// Puts a bug back on this thread, or takes it out.
#[cfg(debug_assertions)]
pub fn put_back(bug: Option<KnownBug>) {
    PRESENT.set(bug);
}

impl KnownBug {
    /// Whether it was put back on this thread.
    #[cfg(debug_assertions)]
    pub fn is_in(self) -> bool {
        PRESENT.get() == Some(self)
    }

    /// Whether it was put back: never in this build.
    #[cfg(not(debug_assertions))]
    pub const fn is_in(self) -> bool {
        false
    }
}
