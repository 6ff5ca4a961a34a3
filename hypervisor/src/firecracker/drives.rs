//! Disks that come and go while the machine runs. Firecracker has as many as it starts with: some wait with nothing in them,
//! and are given a file when one is plugged.

use std::fs::File;
use std::os::linux::fs::MetadataExt;
use std::sync::Arc;

use super::place::Place;
use super::request;
use crate::rest::{Client, Mounted};
use crate::{Device, Disk, Error, ErrorKind};

/// Disks that wait, and can be written to: containers' root file systems.
const WRITABLE: usize = 6;

/// Disks that wait, and cannot.
const READ_ONLY: usize = 2;

/// Bytes of a disk's serial number.
const SERIAL: usize = 20;

/// The serial number that a guest sees of a disk. Firecracker makes it of the numbers of the file, and nobody is asked.
pub fn serial(disk: &Disk) -> Result<String, Error> {
    let unknown = |source| {
        let text = format!("cannot examine a disk's file: {source}");
        Error::caused(ErrorKind::Internal, text, source)
    };
    let file = File::from(disk.file.try_clone().map_err(unknown)?);
    let metadata = file.metadata().map_err(unknown)?;
    let mut serial = format!("{}{}{}", metadata.st_dev(), metadata.st_rdev(), metadata.st_ino());
    serial.truncate(SERIAL);
    Ok(serial)
}

/// The disks that wait, or did.
#[derive(Debug)]
pub struct Drives {
    slots: Vec<Slot>,
}

#[derive(Debug)]
struct Slot {
    id: String,
    readonly: bool,
    /// How often it has had a file.
    times: usize,
    used: Option<Used>,
}

#[derive(Debug)]
struct Used {
    name: String,
    serial: String,
    _mount: Option<Mounted>,
    /// Found by its number as long as it is open.
    _file: Arc<std::os::fd::OwnedFd>,
}

impl Drives {
    /// All of them, with nothing in them.
    pub fn new() -> Self {
        let slot = |id: String, readonly| Slot {
            id,
            readonly,
            times: 0,
            used: None,
        };
        let writable = (0..WRITABLE).map(|number| slot(format!("rw{number}"), false));
        let read_only = (0..READ_ONLY).map(|number| slot(format!("ro{number}"), true));
        Self {
            slots: writable.chain(read_only).collect(),
        }
    }

    /// Their ids, and whether they cannot be written to.
    pub fn ids(&self) -> impl Iterator<Item = (&str, bool)> {
        self.slots.iter().map(|slot| (slot.id.as_str(), slot.readonly))
    }

    /// The machine is gone, and needs no files any more.
    pub fn clear(&mut self) {
        self.slots.clear();
    }

    /// Puts a disk's file into one of them.
    pub async fn plug(&mut self, client: &Client, place: &Place, device: Device) -> Result<(), Error> {
        let Device::Block(disk) = device else {
            return Err(request::lacking(&device));
        };
        let Disk { id, file, readonly } = &disk;
        let used = |slot: &Slot| slot.used.as_ref().is_some_and(|used| used.name == *id);
        if self.slots.iter().any(used) {
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!("a device {id:?} is plugged already"),
            ));
        }
        let serial = serial(&disk)?;
        let alike = self.slots.iter().filter_map(|slot| slot.used.as_ref());
        if let Some(alike) = alike.into_iter().find(|used| used.serial == serial) {
            // A container would get the other's.
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!(
                    "the guest could not tell the disks {id:?} and {:?} apart, to which Firecracker gives the serial number \
                     {serial}; use a copy of one on another file system, or hypervisor_name = \"qemu\" or \"clh\"",
                    alike.name
                ),
            ));
        }
        let free = self
            .slots
            .iter_mut()
            .filter(|slot| slot.used.is_none() && slot.readonly == *readonly)
            // The guest is not asked whether it still has the file before.
            .min_by_key(|slot| slot.times);
        let Some(slot) = free else {
            let (count, kind) = match readonly {
                true => (READ_ONLY, "read-only"),
                false => (WRITABLE, "writable"),
            };
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!(
                    "all {count} {kind} disks that this Firecracker was started with are in use; run fewer containers with \
                     disks in this pod, or use hypervisor_name = \"qemu\" or \"clh\""
                ),
            ));
        };
        let (path, mount) = place.disk(&slot.id, &disk)?;
        let body = request::exchange(&slot.id, &path);
        // Before it is asked for: it may be opened after nobody waits for it any more.
        slot.times += 1;
        slot.used = Some(Used {
            name: id.clone(),
            serial,
            _mount: mount,
            _file: Arc::clone(file),
        });
        let exchanged = client.send_for(request::EXCHANGE, &slot.id, body).await;
        if exchanged.as_ref().is_err_and(Error::is_final) {
            slot.used = None;
        }
        exchanged.map(drop)
    }

    /// Takes a disk's file away. The guest is not asked: it finds a disk of no size.
    pub async fn unplug(&mut self, client: &Client, place: &Place, name: &str) -> Result<(), Error> {
        let used = |slot: &&mut Slot| slot.used.as_ref().is_some_and(|used| used.name == name);
        let Some(slot) = self.slots.iter_mut().find(used) else {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("no device {name:?} was plugged"),
            ));
        };
        let body = request::exchange(&slot.id, &place.nothing());
        client.send_for(request::EXCHANGE, &slot.id, body).await?;
        slot.used = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use slog::{Discard, Logger, o};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    use super::*;

    fn disk(id: &str, file: &Arc<OwnedFd>) -> Device {
        Device::Block(Disk {
            id: id.into(),
            file: Arc::clone(file),
            readonly: false,
        })
    }

    #[test]
    fn a_serial_number_is_of_the_file_and_not_too_long() {
        let file = tempfile::tempfile().unwrap();
        let metadata = file.metadata().unwrap();
        let expected = format!("{}{}{}", metadata.st_dev(), metadata.st_rdev(), metadata.st_ino());
        let Device::Block(disk) = disk("data", &Arc::new(file.into())) else {
            unreachable!("a disk");
        };
        let serial = serial(&disk).unwrap();
        assert!(
            serial.len() <= SERIAL && expected.starts_with(&serial),
            "{serial} {expected}"
        );
    }

    /// One after the other, until none is left.
    #[tokio::test]
    async fn a_disk_that_would_be_taken_for_another_is_refused_and_so_is_one_too_many() {
        let place = Place::Open {
            run_dir: "/nonexistent".into(),
        };
        let (ours, theirs) = UnixStream::pair().unwrap();
        let client = Client::new(ours, "Monitor", "", Logger::root(Discard, o!()));
        let taking = tokio::spawn(async move {
            let mut theirs = theirs;
            while theirs.read(&mut [0; 4096]).await.unwrap() > 0 {
                theirs
                    .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
                    .await
                    .unwrap();
            }
        });
        let file = || -> Arc<OwnedFd> { Arc::new(tempfile::tempfile().unwrap().into()) };
        let mut drives = Drives::new();
        let first = file();
        for number in 0..WRITABLE {
            let own = file();
            let file = if number == 0 { &first } else { &own };
            let taken = drives
                .plug(&client, &place, disk(&number.to_string(), file))
                .await;
            taken.unwrap_or_else(|error| panic!("{number}: {error}"));
        }
        let alike = drives
            .plug(&client, &place, disk("alike", &first))
            .await
            .unwrap_err();
        let one_more = drives
            .plug(&client, &place, disk("more", &file()))
            .await
            .unwrap_err();
        assert!(alike.context.contains("\"alike\" and \"0\" apart"), "{alike}");
        assert!(one_more.context.contains("all 6 writable disks"), "{one_more}");
        drives.unplug(&client, &place, "0").await.unwrap();
        drives.plug(&client, &place, disk("again", &first)).await.unwrap();
        drop(client);
        taking.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_may_still_be_opened_is_held() {
        let place = Place::Open {
            run_dir: "/nonexistent".into(),
        };
        let file: Arc<OwnedFd> = Arc::new(tempfile::tempfile().unwrap().into());
        for (is_silent, plugged, unplugged) in [
            (true, ErrorKind::DeadlineExceeded, ErrorKind::DeadlineExceeded),
            (false, ErrorKind::InvalidArgument, ErrorKind::NotFound),
        ] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let client = Client::new(ours, "Monitor", "", Logger::root(Discard, o!()));
            let mut drives = Drives::new();
            let script = async {
                if !is_silent {
                    assert!(theirs.read(&mut [0; 4096]).await.unwrap() > 0);
                    let answer = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
                    theirs.write_all(answer).await.unwrap();
                }
            };
            let (error, ()) = tokio::join!(drives.plug(&client, &place, disk("data", &file)), script);
            assert_eq!(error.unwrap_err().kind, plugged);
            assert_eq!(Arc::strong_count(&file) > 1, is_silent, "it is held");
            let error = drives.unplug(&client, &place, "data").await.unwrap_err();
            assert_eq!(error.kind, unplugged);
        }
    }
}
