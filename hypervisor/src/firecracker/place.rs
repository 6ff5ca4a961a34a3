//! Where a Firecracker lives, and by which paths it finds what it needs: among all files, or in a jail.
//!
//! In a jail is nothing but what is mounted there. It is a file system of the VM's own below its directory, because those of
//! `/run` mostly take no devices; Firecracker's jailer makes the devices, changes into it and drops what is not needed.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use rustix::process::{getegid, geteuid};

use crate::rest::Mounted;
use crate::spec::text;
use crate::{Disk, Error, ErrorKind};

/// Its control socket.
pub const CONTROL: &str = "fc.sock";

/// The jail's directory, below the VM's own.
const JAIL: &str = "jail";

/// What every VM is called in its jail: there is one in each.
const ID: &str = "vm";

/// Its vsock's sockets, in a jail.
const VSOCK: &str = "vsock";

/// A file without content, for disks that wait for a file.
const NOTHING: &str = "nothing";

/// A place for one Firecracker.
#[derive(Debug)]
pub enum Place {
    /// Among all files.
    Open {
        /// Its VM's directory.
        run_dir: PathBuf,
    },
    /// In a jail.
    Jail(Jail),
}

/// A jail, which is taken down when this is dropped.
#[derive(Debug)]
pub struct Jail {
    root: PathBuf,
    mounts: Vec<Mounted>,
    /// Its file system, until it is taken down.
    base: Option<PathBuf>,
}

/// A command line.
#[derive(Debug)]
pub struct CommandLine {
    /// What is executed.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
}

impl Place {
    /// A place for `program`, in a jail if there is a jailer. Needs root for a jail.
    pub fn new(program: &Path, jailer: Option<&Path>, run_dir: &Path) -> Result<Self, Error> {
        match jailer {
            None => Ok(Self::Open {
                run_dir: run_dir.to_owned(),
            }),
            Some(_) => Jail::new(program, run_dir).map(Self::Jail),
        }
    }

    /// Where the files are that it makes.
    pub fn directory(&self) -> &Path {
        match self {
            Self::Open { run_dir } => run_dir,
            Self::Jail(jail) => &jail.root,
        }
    }

    /// How it is started, with these arguments besides that for its control socket.
    pub fn command_line(
        &self,
        program: &Path,
        jailer: Option<&Path>,
        args: &[&str],
    ) -> Result<CommandLine, Error> {
        let mut line: Vec<OsString> = Vec::new();
        let executed = match (self, jailer) {
            (Self::Jail(Jail { base: Some(base), .. }), Some(jailer)) => {
                let user = geteuid().as_raw().to_string();
                let group = getegid().as_raw().to_string();
                line.extend(["--id", ID, "--uid", &user, "--gid", &group].map(OsString::from));
                line.extend(["--exec-file".into(), program.into()]);
                line.extend(["--chroot-base-dir".into(), base.into(), "--".into()]);
                jailer
            }
            _ => program,
        };
        line.extend(["--api-sock".into(), self.seen(CONTROL)?.into()]);
        line.extend(args.iter().map(OsString::from));
        Ok(CommandLine {
            program: executed.to_owned(),
            args: line,
        })
    }

    /// By which path it finds what it makes, and we do below [`Place::directory`].
    pub fn seen(&self, name: &str) -> Result<String, Error> {
        match self {
            Self::Open { run_dir } => text(&run_dir.join(name)),
            Self::Jail(_) => Ok(format!("/{name}")),
        }
    }

    /// By which path it finds a file of the host.
    pub fn file(&mut self, name: &str, path: &Path) -> Result<String, Error> {
        match self {
            Self::Open { .. } => text(path),
            Self::Jail(jail) => {
                let file = File::open(path).map_err(|source| {
                    Error::caused(
                        ErrorKind::NotFound,
                        format!("cannot open {}: {source}", path.display()),
                        source,
                    )
                })?;
                let mounted = Mounted::read_only(jail.root.join(name), file.as_fd())?;
                jail.mounts.push(mounted);
                Ok(format!("/{name}"))
            }
        }
    }

    /// By which path it finds a descriptor that it is started with, if it puts it into `inherited`.
    pub fn descriptor(
        &mut self,
        name: &str,
        fd: &Arc<OwnedFd>,
        inherited: &mut Vec<Arc<OwnedFd>>,
    ) -> Result<String, Error> {
        match self {
            Self::Open { .. } => {
                inherited.push(Arc::clone(fd));
                Ok(format!("/proc/self/fd/{}", fd.as_raw_fd()))
            }
            Self::Jail(jail) => jail.expose(name, fd),
        }
    }

    /// By which path it finds a disk while it runs, for as long as the other is held.
    pub fn disk(&self, name: &str, disk: &Disk) -> Result<(String, Option<Mounted>), Error> {
        match self {
            Self::Open { .. } => {
                let path = format!("/proc/{}/fd/{}", std::process::id(), disk.file.as_raw_fd());
                Ok((path, None))
            }
            Self::Jail(jail) => {
                let mounted = Mounted::new(jail.root.join(name), disk.file.as_fd())?;
                Ok((format!("/{name}"), Some(mounted)))
            }
        }
    }

    /// By which path it finds a disk that has no content yet.
    pub fn nothing(&self) -> String {
        match self {
            Self::Open { .. } => "/dev/null".into(),
            Self::Jail(_) => format!("/{NOTHING}"),
        }
    }

    /// By which path it makes the socket of its vsock. Those that wait for the guest's calls beside it are there already.
    pub fn vsock(&mut self, uds: &Path) -> Result<String, Error> {
        let jail = match self {
            Self::Open { .. } => return text(uds),
            Self::Jail(jail) => jail,
        };
        let failed = |source| {
            Error::caused(
                ErrorKind::Internal,
                format!("cannot look for the sockets beside {}: {source}", uds.display()),
                source,
            )
        };
        let (Some(directory), Some(name)) = (uds.parent(), uds.file_name().and_then(|name| name.to_str()))
        else {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("{} is no path of a socket", uds.display()),
            ));
        };
        for entry in fs::read_dir(directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let file_name = entry.file_name();
            let port = file_name
                .to_str()
                .and_then(|other| other.strip_prefix(name)?.strip_prefix('_'));
            if let Some(port) = port {
                let flags =
                    rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NOFOLLOW;
                let socket = rustix::fs::open(entry.path(), flags, rustix::fs::Mode::empty())
                    .map_err(|errno| failed(errno.into()))?;
                jail.expose(&format!("{VSOCK}_{port}"), &socket)?;
            }
        }
        Ok(format!("/{VSOCK}"))
    }

    /// Takes it down: nobody lives there any more.
    pub fn clear(&mut self) {
        if let Self::Jail(jail) = self {
            jail.clear();
        }
    }

    /// Whether one VM's files are found by the paths of another's.
    pub fn is_like_any_other(&self) -> bool {
        matches!(self, Self::Jail(_))
    }
}

impl Jail {
    fn new(program: &Path, run_dir: &Path) -> Result<Self, Error> {
        let base = run_dir.join(JAIL);
        let failed = |source: std::io::Error| {
            Error::caused(
                ErrorKind::Internal,
                format!(
                    "cannot make a jail at {} (is this root?): {source}",
                    base.display()
                ),
                source,
            )
        };
        // The jailer looks for the file itself, and so for its name.
        let name = fs::canonicalize(program).map_err(|source| {
            let kind = match source.kind() {
                std::io::ErrorKind::NotFound => ErrorKind::NotFound,
                _ => ErrorKind::Internal,
            };
            Error::caused(
                kind,
                format!("cannot use {}: {source}", program.display()),
                source,
            )
        })?;
        let root = base
            .join(name.file_name().unwrap_or_default())
            .join(ID)
            .join("root");
        DirBuilder::new().mode(0o700).create(&base).map_err(failed)?;
        let jail = Self {
            root,
            mounts: Vec::new(),
            base: Some(base.clone()),
        };
        mount("tmpfs", &base, "tmpfs", MountFlags::NOSUID, Some(c"mode=0700"))
            // What is mounted later is to be seen in it as well.
            .and_then(|()| mount_change(&base, MountPropagationFlags::SHARED))
            .map_err(|errno| failed(errno.into()))?;
        fs::create_dir_all(&jail.root).map_err(failed)?;
        File::create_new(jail.root.join(NOTHING)).map_err(failed)?;
        Ok(jail)
    }

    fn expose(&mut self, name: &str, file: impl AsFd) -> Result<String, Error> {
        let mounted = Mounted::new(self.root.join(name), file.as_fd())?;
        self.mounts.push(mounted);
        Ok(format!("/{name}"))
    }
}

impl Jail {
    fn clear(&mut self) {
        self.mounts.clear();
        if let Some(base) = self.base.take() {
            take_down(&base);
        }
    }
}

/// Takes down the jail of a VM whose owner is dead, if there is one.
pub fn clear_dead(run_dir: &Path) {
    take_down(&run_dir.join(JAIL));
}

/// With all that is mounted in it.
fn take_down(base: &Path) {
    // Not mounted, where that is what failed. A Firecracker that is still there keeps it until it is gone.
    let _ = unmount(base, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    let _ = fs::remove_dir(base);
}

impl Drop for Jail {
    fn drop(&mut self) {
        self.clear();
    }
}
