//! Which requests the host may make: a policy that was set for this sandbox. Pure.
//!
//! The form is a subset of the policies in Rego that Kata Containers takes: `package agent_policy`, comments, and lines like
//! `default ExecProcessRequest := false`. A rule with a condition is refused, and not read as if it were none.
//!
//! It must not know what a request does.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

/// Longest policy, in bytes.
pub const MAX: usize = 64 * 1024;

const PACKAGE: &str = "agent_policy";

/// Our requests, and the names by which a policy decides about each: its own, and what Kata calls the same. The first that the
/// policy names decides; one that it does not name at all is refused.
const REQUESTS: &[(&str, &[&str])] = &[
    ("CreateSandbox", &[]),
    ("UpdateNetwork", &["UpdateInterface", "UpdateRoutes"]),
    ("TakeGrowth", &["OnlineCPUMem"]),
    ("DestroySandbox", &[]),
    ("CreateContainer", &[]),
    ("StartContainer", &[]),
    ("DeleteContainer", &["RemoveContainer"]),
    ("ExecProcess", &[]),
    ("SignalProcess", &[]),
    ("WaitProcess", &[]),
    ("DeleteProcess", &["WaitProcess"]),
    ("ReadOutput", &["ReadStream"]),
    ("WriteStdin", &["WriteStream"]),
    ("CloseStdin", &[]),
    ("ResizeTerminal", &["TtyWinResize"]),
    ("ListProcesses", &["StatsContainer"]),
    ("PauseContainer", &[]),
    ("ResumeContainer", &[]),
    ("UpdateContainer", &[]),
    ("StatsContainer", &[]),
    ("DescribeProcesses", &["StatsContainer"]),
    ("ReadGuest", &["GetMetrics"]),
    // It runs a program, and outside of every container at that.
    ("OpenConsole", &["ExecProcess"]),
    ("OpenConnection", &[]),
    ("ReadConnection", &["OpenConnection"]),
    ("WriteConnection", &["OpenConnection"]),
    ("FinishConnection", &["OpenConnection"]),
    ("CloseConnection", &["OpenConnection"]),
    ("GetVolumeStats", &[]),
    ("ResizeVolume", &[]),
    ("GetIptables", &["GetIPTables"]),
    ("SetIptables", &["SetIPTables"]),
    ("SetPolicy", &[]),
];

/// By these the host knows that somebody is there: without them it would have to take the guest for lost.
const ALWAYS: [&str; 2] = ["Hello", "NextEvents"];

/// Requests of Kata's agent that ours has not, so that nobody can make them: a policy may decide about them.
const NOT_OURS: &[&str] = &[
    "AddARPNeighbors",
    "AddSwap",
    "AddSwapPath",
    "CopyFile",
    "GetDiagnosticData",
    // It is a part of our NextEvents.
    "GetOOMEvent",
    "GuestDetails",
    "ListInterfaces",
    "ListRoutes",
    "MemAgentCompactConfig",
    "MemAgentMemcgConfig",
    "MemHotplugByProbe",
    "RemoveStaleVirtiofsShareMounts",
    "ReseedRandomDev",
    "SetGuestDateTime",
    "StartTracing",
    "StopTracing",
    "UpdateEphemeralMounts",
];

/// What every name in a policy ends with.
const SUFFIX: &str = "Request";

/// A policy that was set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy(BTreeMap<String, bool>);

impl Policy {
    /// Understands a policy.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the line and what is wrong with it.
    pub fn parse(text: &[u8]) -> Result<Self> {
        let wrong = |reason: String| Error::Invalid {
            field: "policy",
            reason,
        };
        if text.len() > MAX {
            return Err(wrong(format!("has more than {MAX} bytes")));
        }
        let text = std::str::from_utf8(text).map_err(|_| wrong("is not UTF-8".to_owned()))?;
        let mut package = None;
        let mut decided = BTreeMap::new();
        for (line, number) in text.lines().zip(1..) {
            let at = |what: String| wrong(format!("line {number}: {what}"));
            let line = line.split('#').next().unwrap_or_default();
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                [] => {}
                ["package", name] if package.is_none() => package = Some(*name),
                ["default", name, ":=" | "=", value @ ("true" | "false")] => {
                    let request = known(name).ok_or_else(|| at(format!("{name:?} is no request")))?;
                    if decided.insert(request.to_owned(), *value == "true").is_some() {
                        return Err(at(format!("{name} is decided about twice")));
                    }
                }
                _ => {
                    return Err(at(
                        "only `default NAMERequest := true` or `false` is understood; rules with conditions are not"
                            .to_owned(),
                    ));
                }
            }
        }
        match package {
            Some(PACKAGE) => Ok(Self(decided)),
            Some(other) => Err(wrong(format!("is of package {other:?}, not {PACKAGE:?}"))),
            None => Err(wrong(format!("does not begin with `package {PACKAGE}`"))),
        }
    }

    /// Whether this request may be made, by its name in the protocol. Those of [`ALWAYS`] may.
    pub fn allows(&self, request: &str) -> bool {
        if ALWAYS.contains(&request) {
            return true;
        }
        let Some((name, others)) = REQUESTS.iter().find(|(name, _)| *name == request) else {
            return false;
        };
        std::iter::once(name)
            .chain(*others)
            .find_map(|name| self.0.get(*name))
            .copied()
            .unwrap_or(false)
    }
}

/// The request that a name in a policy means.
fn known(name: &str) -> Option<&str> {
    let request = name.strip_suffix(SUFFIX)?;
    let is_ours = REQUESTS
        .iter()
        .any(|(ours, others)| *ours == request || others.contains(&request));
    (is_ours || NOT_OURS.contains(&request)).then_some(request)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(lines: &str) -> Policy {
        Policy::parse(format!("package agent_policy\n{lines}").as_bytes()).unwrap()
    }

    #[test]
    fn the_first_name_decides_and_silence_refuses() {
        let policy = policy(
            "# Everything but a look inside.\n\ndefault CreateContainerRequest := true\n\
             default ReadStreamRequest := true # Kata's name\ndefault OpenConsoleRequest := true\n\
             default ExecProcessRequest := false\ndefault CopyFileRequest := true\n",
        );
        for (request, allowed) in [
            ("Hello", true),
            ("NextEvents", true),
            ("CreateContainer", true),
            ("ReadOutput", true),
            ("OpenConsole", true),
            ("ExecProcess", false),
            ("SetPolicy", false),
            ("WriteStdin", false),
            ("CopyFile", false),
            ("Nonsense", false),
        ] {
            assert_eq!(policy.allows(request), allowed, "{request}");
        }
    }

    #[test]
    fn what_has_no_name_of_its_own_follows() {
        let policy = policy("default OpenConnectionRequest = true\ndefault ExecProcessRequest := true\n");
        for request in ["ReadConnection", "CloseConnection", "OpenConsole"] {
            assert!(policy.allows(request), "{request}");
        }
        assert!(!policy.allows("DeleteProcess"));
    }

    #[test]
    fn every_request_of_the_protocol_can_be_decided_about() {
        let proto = include_str!("../protocol/proto/agent.proto");
        let calls: Vec<_> = proto
            .lines()
            .filter_map(|line| line.trim().strip_prefix("rpc "))
            .filter_map(|line| line.split('(').next())
            .collect();
        assert!(calls.len() > 20);
        for call in calls {
            assert!(
                policy(&match call {
                    call if ALWAYS.contains(&call) => String::new(),
                    call => format!("default {call}Request := true"),
                })
                .allows(call)
            );
        }
        for (_, others) in REQUESTS {
            for other in *others {
                assert!(!NOT_OURS.contains(other), "{other}");
            }
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_by_its_line() {
        for (text, said) in [
            ("", "does not begin with `package agent_policy`"),
            ("package other", "is of package \"other\""),
            ("package agent_policy\npackage agent_policy", "line 2"),
            (
                "package agent_policy\n\ndefault ExecProces := true",
                "line 3: \"ExecProces\" is no request",
            ),
            ("package agent_policy\ndefault Request := true", "is no request"),
            (
                "package agent_policy\ndefault ExecProcessRequest := 1",
                "line 2: only",
            ),
            (
                "package agent_policy\nExecProcessRequest { input.x == 1 }",
                "line 2: only",
            ),
            (
                "package agent_policy\ndefault CloseStdinRequest := true\ndefault CloseStdinRequest := false",
                "line 3: CloseStdinRequest is decided about twice",
            ),
        ] {
            let error = Policy::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(said), "{text:?}: {error}");
        }
        let long = vec![b'\n'; MAX + 1];
        assert!(
            Policy::parse(&long)
                .unwrap_err()
                .to_string()
                .contains("more than")
        );
        assert!(Policy::parse(b"package agent_policy\n\xff").is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic_and_none_allows_what_it_does_not_name(text in "(package agent_policy\n)?[ -~\n]{0,300}") {
            if let Ok(policy) = Policy::parse(text.as_bytes()) {
                for (request, _) in REQUESTS {
                    prop_assert!(!policy.allows(request) || text.contains(":= true") || text.contains("= true"));
                }
            }
        }
    }
}
