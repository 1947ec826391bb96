//! A bit flipped at each of hundreds of places of the log and of a snapshot of several chunks, without a coordinator over
//! them: in a record that redb finds in order, and in the bytes under redb. Each is found, the first by its record's name;
//! nothing is answered from then on, and nothing is truncated away. What a coordinator makes of it is in [`crate::records`].

use openraft::storage::RaftSnapshotBuilder;
use openraft::testing::log_id;
use openraft::{RaftLogReader, storage::RaftLogStorage};
use roost_coordinator::DiskFault;
use roost_coordinator::raft::types::Types;

use crate::disk::{Disk, Fault};
use crate::records::{Place, bits, flipped, put, records};
use crate::storage::{POSITIONS_MIN, Storage, entry};

/// Entries that the snapshot covers. The state takes no more reservations than these.
const COVERED: u64 = 66;
/// Files of each bundle in the snapshot, so that it has several chunks.
const FILES: usize = 45;
/// Entries in the log behind it.
const LOGGED: u64 = 40;
/// Bits of each record of the log, and of each of the snapshot, that are flipped.
const LOG_BITS: usize = 6;
const SNAPSHOT_BITS: usize = 60;

/// A log behind a snapshot of several chunks.
async fn image() -> Vec<u8> {
    let disk = Disk::new(Vec::new(), Fault::None);
    let mut storage = Storage::open(&disk).await.unwrap();
    storage.append((0..COVERED).map(|index| entry(index, FILES))).await.unwrap();
    assert_eq!(storage.apply(0).await.unwrap(), COVERED);
    storage.machine.build_snapshot().await.unwrap();
    storage.log.purge(log_id::<Types>(1, 1, COVERED - 1)).await.unwrap();
    storage.append((COVERED..COVERED + LOGGED).map(of_log)).await.unwrap();
    storage.close().await;
    disk.after_kill()
}

fn of_log(index: u64) -> openraft::alias::EntryOf<Types> {
    entry(index, 1 + index as usize % 4)
}

/// The places where bits are flipped: of the log, or of the snapshot and of what is noted of it.
fn places(image: &[u8], of_the_log: bool) -> Vec<(Place, Vec<u8>, usize)> {
    let count = if of_the_log { LOG_BITS } else { SNAPSHOT_BITS };
    let wanted = |place: &Place| match place {
        Place::Log(_) => of_the_log,
        Place::Meta(name) => !of_the_log && name == "snapshot",
        Place::Snapshot(_) => !of_the_log,
    };
    let records = records(image).into_iter().enumerate().filter(|(_, (place, _))| wanted(place));
    let flips = records.flat_map(|(number, (place, record))| {
        let bits = bits(number, &record, count);
        bits.into_iter().map(move |bit| (place.clone(), record.clone(), bit))
    });
    flips.collect()
}

/// Flips each bit by way of the database, and reads.
async fn finds_records(kind: &str, of_the_log: bool) {
    let image = image().await;
    let places = places(&image, of_the_log);
    for (place, record, bit) in &places {
        let damaged = put(image.clone(), place, &flipped(record, *bit));
        let before = records(&damaged);
        let disk = Disk::new(damaged, Fault::None);
        let fault = match Storage::open(&disk).await {
            Err(fault) => fault,
            Ok(mut storage) => {
                let Place::Log(index) = place else { panic!("{place:?} bit {bit} was not found") };
                // What lies ahead of it is what was written.
                let sound = storage.log.try_get_log_entries(COVERED..*index).await.unwrap();
                assert!(sound.into_iter().eq((COVERED..*index).map(of_log)), "{place:?} bit {bit}");
                storage.log.try_get_log_entries(COVERED..).await.unwrap_err();
                storage.answers_nothing().await;
                assert_eq!(storage.machine.state(|state| state.epoch().index), COVERED - 1);
                let fault = storage.fault().unwrap();
                storage.close().await;
                fault
            }
        };
        match fault {
            DiskFault::Damaged(why) => assert!(why.contains(&place.name()), "{place:?} bit {bit}: {why}"),
            other => panic!("{place:?} bit {bit}: {other}"),
        }
        assert!(records(&disk.after_kill()) == before, "{place:?} bit {bit}: something was changed");
    }
    println!("{kind}: {} positions", places.len());
    assert!(places.len() >= POSITIONS_MIN, "{kind}: {} positions", places.len());
}

/// Flips each bit where it lies on the disk, and opens.
async fn finds_bytes(kind: &str, of_the_log: bool) {
    let image = image().await;
    let places = places(&image, of_the_log);
    for (place, record, bit) in &places {
        let at = image.windows(record.len()).position(|bytes| bytes == record);
        let at = at.unwrap_or_else(|| panic!("{place:?} is not on the disk"));
        let disk = Disk::new(flipped(&image, at * 8 + bit), Fault::None);
        let opened = Storage::open(&disk).await.map(|_| ());
        assert!(matches!(opened, Err(DiskFault::Damaged(_))), "{place:?} bit {bit}: {opened:?}");
    }
    println!("{kind}: {} positions", places.len());
    assert!(places.len() >= POSITIONS_MIN, "{kind}: {} positions", places.len());
}

#[tokio::test]
async fn a_flipped_bit_in_a_log_record_is_found_at_any_position() {
    finds_records("flipped bit in a log record", true).await;
    finds_bytes("flipped bit in a log record, under redb", true).await;
}

#[tokio::test]
async fn a_flipped_bit_in_a_snapshot_is_found_at_any_position() {
    let chunks = records(&image().await).into_iter().filter(|(place, _)| matches!(place, Place::Snapshot(_)));
    assert!(chunks.count() > 2, "the snapshot has several chunks");
    finds_records("flipped bit in a snapshot", false).await;
    finds_bytes("flipped bit in a snapshot, under redb", false).await;
}
