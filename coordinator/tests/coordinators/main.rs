//! Coordinators over loopback on real files and on failing ones: what they agree on, who may ask, and what becomes of them
//! when they stop, come back, are emptied, or lose their disk.

#![expect(clippy::unwrap_used, reason = "what the tests share is test code too")]

mod bundles;
mod disk;
mod faults;
mod flips;
mod garbage;
mod group;
mod in_flight;
mod level;
mod lost;
mod party;
mod records;
mod recovery;
mod requests;
mod rot;
mod storage;
mod store;
