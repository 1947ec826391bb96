//! What the simulated disk keeps, loses and damages.

use object_store::path::Path;
use object_store::{ObjectStoreExt, PutPayload};

use super::file::SECTOR_BYTES;
use super::*;

fn disk() -> SimDisk {
    SimDisk::new("n", 7, Casualties::default())
}

fn files(disk: &SimDisk) -> SimFiles {
    SimFiles::of(disk.life(), Conditions::default())
}

#[test]
fn a_crash_loses_what_was_not_synced_and_cuts_the_process_off() {
    let disk = disk();
    let before = files(&disk);
    let database = before.database("raft").unwrap();
    assert!(before.database("raft").is_err(), "opened twice");
    database.write(0, &[1; 1024]).unwrap();
    database.sync_data().unwrap();
    database.write(0, &[2; 64 * SECTOR_BYTES]).unwrap();
    disk.crash();
    database.write(0, &[3; 8]).unwrap_err();
    before.replace("late", b"x").unwrap_err();
    let files = files(&disk);
    assert_eq!(files.read("late").unwrap(), None);
    let database = files.database("raft").unwrap();
    let (mut kept, mut torn) = (0, 0);
    for i in 0..database.len().unwrap() as usize / SECTOR_BYTES {
        let mut sector = [0; SECTOR_BYTES];
        database.read((i * SECTOR_BYTES) as u64, &mut sector).unwrap();
        let old = u8::from(i < 2);
        let new = sector.iter().take_while(|byte| **byte == 2).count();
        assert!(
            sector[new..].iter().all(|byte| *byte == old),
            "a sector is new up to a byte, and old behind"
        );
        kept += usize::from(new == SECTOR_BYTES);
        torn += usize::from(new > 0 && new < SECTOR_BYTES);
    }
    assert!((10..54).contains(&kept) && (1..20).contains(&torn), "{kept} of 64 sectors kept, {torn} torn");
}

#[test]
fn a_trap_kills_before_during_or_after_an_operation() {
    for (moment, kept) in [(Moment::Before, false), (Moment::After, true)] {
        let casualties = Casualties::default();
        let disk = SimDisk::new("n", 7, casualties.clone());
        let database = files(&disk).database("raft").unwrap();
        database.write(0, &[1; 8]).unwrap();
        disk.set_trap(Some(Trap { after: 1, moment, counted: Counted::Writes }));
        database.write(8, &[1; 8]).unwrap();
        database.sync_data().unwrap_err();
        database.write(16, &[1; 8]).unwrap_err();
        assert_eq!(casualties.take(), ["n"]);
        if kept {
            assert_eq!(disk.database("raft").unwrap(), [1; 16]);
        }
    }
    let disk = disk();
    let life = disk.life();
    disk.set_trap(Some(Trap { after: 1, moment: Moment::Before, counted: Counted::Sent }));
    assert!(life.sends() && life.receives());
    assert!(!life.sends() && !life.receives());
    let life = disk.life();
    disk.set_trap(Some(Trap { after: 0, moment: Moment::After, counted: Counted::Received }));
    assert!(life.sends() && life.receives() && !life.sends());
    let read = files(&disk);
    disk.set_trap(Some(Trap { after: 0, moment: Moment::After, counted: Counted::Reads }));
    read.read("identity.toml").unwrap_err();
}

#[test]
fn faults_come_at_their_rates() {
    let disk = disk();
    let database = files(&disk).database("raft").unwrap();
    database.write(0, &[0; 64]).unwrap();
    disk.change_faults(|faults| *faults = DiskFaults { flip: 0.5, ..DiskFaults::default() });
    let flipped = (0..100).filter(|_| {
        let mut read = [0; 64];
        database.read(0, &mut read).unwrap();
        read.iter().map(|byte| byte.count_ones()).sum::<u32>() == 1
    });
    assert!((30..70).contains(&flipped.count()));
    disk.change_faults(|faults| *faults = DiskFaults { full: true, ..DiskFaults::default() });
    database.set_len(1 << 20).unwrap();
    database.write(0, &[1; 8]).unwrap();
    database.write(1 << 19, &[1; 8]).unwrap_err();
    disk.change_faults(|faults| *faults = DiskFaults { fail_write: 1.0, ..DiskFaults::default() });
    database.sync_data().unwrap_err();
}

#[tokio::test]
async fn an_object_is_whole_and_durable_and_its_deletion_may_be_undone() {
    let disk = disk();
    let store = files(&disk).bundles("bundles").unwrap();
    for i in 0..40 {
        store.put(&Path::from(format!("blobs/{i}")), PutPayload::from_static(b"bytes")).await.unwrap();
    }
    for i in 0..40 {
        store.delete(&Path::from(format!("blobs/{i}"))).await.unwrap();
    }
    store.put(&Path::from("blobs/x"), PutPayload::from_static(b"bytes")).await.unwrap();
    assert_eq!(store.list_with_delimiter(Some(&Path::from("blobs"))).await.unwrap().objects.len(), 1);
    disk.crash();
    store.put(&Path::from("blobs/y"), PutPayload::from_static(b"bytes")).await.unwrap_err();
    let left = disk.objects("bundles");
    assert!((10..32).contains(&left.len()) && left.contains_key("blobs/x"), "{} of 41", left.len());
    disk.change_faults(|faults| *faults = DiskFaults { flip: 1.0, ..DiskFaults::default() });
    let store = files(&disk).bundles("bundles").unwrap();
    let read = store.get(&Path::from("blobs/x")).await.unwrap().bytes().await.unwrap();
    assert_ne!(read, "bytes");
}

#[test]
fn a_small_file_is_read_flipped_and_sound_again() {
    let disk = disk();
    let files = files(&disk);
    files.replace("identity.toml", b"who").unwrap();
    disk.change_faults(|faults| faults.flip = 1.0);
    assert_ne!(files.read("identity.toml").unwrap().unwrap(), b"who");
    disk.change_faults(|faults| faults.flip = 0.0);
    assert_eq!(files.read("identity.toml").unwrap().unwrap(), b"who");
    assert!(disk.flipped("identity.toml").is_some() && disk.flipped("raft.redb").is_none());
}

#[tokio::test]
async fn a_part_needs_room_and_is_no_object_before_its_upload_has_ended() {
    let disk = disk();
    let store = files(&disk).bundles("bundles").unwrap();
    let part = |bytes: &'static [u8]| PutPayload::from_static(bytes);
    let mut upload = store.put_multipart(&Path::from("blobs/x")).await.unwrap();
    upload.put_part(part(b"by")).await.unwrap();
    disk.change_faults(|faults| faults.full = true);
    upload.put_part(part(b"tes")).await.unwrap_err();
    disk.change_faults(|faults| faults.full = false);
    upload.put_part(part(b"tes")).await.unwrap();
    assert!(disk.objects("bundles").is_empty());
    upload.complete().await.unwrap();
    assert_eq!(disk.objects("bundles")["blobs/x"], "bytes");
    let mut upload = store.put_multipart(&Path::from("blobs/y")).await.unwrap();
    disk.set_trap(Some(Trap { after: 1, moment: Moment::After, counted: Counted::Writes }));
    upload.put_part(part(b"by")).await.unwrap();
    upload.put_part(part(b"tes")).await.unwrap_err();
    upload.complete().await.unwrap_err();
    assert_eq!(disk.objects("bundles").len(), 1);
}
