//! A seccomp profile, compiled by libseccomp in the agent into the instructions that the child loads.
//!
//! Compiled once for a container, before the clone: its init and every later exec load the same instructions, and no
//! library runs between the drop of privileges and the execution of the program.

use std::fs::File;
use std::io::{Read, Seek};

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
};
use rustix::fs::MemfdFlags;

use super::error::{Error, Result, Step};
use super::sys;

/// Size of a `struct sock_filter` of linux/filter.h: u16 code, u8 jt, u8 jf, u32 k.
const INSTRUCTION: usize = 8;

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
            let conditions = conditions(rule.args().as_deref().unwrap_or_default())?;
            for name in rule.names() {
                let Ok(syscall) = ScmpSyscall::from_name(name) else {
                    continue;
                };
                let added = if conditions.is_empty() {
                    context.add_rule(wanted, syscall).map(|_| ())
                } else {
                    conditions
                        .iter()
                        .try_for_each(|all| context.add_rule_conditional(wanted, syscall, all).map(|_| ()))
                };
                added.map_err(|error| {
                    Error::spec(format!("linux.seccomp.syscalls {name}"), error.to_string())
                })?;
            }
        }
        Ok(Self {
            program: export(&context)?,
            flags: flags(profile.flags().as_deref().unwrap_or_default())?,
        })
    }

    /// Loads the filter for this process. Needs no_new_privs or CAP_SYS_ADMIN.
    pub(super) fn load(&self) -> Result<()> {
        sys::load_filter(&self.program, self.flags).step(|| "load the seccomp filter")
    }
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
    // EPERM, as the specification says.
    let errno = errno.unwrap_or(1);
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ScmpAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(
            i32::try_from(errno).map_err(|_| Error::spec(field, format!("errno {errno} is out of range")))?,
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
fn conditions(arguments: &[LinuxSeccompArg]) -> Result<Vec<Vec<ScmpArgCompare>>> {
    let all = arguments
        .iter()
        .map(condition)
        .collect::<Result<Vec<ScmpArgCompare>>>()?;
    let repeated = arguments.iter().enumerate().any(|(n, argument)| {
        arguments[..n]
            .iter()
            .any(|other| other.index() == argument.index())
    });
    Ok(if all.is_empty() {
        Vec::new()
    } else if repeated {
        all.into_iter().map(|one| vec![one]).collect()
    } else {
        vec![all]
    })
}

fn condition(argument: &LinuxSeccompArg) -> Result<ScmpArgCompare> {
    let index = u32::try_from(argument.index())
        .ok()
        .filter(|&index| index < 6)
        .ok_or_else(|| Error::spec("linux.seccomp.syscalls.args.index", "must be 0 to 5"))?;
    let (operator, value) = match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, argument.value()),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, argument.value()),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, argument.value()),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, argument.value()),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, argument.value()),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, argument.value()),
        // The specification has the mask first and the value second.
        LinuxSeccompOperator::ScmpCmpMaskedEq => (
            ScmpCompareOp::MaskedEqual(argument.value()),
            argument.value_two().unwrap_or_default(),
        ),
    };
    Ok(ScmpArgCompare::new(index, operator, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(json: &str) -> LinuxSeccomp {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn unknown_system_calls_are_ignored() {
        let with = |names: &str| {
            profile(&format!(
                r#"{{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
                     "syscalls": [{{"names": [{names}], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}}]}}"#
            ))
        };
        let one = Filter::compile(&with(r#""mkdir""#)).unwrap();
        let both = Filter::compile(&with(r#""mkdir", "not_yet_invented""#)).unwrap();
        assert_eq!(one.program.len(), both.program.len());
        assert!(
            one.program.iter().any(|i| i.k == 0x0005_0000 | 38),
            "the errno of the rule"
        );
    }

    #[test]
    fn a_repeated_argument_makes_alternatives() {
        let arguments: Vec<LinuxSeccompArg> = serde_json::from_str(
            r#"[{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 1, "value": 2, "op": "SCMP_CMP_EQ"}]"#,
        )
        .unwrap();
        assert_eq!(conditions(&arguments).unwrap().len(), 1);
        let repeated = [arguments[0], arguments[0]];
        assert_eq!(conditions(&repeated).unwrap().len(), 2);
        assert!(conditions(&[]).unwrap().is_empty());
    }

    #[test]
    fn what_needs_a_supervisor_is_refused() {
        let error = Filter::compile(&profile(r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#)).unwrap_err();
        assert!(error.to_string().contains("SCMP_ACT_NOTIFY"), "{error}");
    }
}
