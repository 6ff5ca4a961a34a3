//! The process of a specification, checked: the same for a container's init and for an exec.

use std::collections::HashSet;
use std::ffi::CString;
use std::path::PathBuf;

use oci_spec::runtime::{PosixRlimitType, Process};
use rustix::process::{Resource, Rlimit};

use crate::container::capabilities::Sets;
use crate::container::error::{Error, Result};

/// What `runc` sets when the specification is silent.
const DEFAULT_UMASK: u32 = 0o022;

/// A process to be.
#[derive(Debug)]
pub(in crate::container) struct ProcessPlan {
    /// At least one.
    pub(in crate::container) args: Vec<CString>,
    pub(in crate::container) env: Vec<CString>,
    pub(in crate::container) cwd: PathBuf,
    pub(in crate::container) uid: u32,
    pub(in crate::container) gid: u32,
    pub(in crate::container) additional_gids: Vec<u32>,
    pub(in crate::container) umask: u32,
    pub(in crate::container) capabilities: Sets,
    pub(in crate::container) no_new_privileges: bool,
    pub(in crate::container) rlimits: Vec<(Resource, Rlimit)>,
    pub(in crate::container) oom_score_adj: Option<i32>,
}

impl ProcessPlan {
    /// Checks a process. The guest has no AppArmor nor SELinux, so their profile and label mean nothing here.
    pub(in crate::container) fn new(process: &Process) -> Result<Self> {
        let unsupported = [
            ("process.scheduler", process.scheduler().is_some()),
            ("process.ioPriority", process.io_priority().is_some()),
            ("process.execCPUAffinity", process.exec_cpu_affinity().is_some()),
        ];
        if let Some((field, _)) = unsupported.iter().find(|(_, asked)| *asked) {
            return Err(Error::unsupported(*field, "this setting"));
        }
        let args = strings("process.args", process.args().as_deref())?;
        if args.first().is_none_or(|program| program.is_empty()) {
            return Err(Error::spec("process.args", "names no program"));
        }
        let env = strings("process.env", process.env().as_deref())?;
        if let Some(bad) = env.iter().find(|entry| !entry.as_bytes().contains(&b'=')) {
            return Err(Error::spec("process.env", format!("{bad:?} is not name=value")));
        }
        if !process.cwd().is_absolute() {
            return Err(Error::spec("process.cwd", "must be an absolute path"));
        }
        let user = process.user();
        let umask = user.umask().unwrap_or(DEFAULT_UMASK);
        if umask > 0o777 {
            return Err(Error::spec(
                "process.user.umask",
                format!("{umask:#o} is no umask"),
            ));
        }
        let oom_score_adj = process.oom_score_adj();
        if oom_score_adj.is_some_and(|score| !(-1000..=1000).contains(&score)) {
            return Err(Error::spec("process.oomScoreAdj", "must be -1000 to 1000"));
        }
        Ok(Self {
            args,
            env,
            cwd: super::clean(process.cwd()),
            uid: user.uid(),
            gid: user.gid(),
            additional_gids: user.additional_gids().clone().unwrap_or_default(),
            umask,
            capabilities: Sets::from_spec(process.capabilities().as_ref())?,
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            rlimits: rlimits(process)?,
            oom_score_adj,
        })
    }

    /// Value of an environment variable; the last one counts, as in a shell.
    pub(in crate::container) fn variable(&self, name: &str) -> Option<&[u8]> {
        self.env
            .iter()
            .rev()
            .find_map(|entry| entry.as_bytes().strip_prefix(name.as_bytes())?.strip_prefix(b"="))
    }
}

fn strings(field: &str, values: Option<&[String]>) -> Result<Vec<CString>> {
    values
        .unwrap_or_default()
        .iter()
        .map(|value| CString::new(value.as_str()).map_err(|_| Error::spec(field, "contains a NUL byte")))
        .collect()
}

fn rlimits(process: &Process) -> Result<Vec<(Resource, Rlimit)>> {
    const FIELD: &str = "process.rlimits";
    let mut seen = HashSet::new();
    let mut limits = Vec::new();
    for limit in process.rlimits().iter().flatten() {
        let kind = limit.typ();
        if !seen.insert(kind.to_string()) {
            return Err(Error::spec(FIELD, format!("{kind} is named twice")));
        }
        if limit.soft() > limit.hard() {
            return Err(Error::spec(FIELD, format!("{kind}: soft is above hard")));
        }
        // RLIM_INFINITY.
        let value = |number: u64| (number != u64::MAX).then_some(number);
        limits.push((
            resource(kind),
            Rlimit {
                current: value(limit.soft()),
                maximum: value(limit.hard()),
            },
        ));
    }
    Ok(limits)
}

fn resource(kind: PosixRlimitType) -> Resource {
    match kind {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    }
}
