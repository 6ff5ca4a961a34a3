//! A seccomp profile, compiled in the agent into the instructions that the child loads.
//!
//! Compiled once for a container, before the clone: its init and every later exec load the same instructions, and no
//! library runs between the drop of privileges and the execution of the program.

mod assemble;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{Read, Seek};

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
};
use rustix::fs::MemfdFlags;

use super::error::{Error, Result, Step};
use super::sys;
use assemble::{Condition, Operator, Rule};

/// Size of a `struct sock_filter` of linux/filter.h: u16 code, u8 jt, u8 jf, u32 k.
const INSTRUCTION: usize = 8;

/// EPERM, as the specification says.
const DEFAULT_ERRNO: u32 = 1;

/// A compiled filter.
#[derive(Debug, Clone)]
pub(super) struct Filter {
    program: Vec<libc::sock_filter>,
    flags: libc::c_ulong,
}

impl Filter {
    /// Compiles a profile. Names of system calls that this build of libseccomp does not know are ignored, as a profile
    /// is written for many kernels.
    pub(super) fn compile(profile: &LinuxSeccomp) -> Result<Self> {
        let assembled = usual(profile)?.and_then(|profile| assemble::assemble(&profile));
        Ok(Self {
            program: match assembled {
                Some(program) => program,
                None => by_library(profile)?,
            },
            flags: flags(profile.flags().as_deref().unwrap_or_default())?,
        })
    }

    /// Loads the filter for this process. Needs no_new_privs or CAP_SYS_ADMIN.
    pub(super) fn load(&self) -> Result<()> {
        sys::load_filter(&self.program, self.flags).step(|| "load the seccomp filter")
    }
}

/// A call's name, and its direct number if it has one.
type Call = (&'static str, Option<u32>);

/// Calls of 32-bit x86 that are reached through one call with a number as its first argument, and the numbers under which
/// most are reached directly too (arch/x86/entry/syscalls/syscall_32.tbl of Linux). libseccomp's name lookup does not
/// tell those.
const MULTIPLEXED: [(&str, &[Call]); 2] = [
    (
        "socketcall",
        &[
            ("socket", Some(359)),
            ("bind", Some(361)),
            ("connect", Some(362)),
            ("listen", Some(363)),
            ("accept", None),
            ("getsockname", Some(367)),
            ("getpeername", Some(368)),
            ("socketpair", Some(360)),
            ("send", None),
            ("recv", None),
            ("sendto", Some(369)),
            ("recvfrom", Some(371)),
            ("shutdown", Some(373)),
            ("setsockopt", Some(366)),
            ("getsockopt", Some(365)),
            ("sendmsg", Some(370)),
            ("recvmsg", Some(372)),
            ("accept4", Some(364)),
            ("recvmmsg", Some(337)),
            ("sendmmsg", Some(345)),
        ],
    ),
    (
        "ipc",
        &[
            ("semop", None),
            ("semget", Some(393)),
            ("semctl", Some(394)),
            ("semtimedop", None),
            ("msgsnd", Some(400)),
            ("msgrcv", Some(401)),
            ("msgget", Some(399)),
            ("msgctl", Some(402)),
            ("shmat", Some(397)),
            ("shmdt", Some(398)),
            ("shmget", Some(395)),
            ("shmctl", Some(396)),
        ],
    ),
];

/// The multiplexing call of a call of 32-bit x86, and the call's direct number.
fn multiplexed(name: &str) -> Option<(&'static str, Option<u32>)> {
    MULTIPLEXED.iter().find_map(|(way, calls)| {
        let (_, direct) = calls.iter().find(|(call, _)| *call == name)?;
        Some((*way, *direct))
    })
}

/// The profile for [`assemble`]; `None` when it is not of the shape that this does.
fn usual(profile: &LinuxSeccomp) -> Result<Option<assemble::Profile>> {
    if ScmpArch::native() != ScmpArch::X8664 {
        return Ok(None);
    }
    let checked = |wanted: LinuxSeccompAction, errno, field| {
        action(wanted, errno, field).map(|_| wanted.as_u32(Some(errno.unwrap_or(DEFAULT_ERRNO))))
    };
    let mut usual = assemble::Profile {
        default: checked(
            profile.default_action(),
            profile.default_errno_ret(),
            "linux.seccomp.defaultAction",
        )?,
        ..assemble::Profile::default()
    };
    for arch in profile.architectures().iter().flatten() {
        match arch {
            Arch::ScmpArchNative | Arch::ScmpArchX86_64 => {}
            Arch::ScmpArchX32 => usual.x32 = true,
            Arch::ScmpArchX86 => usual.i386 = Some(assemble::Rules::new()),
            _ => return Ok(None),
        }
    }
    let mut ruled: Vec<(&str, u32)> = Vec::new();
    for rule in profile.syscalls().iter().flatten() {
        let wanted = Rule {
            action: checked(rule.action(), rule.errno_ret(), "linux.seccomp.syscalls.action")?,
            alternatives: alternatives(rule.args().as_deref().unwrap_or_default())?,
        };
        if wanted.action == usual.default {
            continue;
        }
        for name in rule.names() {
            if !add_rule(&mut usual, name, &wanted) {
                return Ok(None);
            }
            ruled.push((name, wanted.action));
        }
    }
    if let Some(rules) = &usual.i386 {
        let covered = ruled
            .iter()
            .all(|(name, action)| is_covered(rules, name, *action));
        return Ok(covered.then_some(usual));
    }
    Ok(Some(usual))
}

/// The number of a call. Negative ones stand for calls that the architecture lacks.
fn number(name: &str, arch: ScmpArch) -> Option<u32> {
    let syscall = ScmpSyscall::from_name_by_arch(name, arch).ok()?;
    u32::try_from(syscall.as_raw_syscall()).ok()
}

fn add_rule(profile: &mut assemble::Profile, name: &str, rule: &Rule) -> bool {
    let mut joined = true;
    if let Some(number) = number(name, ScmpArch::X8664) {
        joined &= assemble::add(&mut profile.native, number, rule);
    }
    if profile.x32
        && let Some(number) = number(name, ScmpArch::X32)
    {
        joined &= assemble::add(&mut profile.native, number, rule);
    }
    if let Some(rules) = &mut profile.i386
        && let Some(number) =
            multiplexed(name).map_or_else(|| number(name, ScmpArch::X86), |(_, direct)| direct)
    {
        joined &= assemble::add(rules, number, rule);
    }
    joined
}

/// Whether a call's rule says the same when the call is reached the other way on 32-bit x86, so that nothing has to look
/// at the number in the first argument.
fn is_covered(rules: &assemble::Rules, name: &str, action: u32) -> bool {
    multiplexed(name).is_none_or(|(way, _)| {
        number(way, ScmpArch::X86)
            .and_then(|number| rules.get(&number))
            .is_some_and(|way| way.alternatives.is_empty() && way.action == action)
    })
}

/// The profile by libseccomp, which knows every shape of it.
fn by_library(profile: &LinuxSeccomp) -> Result<Vec<libc::sock_filter>> {
    let default = action(
        profile.default_action(),
        profile.default_errno_ret(),
        "linux.seccomp.defaultAction",
    )?;
    let mut context = ScmpFilterContext::new(default).map_err(refused("linux.seccomp.defaultAction"))?;
    for arch in profile.architectures().iter().flatten() {
        context
            .add_arch(architecture(*arch)?)
            .map_err(refused("linux.seccomp.architectures"))?;
    }
    for rule in profile.syscalls().iter().flatten() {
        let wanted = action(rule.action(), rule.errno_ret(), "linux.seccomp.syscalls.action")?;
        // A rule that says what happens anyway; libseccomp refuses those.
        if wanted == default {
            continue;
        }
        let alternatives: Vec<Vec<ScmpArgCompare>> =
            alternatives(rule.args().as_deref().unwrap_or_default())?
                .iter()
                .map(|all| all.iter().map(comparison).collect())
                .collect();
        for name in rule.names() {
            let Ok(syscall) = ScmpSyscall::from_name(name) else {
                continue;
            };
            let added = if alternatives.is_empty() {
                context.add_rule(wanted, syscall).map(|_| ())
            } else {
                alternatives
                    .iter()
                    .try_for_each(|all| context.add_rule_conditional(wanted, syscall, all).map(|_| ()))
            };
            added
                .map_err(|error| Error::spec(format!("linux.seccomp.syscalls {name}"), error.to_string()))?;
        }
    }
    export(&context)
}

fn refused(field: &'static str) -> impl FnOnce(libseccomp::error::SeccompError) -> Error {
    move |error| Error::spec(field, error.to_string())
}

fn export(context: &ScmpFilterContext) -> Result<Vec<libc::sock_filter>> {
    let memory = rustix::fs::memfd_create("seccomp", MemfdFlags::CLOEXEC).step(|| "make a memory file")?;
    context
        .export_bpf(&memory)
        .map_err(|error| Error::spec("linux.seccomp", error.to_string()))?;
    let mut file = File::from(memory);
    let mut bytes = Vec::new();
    file.rewind()
        .and_then(|()| file.read_to_end(&mut bytes))
        .step(|| "read the seccomp filter")?;
    Ok(bytes
        .as_chunks::<INSTRUCTION>()
        .0
        .iter()
        .map(|&[c0, c1, jt, jf, k0, k1, k2, k3]| libc::sock_filter {
            code: u16::from_ne_bytes([c0, c1]),
            jt,
            jf,
            k: u32::from_ne_bytes([k0, k1, k2, k3]),
        })
        .collect())
}

fn action(action: LinuxSeccompAction, errno: Option<u32>, field: &str) -> Result<ScmpAction> {
    let errno = errno.unwrap_or(DEFAULT_ERRNO);
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ScmpAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(
            u16::try_from(errno)
                .map_err(|_| Error::spec(field, format!("errno {errno} is out of range")))?
                .into(),
        ),
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(
            u16::try_from(errno).map_err(|_| Error::spec(field, format!("errno {errno} is out of range")))?,
        ),
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActNotify => return Err(Error::unsupported(field, "SCMP_ACT_NOTIFY")),
    })
}

fn architecture(arch: Arch) -> Result<ScmpArch> {
    let name = arch.to_string();
    name.parse()
        .map_err(|_| Error::unsupported("linux.seccomp.architectures", name))
}

fn flags(flags: &[LinuxSeccompFilterFlag]) -> Result<libc::c_ulong> {
    let mut bits = 0;
    for flag in flags {
        bits |= match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
            // The process that loads the filter has one thread.
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
                return Err(Error::unsupported("linux.seccomp.flags", flag.to_string()));
            }
        };
    }
    Ok(bits)
}

/// The alternatives under which a rule holds, each a list of conditions that must all hold. Conditions on different
/// arguments are joined; as soon as one argument is named twice, each condition is an alternative (as in `runc`, for
/// profiles written for libseccomp before 2.5).
fn alternatives(arguments: &[LinuxSeccompArg]) -> Result<Vec<Vec<Condition>>> {
    let all = arguments.iter().map(condition).collect::<Result<Vec<_>>>()?;
    let repeated = all
        .iter()
        .enumerate()
        .any(|(n, one)| all[..n].iter().any(|other| other.argument == one.argument));
    Ok(if all.is_empty() {
        Vec::new()
    } else if repeated {
        all.into_iter().map(|one| vec![one]).collect()
    } else {
        vec![all]
    })
}

fn condition(argument: &LinuxSeccompArg) -> Result<Condition> {
    let index = u32::try_from(argument.index())
        .ok()
        .filter(|&index| index < 6)
        .ok_or_else(|| Error::spec("linux.seccomp.syscalls.args.index", "must be 0 to 5"))?;
    let (operator, value) = match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => (Operator::NotEqual, argument.value()),
        LinuxSeccompOperator::ScmpCmpLt => (Operator::Less, argument.value()),
        LinuxSeccompOperator::ScmpCmpLe => (Operator::LessOrEqual, argument.value()),
        LinuxSeccompOperator::ScmpCmpEq => (Operator::Equal, argument.value()),
        LinuxSeccompOperator::ScmpCmpGe => (Operator::GreaterOrEqual, argument.value()),
        LinuxSeccompOperator::ScmpCmpGt => (Operator::Greater, argument.value()),
        // The specification has the mask first and the value second.
        LinuxSeccompOperator::ScmpCmpMaskedEq => (
            Operator::MaskedEqual(argument.value()),
            argument.value_two().unwrap_or_default(),
        ),
    };
    Ok(Condition {
        argument: index,
        operator,
        value,
    })
}

fn comparison(condition: &Condition) -> ScmpArgCompare {
    let operator = match condition.operator {
        Operator::Equal => ScmpCompareOp::Equal,
        Operator::NotEqual => ScmpCompareOp::NotEqual,
        Operator::Less => ScmpCompareOp::Less,
        Operator::LessOrEqual => ScmpCompareOp::LessOrEqual,
        Operator::Greater => ScmpCompareOp::Greater,
        Operator::GreaterOrEqual => ScmpCompareOp::GreaterEqual,
        Operator::MaskedEqual(mask) => ScmpCompareOp::MaskedEqual(mask),
    };
    ScmpArgCompare::new(condition.argument, operator, condition.value)
}
