//! The cgroup of a sandbox's processes: made in every hierarchy of the host before the first of them is started, and removed
//! after the last. They are born in it: each joins between its fork and its program.
//!
//! Directories are made as they are, in version 1 and 2 and below systemd's slices too: systemd is not asked, and no
//! controller is switched on, because the limits that count are on the directories above. No link is followed.
//! It must not know why a cgroup is where it is, nor what runs in it.

mod hierarchy;
mod remove;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstat, major, minor, mkdirat, openat, openat2};
use rustix::io::Errno;

use super::step::Steps;
use crate::error::{Error, ErrorKind, Result};
use crate::model::CgroupPlan;
use crate::store::CgroupRecord;
use hierarchy::Hierarchy;
pub(super) use remove::{end_others, remove, remove_now};

/// How often others may remove or make a directory in the moment that we need it.
const ATTEMPTS: usize = 16;

/// How many sandboxes may want one name. One is usual; others are of another scope, or left by an owner whose record is lost.
const NAMES: usize = 64;

/// Longest list of CPUs or memory nodes that is copied, in bytes.
const LONGEST_LIST: u64 = 64 * 1024;

/// Where the cgroup is to be in one hierarchy.
struct Place {
    hierarchy: Hierarchy,
    /// Where the hierarchy is mounted.
    root: OwnedFd,
    own: PathBuf,
    parents: Vec<PathBuf>,
}

/// Why a directory was not made.
enum Refused {
    /// Somebody has changed the tree since we have looked.
    Changed,
    /// The system's answer.
    Failed(Errno),
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Self {
        match errno {
            // A cgroup that has been removed while we had it open.
            Errno::NOENT | Errno::NODEV => Self::Changed,
            errno => Self::Failed(errno),
        }
    }
}

/// Makes it. The answer is what a process that is to be in it joins by: `cgroup.procs` of every hierarchy, opened for writing.
///
/// `keep` is told what will have been made before it is; what a failure leaves is [`remove()`]'s to take away.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`] for a path that is no directory, [`ErrorKind::FailedPrecondition`] where nothing may be
/// made.
pub(super) fn make(
    plan: &CgroupPlan,
    steps: &Steps,
    keep: &mut dyn FnMut(CgroupRecord) -> Result<()>,
) -> Result<Vec<Arc<OwnedFd>>> {
    let mut places = places(plan)?;
    keep(record(&places))?;
    steps.take()?;
    let mut members = Vec::with_capacity(places.len());
    for at in 0..places.len() {
        members.push(Arc::new(insist(plan, &mut places, at, keep)?));
        steps.take()?;
    }
    Ok(members)
}

/// Where hierarchies are mounted.
#[cfg(test)]
pub(super) fn roots() -> Vec<PathBuf> {
    let mounts = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let found = hierarchy::writable(&mounts).into_iter();
    found.map(|hierarchy| hierarchy.mount_point).collect()
}

/// Looks where it is to be. Nothing is made.
fn places(plan: &CgroupPlan) -> Result<Vec<Place>> {
    const LIST: &str = "/proc/self/mountinfo";
    let mounts = fs::read(LIST)
        .map_err(|cause| Error::caused(ErrorKind::Internal, format!("cannot read {LIST}"), cause))?;
    let mut places = Vec::new();
    for hierarchy in hierarchy::writable(&mounts) {
        let failed = |errno| refused(&hierarchy, Path::new(""), errno);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, &hierarchy.mount_point, flags, Mode::empty()).map_err(failed)?;
        let device = fstat(&root).map_err(failed)?.st_dev;
        // Something else hides it.
        if (major(device), minor(device)) != hierarchy.device {
            continue;
        }
        places.push(place(plan, hierarchy, root)?);
    }
    if places.is_empty() {
        return Err(Error::new(
            ErrorKind::FailedPrecondition,
            "the cgroup of the sandbox cannot be made: no hierarchy of cgroups is mounted and can be written; mount one, or \
             leave linux.cgroupsPath away",
        ));
    }
    Ok(places)
}

fn place(plan: &CgroupPlan, hierarchy: Hierarchy, root: OwnedFd) -> Result<Place> {
    let exists = |path: &Path| match open_below(&root, path) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(refused(&hierarchy, path, errno)),
    };
    let mut names = (0..NAMES).map(|n| match n {
        0 => plan.path.join(&plan.name),
        n => plan.path.join(format!("{}.{n}", plan.name)),
    });
    let own = loop {
        match names.next() {
            Some(name) if exists(&name)? => {}
            Some(name) => break name,
            None => return Err(refused(&hierarchy, &plan.path.join(&plan.name), Errno::EXIST)),
        }
    };
    // One that cannot be opened was an error above.
    let parents = hierarchy::parents(&own, plan.is_apart, &|path| exists(path).unwrap_or(true));
    Ok(Place {
        hierarchy,
        root,
        own,
        parents,
    })
}

fn record(places: &[Place]) -> CgroupRecord {
    let mut record = CgroupRecord::default();
    for place in places {
        let mount_point = &place.hierarchy.mount_point;
        record.own.push(mount_point.join(&place.own));
        let parents = place.parents.iter().map(|parent| mount_point.join(parent));
        record.parents.extend(parents);
    }
    record
}

/// Makes it in one hierarchy, however often the tree changes meanwhile.
fn insist(
    plan: &CgroupPlan,
    places: &mut [Place],
    at: usize,
    keep: &mut dyn FnMut(CgroupRecord) -> Result<()>,
) -> Result<OwnedFd> {
    for _ in 0..ATTEMPTS {
        let Some(here) = places.get_mut(at) else { break };
        match make_in(here) {
            Ok(members) => return Ok(members),
            Err(Refused::Failed(errno)) => return Err(refused(&here.hierarchy, &here.own, errno)),
            Err(Refused::Changed) => {}
        }
        let root = here.root.try_clone().map_err(|cause| {
            Error::caused(
                ErrorKind::Internal,
                "cannot copy a descriptor of a hierarchy",
                cause,
            )
        })?;
        *here = place(plan, here.hierarchy.clone(), root)?;
        keep(record(places))?;
    }
    Err(Error::new(
        ErrorKind::Internal,
        format!("others keep changing the cgroups above {}", plan.path.display()),
    ))
}

fn make_in(place: &Place) -> Result<OwnedFd, Refused> {
    let mut dir: Option<OwnedFd> = None;
    let last = place.own.components().count().saturating_sub(1);
    for (at, name) in place.own.iter().enumerate() {
        let above = dir.as_ref().unwrap_or(&place.root);
        match mkdirat(above, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => {}
            // Somebody else's, who was faster.
            Err(Errno::EXIST) if at == last => return Err(Refused::Changed),
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        let below = open_below(above, Path::new(name))?;
        if place.hierarchy.has_cpusets {
            inherit_cpus(above, &below)?;
        }
        dir = Some(below);
    }
    let own = dir.as_ref().unwrap_or(&place.root);
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(own, "cgroup.procs", flags, Mode::empty())?)
}

/// A cgroup of a cpuset hierarchy begins with no CPUs and no memory, where no process can be.
fn inherit_cpus(above: &OwnedFd, below: &OwnedFd) -> Result<(), Refused> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let open = |dir: &OwnedFd, access| {
            openat(
                dir,
                name,
                access | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .map(File::from)
        };
        if is_blank(&list(open(below, OFlags::RDONLY)?)?) {
            let inherited = list(open(above, OFlags::RDONLY)?)?;
            open(below, OFlags::WRONLY)?
                .write_all(&inherited)
                .map_err(errno_of)?;
        }
    }
    Ok(())
}

fn list(file: File) -> Result<Vec<u8>, Refused> {
    let mut bytes = Vec::new();
    file.take(LONGEST_LIST)
        .read_to_end(&mut bytes)
        .map_err(errno_of)?;
    Ok(bytes)
}

fn is_blank(list: &[u8]) -> bool {
    list.iter().all(u8::is_ascii_whitespace)
}

fn errno_of(cause: io::Error) -> Refused {
    Errno::from_io_error(&cause).unwrap_or(Errno::IO).into()
}

/// Opens a directory of a hierarchy: in it, and through no link.
pub(super) fn open_below(dir: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    openat2(
        dir,
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH
            | ResolveFlags::NO_SYMLINKS
            | ResolveFlags::NO_MAGICLINKS
            | ResolveFlags::NO_XDEV,
    )
}

fn refused(hierarchy: &Hierarchy, path: &Path, errno: Errno) -> Error {
    let (kind, remedy) = match errno {
        Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG | Errno::INVAL | Errno::XDEV => {
            (ErrorKind::InvalidArgument, "name another linux.cgroupsPath")
        }
        Errno::ACCESS | Errno::PERM | Errno::ROFS => (
            ErrorKind::FailedPrecondition,
            "let this runtime write there, or leave linux.cgroupsPath away",
        ),
        // Limits on the number of cgroups, below a directory and altogether.
        Errno::AGAIN | Errno::NOSPC | Errno::NOMEM => (
            ErrorKind::FailedPrecondition,
            "the host has as many cgroups as it may have",
        ),
        _ => (ErrorKind::Internal, "see dmesg"),
    };
    Error::caused(
        kind,
        format!(
            "cannot make the sandbox's cgroup {}; {remedy}",
            hierarchy.mount_point.join(path).display()
        ),
        io::Error::from(errno),
    )
}
