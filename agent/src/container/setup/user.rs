//! Who the process is: ids, groups, working directory, home.

use std::ffi::CString;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::thread;

use crate::container::ProcessStdio;
use crate::container::error::{Error, Result, Step};
use crate::container::plan::ProcessPlan;

/// Most that is read of a container's /etc/passwd.
const MAX_PASSWD: u64 = 1 << 20;

/// Takes the ids 0 of a user namespace.
pub(super) fn become_root() -> Result<()> {
    let (uid, gid) = (Uid::ROOT, Gid::ROOT);
    thread::set_thread_groups(&[]).step(|| "leave the agent's groups")?;
    thread::set_thread_res_gid(gid, gid, gid).step(|| "become the namespace's root")?;
    thread::set_thread_res_uid(uid, uid, uid).step(|| "become the namespace's root")
}

/// Gives the pipes to the user, who may open them by name (/dev/stdout) as well.
pub(super) fn own_streams(stdio: &ProcessStdio, uid: u32) -> Result<()> {
    let given: [&Option<OwnedFd>; 3] = [&stdio.stdin, &stdio.stdout, &stdio.stderr];
    // Those that are missing are /dev/null, which belongs to everybody.
    for (target, _) in given.iter().enumerate().filter(|(_, fd)| fd.is_some()) {
        let streams = [
            rustix::stdio::stdin(),
            rustix::stdio::stdout(),
            rustix::stdio::stderr(),
        ];
        own(streams[target].as_fd(), uid)?;
    }
    Ok(())
}

/// Gives one stream to the user.
pub(super) fn own(stream: BorrowedFd<'_>, uid: u32) -> Result<()> {
    match rustix::fs::fchown(stream, Some(Uid::from_raw(uid)), None) {
        Ok(()) | Err(Errno::PERM | Errno::INVAL | Errno::ROFS) => Ok(()),
        Err(error) => Err(error).step(|| "give the streams to the user"),
    }
}

/// Becomes the user, in the working directory. Permitted capabilities stay; the caller sets them last.
pub(super) fn enter(process: &ProcessPlan) -> Result<()> {
    let step = || format!("change to the working directory {}", process.cwd.display());
    let (uid, gid) = (Uid::from_raw(process.uid), Gid::from_raw(process.gid));
    let groups: Vec<Gid> = process
        .additional_gids
        .iter()
        .map(|&gid| Gid::from_raw(gid))
        .collect();
    // As root where root may, and else (a network file system) as the user.
    let early = rustix::process::chdir(&process.cwd);
    thread::set_keep_capabilities(true).step(|| "keep the capabilities")?;
    thread::set_thread_groups(&groups).step(|| "set the additional groups")?;
    thread::set_thread_res_gid(gid, gid, gid).step(|| format!("set the group {}", process.gid))?;
    thread::set_thread_res_uid(uid, uid, uid).step(|| format!("set the user {}", process.uid))?;
    thread::set_keep_capabilities(false).step(|| "keep the capabilities")?;
    match early {
        Ok(()) => {}
        Err(Errno::ACCESS | Errno::PERM) => rustix::process::chdir(&process.cwd).step(step)?,
        Err(error) => return Err(error).step(step),
    }
    // CVE-2024-21626: a working directory reached through a leaked descriptor lies outside the container, and the kernel
    // says so.
    let inside = rustix::process::getcwd(Vec::new()).is_ok_and(|path| path.as_bytes().starts_with(b"/"));
    if inside {
        Ok(())
    } else {
        Err(Error::Step {
            step: "the working directory is outside the container".into(),
            source: Errno::NOENT.into(),
        })
    }
}

/// Makes all permitted capabilities effective, which a change of user undoes.
pub(super) fn use_all_capabilities() -> Result<()> {
    let mut sets = thread::capabilities(None).step(|| "read the capabilities")?;
    sets.effective = sets.permitted;
    thread::set_capabilities(None, sets).step(|| "use the capabilities")
}

/// `HOME=` of the user by the container's /etc/passwd; the root where that is silent.
pub(super) fn home(uid: u32) -> CString {
    let mut value = b"HOME=".to_vec();
    value.extend(
        passwd()
            .and_then(|text| home_in(&text, uid))
            .unwrap_or_else(|| b"/".to_vec()),
    );
    CString::new(value).unwrap_or_else(|_| c"HOME=/".to_owned())
}

fn passwd() -> Option<Vec<u8>> {
    // Not to wait for the writer of a FIFO.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file = rustix::fs::open("/etc/passwd", flags, Mode::empty()).ok()?;
    let stat = rustix::fs::fstat(&file).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return None;
    }
    let mut text = Vec::new();
    std::fs::File::from(file)
        .take(MAX_PASSWD)
        .read_to_end(&mut text)
        .ok()?;
    Some(text)
}

fn home_in(passwd: &[u8], uid: u32) -> Option<Vec<u8>> {
    let uid = uid.to_string();
    passwd.split(|&byte| byte == b'\n').find_map(|line| {
        let mut fields = line.split(|&byte| byte == b':').skip(2);
        if fields.next()? != uid.as_bytes() {
            return None;
        }
        let home = fields.nth(2)?;
        home.starts_with(b"/").then(|| home.to_vec())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn home_is_the_users() {
        let passwd = b"root:x:0:0:root:/root:/bin/sh\n# note\nbad:x:7\nweb:x:33:33:www:/var/www:/bin/sh\nnone:x:5:5:::\n";
        let table = [
            (0, Some("/root")),
            (33, Some("/var/www")),
            (5, None),
            (7, None),
            (1, None),
        ];
        for (uid, home) in table {
            assert_eq!(home_in(passwd, uid).as_deref(), home.map(str::as_bytes), "{uid}");
        }
    }

    proptest! {
        #[test]
        fn any_passwd_is_read_without_harm(text in proptest::collection::vec(any::<u8>(), 0..200), uid: u32) {
            if let Some(home) = home_in(&text, uid) {
                prop_assert!(home.starts_with(b"/"));
            }
        }
    }
}
