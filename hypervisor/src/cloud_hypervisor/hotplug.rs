//! Devices that come and go on a running machine.
//!
//! A network card's taps are passed as descriptors. A disk can only be named by a path, and where Landlock confines the monitor
//! only by one below the VM's own directory: a bind mount of the very file there.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use slog::{Logger, warn};
use tokio::sync::watch;
use tokio::time::timeout;

use super::request::{self, Settings};
use crate::rest::{Client, Mounted};
use crate::spec::text;
use crate::{Device, Error, ErrorKind, deadlines};

/// Directory of the plugged disks' mounts, below the VM's own.
const DISKS: &str = "disks";

/// What was plugged.
#[derive(Debug)]
pub struct Plugged {
    devices: HashMap<String, Entry>,
    disks: PathBuf,
    settings: Settings,
    removals: Removals,
    log: Logger,
}

#[derive(Debug)]
struct Entry {
    /// The device's id in the monitor.
    id: String,
    /// Where its file is mounted.
    _mount: Option<Mounted>,
}

impl Plugged {
    /// Nothing yet.
    pub fn new(run_dir: &Path, settings: Settings, removals: Removals, log: Logger) -> Self {
        Self {
            devices: HashMap::new(),
            disks: run_dir.join(DISKS),
            settings,
            removals,
            log,
        }
    }

    /// Adds a device.
    pub async fn plug(&mut self, client: &Client, device: Device) -> Result<(), Error> {
        let name = device.name().to_owned();
        if self.devices.contains_key(&name) {
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!("a device {name:?} is plugged already"),
            ));
        }
        let id = request::id(&device)?;
        let mut mount = None;
        let (call, body, fds) = match device {
            Device::VirtioFs(fs) => (request::ADD_FS, request::share(&fs)?, Vec::new()),
            Device::Net { id, taps, mac } => {
                let body = request::net(&self.settings, &id, taps.len(), &mac)?;
                (request::ADD_NET, body, taps)
            }
            Device::Block(disk) => {
                fs::create_dir_all(&self.disks).map_err(|source| {
                    Error::caused(
                        ErrorKind::Internal,
                        format!("cannot make {}: {source}", self.disks.display()),
                        source,
                    )
                })?;
                let path = self.disks.join(&id);
                let body = request::disk(&self.settings, &disk, &text(&path)?)?;
                mount = Some(Mounted::new(path, disk.file.as_fd())?);
                (request::ADD_DISK, body, Vec::new())
            }
            Device::Vsock(_) | Device::SerialPort(_) => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    "only virtio-fs, block and network devices can be plugged",
                ));
            }
        };
        self.removals.forget(&id);
        // Before it is asked for: it may come after nobody waits for it any more, and is to be found and to find its file then.
        self.devices.insert(name.clone(), Entry { id, _mount: mount });
        let added = client.send_with_fds(call, body, fds).await;
        if added.as_ref().is_err_and(Error::is_final) {
            self.devices.remove(&name);
        }
        added.map(drop)
    }

    /// Takes a device out; returns when the guest has let go of it. If the guest does not, it stays and can be unplugged again.
    pub async fn unplug(&mut self, client: &Client, name: &str) -> Result<(), Error> {
        let Some(Entry { id, .. }) = self.devices.get(name) else {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("no device {name:?} was plugged"),
            ));
        };
        // It may have been since an earlier attempt that nobody waited for long enough.
        if !self.removals.have(id) {
            match client.send(request::REMOVE, Some(request::removal(id))).await {
                Ok(_) => match timeout(deadlines::UNPLUG, self.removals.come(id)).await {
                    Ok(true) => {}
                    Ok(false) => {
                        return Err(Error::new(ErrorKind::Unavailable, "Cloud Hypervisor has ended"));
                    }
                    Err(_) => {
                        return Err(Error::new(
                            ErrorKind::DeadlineExceeded,
                            format!("the guest did not let go of {id} within {:?}", deadlines::UNPLUG),
                        ));
                    }
                },
                Err(error) if error.kind == ErrorKind::NotFound => {
                    warn!(self.log, "a device was let go of before"; "device" => id);
                }
                // Most versions refuse what is not there with the words for anything. They have told of it before.
                Err(error)
                    if error.is_final()
                        && timeout(deadlines::DRAIN, self.removals.come(id)).await == Ok(true) => {}
                Err(error) => return Err(error),
            }
        }
        self.removals.forget(id);
        self.devices.remove(name);
        Ok(())
    }

    /// The machine is gone, and needs no files any more.
    pub fn clear(&mut self) {
        self.devices.clear();
        // It may never have been made.
        let _ = fs::remove_dir(&self.disks);
    }
}

impl Drop for Plugged {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Unmounts the disks of a VM whose owner is dead, if there are any.
pub fn clear_dead(run_dir: &Path) {
    let directory = run_dir.join(DISKS);
    // Its monitor could write beside it, and may have put a link to somewhere else in its place.
    if !fs::symlink_metadata(&directory).is_ok_and(|found| found.is_dir()) {
        return;
    }
    for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
        drop(Mounted::of_dead(entry.path()));
    }
    let _ = fs::remove_dir(&directory);
}

/// Ids of devices that guests have let go of, until that is of no use any more.
#[derive(Debug)]
pub struct Removals {
    told: Weak<watch::Sender<BTreeSet<String>>>,
    heard: watch::Receiver<BTreeSet<String>>,
}

impl Removals {
    /// None yet; and where to tell of them, for as long as the monitor does.
    pub fn new() -> (Arc<watch::Sender<BTreeSet<String>>>, Self) {
        let (told, heard) = watch::channel(BTreeSet::new());
        let told = Arc::new(told);
        let removals = Self {
            told: Arc::downgrade(&told),
            heard,
        };
        (told, removals)
    }

    fn have(&self, id: &str) -> bool {
        self.heard.borrow().contains(id)
    }

    /// Waits for that of this device. False: there will be none, because the monitor is gone.
    async fn come(&mut self, id: &str) -> bool {
        self.heard.wait_for(|ids| ids.contains(id)).await.is_ok()
    }

    /// It will have another device, or nobody asks for it any more.
    fn forget(&self, id: &str) {
        if let Some(told) = self.told.upgrade() {
            told.send_if_modified(|ids| ids.remove(id));
        }
    }
}

#[cfg(test)]
mod tests {
    use slog::{Discard, o};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    use super::*;
    use crate::VirtioFs;
    use crate::rest::RateLimit;

    const DONE: &str = "204 No Content";
    const REFUSED: &str = "500 Internal Server Error";

    type Told = Arc<watch::Sender<BTreeSet<String>>>;

    /// Nothing yet, and a monitor that gives these answers, and none after them.
    fn monitored(answers: &'static [&str]) -> (Plugged, Client, Told) {
        let log = Logger::root(Discard, o!());
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        tokio::spawn(async move {
            for answer in answers {
                let mut request = [0; 4096];
                assert!(theirs.read(&mut request).await.unwrap() > 0);
                let text = format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n");
                theirs.write_all(text.as_bytes()).await.unwrap();
            }
            std::future::pending::<()>().await;
        });
        let client = Client::new(ours, "Monitor", "", log.clone());
        let (told, removals) = Removals::new();
        let settings = Settings {
            seccomp: true,
            landlock: false,
            disk_limit: RateLimit::default(),
            net_limit: RateLimit::default(),
        };
        (
            Plugged::new(Path::new("/nonexistent"), settings, removals, log),
            client,
            told,
        )
    }

    fn share() -> Device {
        Device::VirtioFs(VirtioFs {
            tag: "data".into(),
            socket: "/s".into(),
            directory: "/d".into(),
        })
    }

    fn kind(result: Result<(), Error>) -> Option<ErrorKind> {
        result.err().map(|error| error.kind)
    }

    #[test]
    fn what_a_link_leads_to_is_no_disk_of_a_dead_vm() {
        let (run_dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink(other.path(), run_dir.path().join(DISKS)).unwrap();
        let file = other.path().join("file");
        fs::write(&file, "").unwrap();
        clear_dead(run_dir.path());
        assert!(file.exists());
    }

    #[tokio::test(start_paused = true)]
    async fn a_device_that_may_still_come_is_not_forgotten() {
        let (mut plugged, client, _told) = monitored(&[]);
        let added = plugged.plug(&client, share()).await;
        assert_eq!(kind(added), Some(ErrorKind::DeadlineExceeded));
        let again = plugged.plug(&client, share()).await;
        assert_eq!(kind(again), Some(ErrorKind::FailedPrecondition));
        let removed = plugged.unplug(&client, "data").await;
        assert_eq!(
            kind(removed),
            Some(ErrorKind::DeadlineExceeded),
            "it may be there"
        );

        let (mut plugged, client, _told) = monitored(&[REFUSED]);
        let added = plugged.plug(&client, share()).await;
        assert_eq!(kind(added), Some(ErrorKind::Internal));
        let removed = plugged.unplug(&client, "data").await;
        assert_eq!(kind(removed), Some(ErrorKind::NotFound), "it was refused");
    }

    #[tokio::test(start_paused = true)]
    async fn a_device_that_was_let_go_of_too_late_can_be_unplugged_and_plugged_again() {
        // The last two are to a second device of the same name.
        let (mut plugged, client, told) = monitored(&[DONE, DONE, DONE, DONE]);
        let late = async |plugged: &mut Plugged| {
            plugged.plug(&client, share()).await.unwrap();
            let removed = plugged.unplug(&client, "data").await;
            assert_eq!(kind(removed), Some(ErrorKind::DeadlineExceeded));
        };
        late(&mut plugged).await;
        told.send_modify(|ids| ids.extend(["fs-data".into()]));
        plugged.unplug(&client, "data").await.unwrap();
        // What is known of the first says nothing of the second.
        late(&mut plugged).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_device_that_is_let_go_of_while_it_is_asked_for_is_gone() {
        let (mut plugged, client, told) = monitored(&[DONE, REFUSED, REFUSED]);
        plugged.plug(&client, share()).await.unwrap();
        let refused = plugged.unplug(&client, "data").await;
        assert_eq!(kind(refused), Some(ErrorKind::Internal), "it is there still");
        let hear = async {
            tokio::time::sleep(deadlines::DRAIN / 2).await;
            told.send_modify(|ids| ids.extend(["fs-data".into()]));
        };
        let (removed, ()) = tokio::join!(plugged.unplug(&client, "data"), hear);
        removed.unwrap();
        assert!(told.borrow().is_empty(), "nothing is kept of it");
    }
}
