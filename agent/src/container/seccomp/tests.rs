//! Filters are compared with libseccomp's by executing both, on an interpreter of the few instructions that they have.

use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

fn profile(value: Value) -> LinuxSeccomp {
    serde_json::from_value(value).unwrap()
}

/// `struct seccomp_data`, as words of 32 bits.
fn data(arch: u32, number: u32, arguments: [u64; 6]) -> Vec<u32> {
    let mut words = vec![number, arch, 0, 0];
    words.extend(
        arguments
            .iter()
            .flat_map(|&value| [value as u32, (value >> 32) as u32]),
    );
    words
}

/// What the kernel would answer.
fn execute(program: &[libc::sock_filter], data: &[u32]) -> u32 {
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let instruction = program[at];
        at += 1;
        let compare = |holds: bool| usize::from(if holds { instruction.jt } else { instruction.jf });
        match u32::from(instruction.code) {
            0x20 => accumulator = data[instruction.k as usize / 4],
            0x54 => accumulator &= instruction.k,
            0x05 => at += instruction.k as usize,
            0x15 => at += compare(accumulator == instruction.k),
            0x25 => at += compare(accumulator > instruction.k),
            0x35 => at += compare(accumulator >= instruction.k),
            0x06 => return instruction.k,
            code => panic!("instruction {code:#x}"),
        }
    }
}

const ARCHES: [u32; 3] = [0xc000_003e, 0x4000_0003, 0xc000_00b7];

fn assert_same(profile: &LinuxSeccomp, calls: &[(u32, u32, [u64; 6])]) {
    let Some(assembled) = usual(profile)
        .unwrap()
        .and_then(|usual| assemble::assemble(&usual))
    else {
        return;
    };
    let library = by_library(profile).unwrap();
    for &(arch, number, arguments) in calls {
        let data = data(arch, number, arguments);
        assert_eq!(
            execute(&assembled, &data),
            execute(&library, &data),
            "arch {arch:#x} call {number} {arguments:x?} of {profile:?}"
        );
    }
}

/// The shape of container engines' default profile.
fn engine() -> LinuxSeccomp {
    let refused = ["mount", "ptrace", "bpf", "reboot", "clone3", "personality"];
    let names: Vec<String> = (0..460)
        .filter_map(|number| ScmpSyscall::from_raw_syscall(number).get_name().ok())
        .chain(["socketcall".to_owned(), "ipc".to_owned()])
        .filter(|name| !refused.contains(&name.as_str()))
        .collect();
    profile(json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            {"names": names, "action": "SCMP_ACT_ALLOW"},
            {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}]},
            {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
            {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "args":
                [{"index": 0, "value": 2114060288u32, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
        ],
    }))
}

#[test]
fn an_engines_profile_is_assembled_and_decides_like_the_librarys() {
    let engine = engine();
    let assembled = usual(&engine)
        .unwrap()
        .and_then(|usual| assemble::assemble(&usual));
    assert!(assembled.is_some_and(|program| program.len() < 1000));
    let mut calls = Vec::new();
    for arch in ARCHES {
        for base in [0, 0x4000_0000, u32::MAX - 2] {
            for number in 0..600 {
                for argument in [0, 8, 9, 0x7e02_0000, 1 << 40] {
                    calls.push((arch, base.wrapping_add(number), [argument, 0, 0, 0, 0, 0]));
                }
            }
        }
    }
    assert_same(&engine, &calls);
}

#[test]
fn unusual_profiles_are_left_to_the_library() {
    for (syscalls, arch) in [
        // Two actions for one call.
        (
            json!([{"names": ["read"], "action": "SCMP_ACT_ERRNO"},
                {"names": ["read"], "action": "SCMP_ACT_LOG", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]}]),
            "SCMP_ARCH_X86_64",
        ),
        // Reached through socketcall as well.
        (
            json!([{"names": ["socket"], "action": "SCMP_ACT_ERRNO"}]),
            "SCMP_ARCH_X86",
        ),
        (json!([]), "SCMP_ARCH_AARCH64"),
    ] {
        let profile = profile(
            json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": [arch], "syscalls": syscalls}),
        );
        assert!(usual(&profile).unwrap().is_none(), "{profile:?}");
    }
}

#[test]
fn unknown_system_calls_are_ignored() {
    let with = |names: &[&str]| {
        profile(
            json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
                       "syscalls": [{"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]}),
        )
    };
    let one = Filter::compile(&with(&["mkdir"])).unwrap();
    let both = Filter::compile(&with(&["mkdir", "not_yet_invented"])).unwrap();
    assert_eq!(one.program.len(), both.program.len());
    let mkdir = data(ARCHES[0], 83, [0; 6]);
    assert_eq!(execute(&one.program, &mkdir), 0x0005_0000 | 38);
}

#[test]
fn a_repeated_argument_makes_alternatives() {
    let one = |index| json!({"index": index, "value": 1, "op": "SCMP_CMP_EQ"});
    let count = |arguments: Value| {
        let arguments: Vec<LinuxSeccompArg> = serde_json::from_value(arguments).unwrap();
        alternatives(&arguments).unwrap().len()
    };
    assert_eq!(count(json!([one(0), one(1)])), 1);
    assert_eq!(count(json!([one(0), one(0)])), 2);
    assert_eq!(count(json!([])), 0);
}

#[test]
fn what_needs_a_supervisor_is_refused() {
    let error = Filter::compile(&profile(json!({"defaultAction": "SCMP_ACT_NOTIFY"}))).unwrap_err();
    assert!(error.to_string().contains("SCMP_ACT_NOTIFY"), "{error}");
}

fn argument() -> impl Strategy<Value = Value> {
    let value = prop_oneof![
        0u64..4,
        Just(1u64 << 32),
        Just((1u64 << 32) | 1),
        Just(u64::from(u32::MAX)),
        any::<u64>()
    ];
    let operator = proptest::sample::select(vec!["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"]);
    (0usize..6, value.clone(), value, operator).prop_map(|(index, value, two, operator)| {
        json!({"index": index, "value": value, "valueTwo": two, "op": format!("SCMP_CMP_{operator}")})
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn assembled_profiles_decide_like_the_librarys(
        rules in proptest::collection::vec(
            (proptest::sample::select(vec!["read", "write", "mkdir", "openat", "clone", "semop", "statx"]),
             proptest::collection::vec(argument(), 0..3)), 1..5),
        arches in proptest::sample::subsequence(vec!["SCMP_ARCH_X86", "SCMP_ARCH_X32"], 0..3),
        allow: bool,
        values in proptest::collection::vec(
            prop_oneof![0u64..4, Just(1u64 << 32), Just((1u64 << 32) | 1), Just(u64::from(u32::MAX)), any::<u64>()], 6),
    ) {
        // One rule for a call: how libseccomp orders several with conditions is its own affair.
        let mut seen = std::collections::HashSet::new();
        let (default, action) = if allow { ("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO") } else { ("SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW") };
        let syscalls: Vec<Value> = rules.into_iter().filter(|(name, _)| seen.insert(*name))
            // Two conditions on one argument are alternatives, and libseccomp 2.5 forgets some of those when they overlap.
            .filter(|(_, args)| args.len() < 2 || args[0]["index"] != args[1]["index"])
            .map(|(name, args)| json!({"names": [name], "action": action, "args": args})).collect();
        let profile = profile(json!({"defaultAction": default, "architectures": arches, "syscalls": syscalls}));
        let arguments = [values[0], values[1], values[2], values[3], values[4], values[5]];
        let mut calls = Vec::new();
        for arch in ARCHES {
            for number in (0..450).chain(0x4000_0000..0x4000_0000 + 450).chain([u32::MAX]) {
                calls.push((arch, number, arguments));
            }
        }
        assert_same(&profile, &calls);
    }
}
