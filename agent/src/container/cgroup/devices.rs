//! Which devices a container may open, as the eBPF program that cgroup v2 has instead of a device controller.
//!
//! Pure. The program looks at the rules from the last to the first; the first that speaks of an access decides. An access
//! that no rule speaks of is refused.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::container::error::{Error, Result};

const FIELD: &str = "linux.resources.devices";

/// `BPF_DEVCG_ACC_*` of linux/bpf.h.
const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const ALL: u32 = MKNOD | READ | WRITE;
/// `BPF_DEVCG_DEV_*`.
const BLOCK: u32 = 1;
const CHARACTER: u32 = 2;

/// One rule; what is `None` is any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<u32>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u32,
}

impl Rule {
    fn is_about_everything(&self) -> bool {
        (self.kind, self.major, self.minor, self.access) == (None, None, None, ALL)
    }
}

/// What every container may do, whatever its rules: make nodes, and use the devices that every container has. `runc`'s.
const ALWAYS: [Rule; 10] = {
    const fn rule(kind: u32, major: Option<u32>, minor: Option<u32>, access: u32) -> Rule {
        Rule {
            allow: true,
            kind: Some(kind),
            major,
            minor,
            access,
        }
    }
    [
        rule(CHARACTER, None, None, MKNOD),
        rule(BLOCK, None, None, MKNOD),
        rule(CHARACTER, Some(1), Some(3), ALL),
        rule(CHARACTER, Some(1), Some(5), ALL),
        rule(CHARACTER, Some(1), Some(7), ALL),
        rule(CHARACTER, Some(1), Some(8), ALL),
        rule(CHARACTER, Some(1), Some(9), ALL),
        rule(CHARACTER, Some(5), Some(0), ALL),
        // The terminals of devpts, and what makes them.
        rule(CHARACTER, Some(5), Some(2), ALL),
        rule(CHARACTER, Some(136), None, ALL),
    ]
};

/// An instruction of eBPF: `struct bpf_insn` of linux/bpf.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(in crate::container) struct Instruction {
    code: u8,
    /// Destination in the low half, source in the high one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// The shortest program there is.
pub(super) const ALLOWS_ALL: [Instruction; 2] = answer(true);

/// The program for a specification's rules; `None` when it has none, and nothing is limited.
pub(super) fn program(rules: Option<&[LinuxDeviceCgroup]>) -> Result<Option<Vec<Instruction>>> {
    let Some(rules) = rules.filter(|rules| !rules.is_empty()) else {
        return Ok(None);
    };
    let mut all: Vec<Rule> = Vec::new();
    for rule in rules {
        add(&mut all, parse(rule)?);
    }
    for rule in ALWAYS {
        add(&mut all, rule);
    }
    Ok(Some(assemble(&ordered(all))))
}

/// The programs of most containers: with the devices that every container has, and with the console that engines add.
pub(super) fn usual() -> [Vec<Instruction>; 2] {
    let nothing = Rule {
        allow: false,
        kind: None,
        major: None,
        minor: None,
        access: ALL,
    };
    let console = Rule {
        allow: true,
        kind: Some(CHARACTER),
        major: Some(5),
        minor: Some(1),
        access: ALL,
    };
    let program = |more: &[Rule]| {
        let rules = [&[nothing], more, &ALWAYS].concat();
        assemble(&ordered(rules))
    };
    [program(&[]), program(&[console])]
}

/// Where all is refused but what is allowed one by one, the order means nothing, and is always the same.
fn ordered(mut rules: Vec<Rule>) -> Vec<Rule> {
    if let Some((first, others)) = rules.split_first_mut()
        && !first.allow
        && first.is_about_everything()
        && others.iter().all(|rule| rule.allow)
    {
        others.sort_unstable_by_key(|rule| (rule.kind, rule.major, rule.minor, rule.access));
    }
    rules
}

/// Rules about the same devices that follow each other with the same answer are one: an access for reading and writing
/// must find both in one rule.
fn add(rules: &mut Vec<Rule>, rule: Rule) {
    let same =
        |other: &&mut Rule| (other.kind, other.major, other.minor) == (rule.kind, rule.major, rule.minor);
    match rules.iter_mut().rev().find(same) {
        Some(there) if there.allow == rule.allow => there.access |= rule.access,
        _ => rules.push(rule),
    }
}

fn parse(rule: &LinuxDeviceCgroup) -> Result<Rule> {
    let number = |value: Option<i64>| match value {
        None | Some(-1) => Ok(None),
        Some(value) => i32::try_from(value)
            .ok()
            .and_then(|value| u32::try_from(value).ok())
            .map(Some)
            .ok_or_else(|| Error::spec(FIELD, format!("{value} is no device number"))),
    };
    let mut access = 0;
    for letter in rule.access().as_deref().unwrap_or("rwm").chars() {
        access |= match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            other => return Err(Error::spec(FIELD, format!("{other:?} is no access"))),
        };
    }
    Ok(Rule {
        allow: rule.allow(),
        kind: match rule.typ() {
            None | Some(LinuxDeviceType::A) => None,
            Some(LinuxDeviceType::B) => Some(BLOCK),
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(CHARACTER),
            Some(LinuxDeviceType::P) => return Err(Error::spec(FIELD, "a FIFO is no device")),
        },
        major: number(rule.major())?,
        minor: number(rule.minor())?,
        access,
    })
}

/// Registers: 1 is the context and then scratch, 2 the type, 3 the access, 4 the major and 5 the minor number.
fn assemble(rules: &[Rule]) -> Vec<Instruction> {
    // `struct bpf_cgroup_dev_ctx`: access in the high half and type in the low half of the first word, major, minor.
    let mut program = vec![
        load(2, 0),
        raw(0x54, 2, 0, 0xffff),
        load(3, 0),
        raw(0x74, 3, 0, 16),
        load(4, 4),
        load(5, 8),
    ];
    for rule in rules.iter().rev() {
        program.extend(one(rule));
        if rule.is_about_everything() {
            // The kernel refuses a program with instructions that are never reached.
            return program;
        }
    }
    program.extend(answer(false));
    program
}

fn one(rule: &Rule) -> Vec<Instruction> {
    // Each test goes on or jumps behind the rule; the jumps' lengths are known at the end.
    const DIFFERS: u8 = 0x55;
    const EQUALS: u8 = 0x15;
    let mut rule_program = Vec::new();
    if let Some(kind) = rule.kind {
        rule_program.push(raw(DIFFERS, 2, 0, kind));
    }
    if rule.access != ALL {
        rule_program.push(raw(0xbc, 1, 3, 0));
        if rule.allow {
            // All that is asked for must be allowed; any of it is reason to refuse.
            rule_program.push(raw(0x54, 1, 0, ALL & !rule.access));
            rule_program.push(raw(DIFFERS, 1, 0, 0));
        } else {
            rule_program.push(raw(0x54, 1, 0, rule.access));
            rule_program.push(raw(EQUALS, 1, 0, 0));
        }
    }
    for (register, number) in [(4, rule.major), (5, rule.minor)] {
        if let Some(number) = number {
            rule_program.push(raw(DIFFERS, register, 0, number));
        }
    }
    rule_program.extend(answer(rule.allow));
    let end = rule_program.len();
    for (at, instruction) in rule_program.iter_mut().enumerate() {
        if matches!(instruction.code, DIFFERS | EQUALS) {
            // At most ten instructions.
            instruction.offset = (end - at - 1) as i16;
        }
    }
    rule_program
}

const fn answer(allow: bool) -> [Instruction; 2] {
    [raw(0xb7, 0, 0, allow as u32), raw(0x95, 0, 0, 0)]
}

fn load(register: u8, offset: i16) -> Instruction {
    Instruction {
        offset,
        ..raw(0x61, register, 1, 0)
    }
}

const fn raw(code: u8, destination: u8, source: u8, immediate: u32) -> Instruction {
    Instruction {
        code,
        registers: destination | source << 4,
        offset: 0,
        immediate: immediate.cast_signed(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// What the kernel would answer.
    fn execute(program: &[Instruction], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0u32; 16];
        let mut at = 0usize;
        loop {
            let i = program[at];
            at += 1;
            let (to, from) = (usize::from(i.registers & 15), usize::from(i.registers >> 4));
            let immediate = i.immediate as u32;
            let jump = |holds: bool| if holds { i.offset as usize } else { 0 };
            match i.code {
                0x61 => registers[to] = context[i.offset as usize / 4],
                0x54 => registers[to] &= immediate,
                0x74 => registers[to] >>= immediate,
                0xbc => registers[to] = registers[from],
                0xb7 => registers[to] = immediate,
                0x55 => at += jump(registers[to] != immediate),
                0x15 => at += jump(registers[to] == immediate),
                0x95 => return registers[0] == 1,
                code => panic!("{code:#x}"),
            }
        }
    }

    /// Whether each instruction can be reached, which the kernel demands; it asks no more of a program like these.
    fn is_all_reachable(program: &[Instruction]) -> bool {
        let mut reached = vec![false; program.len()];
        let mut ahead = vec![0];
        while let Some(at) = ahead.pop() {
            // Behind the end there is nothing to execute, which the kernel refuses as well.
            let Some(instruction) = program.get(at) else {
                return false;
            };
            if std::mem::replace(&mut reached[at], true) {
                continue;
            }
            match instruction.code {
                0x95 => {}
                0x55 | 0x15 => ahead.extend([at + 1, at + 1 + instruction.offset as usize]),
                _ => ahead.push(at + 1),
            }
        }
        reached.iter().all(|&reached| reached)
    }

    fn allowed(rules: serde_json::Value, kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let rules: Vec<LinuxDeviceCgroup> = serde_json::from_value(rules).unwrap();
        execute(
            &program(Some(&rules)).unwrap().unwrap(),
            kind,
            access,
            major,
            minor,
        )
    }

    #[test]
    fn rules_decide_as_runc_does() {
        let engine = json!([{"allow": false, "access": "rwm"},
                            {"allow": true, "type": "c", "major": 10, "minor": 200, "access": "r"},
                            {"allow": true, "type": "c", "major": 10, "minor": 200, "access": "w"},
                            {"allow": true, "type": "b", "major": 8, "access": "r"}]);
        let table = [
            (CHARACTER, READ | WRITE, 1, 3, true),
            (CHARACTER, READ | WRITE, 136, 77, true),
            (CHARACTER, READ, 1, 1, false),
            (CHARACTER, MKNOD, 1, 1, true),
            (CHARACTER, READ | WRITE, 10, 200, true),
            (CHARACTER, READ, 10, 201, false),
            (BLOCK, READ, 8, 5, true),
            (BLOCK, READ | WRITE, 8, 5, false),
            (BLOCK, READ, 1, 3, false),
        ];
        for (kind, access, major, minor, expected) in table {
            assert_eq!(
                allowed(engine.clone(), kind, access, major, minor),
                expected,
                "{kind} {access} {major}:{minor}"
            );
        }
        let engine: Vec<LinuxDeviceCgroup> = serde_json::from_value(engine).unwrap();
        assert!(is_all_reachable(&program(Some(&engine)).unwrap().unwrap()));
        let privileged = json!([{"allow": true, "access": "rwm"}]);
        assert!(allowed(privileged, BLOCK, READ | WRITE, 8, 0));
        assert!(program(None).unwrap().is_none());
        let bad: Vec<LinuxDeviceCgroup> =
            serde_json::from_value(json!([{"allow": true, "access": "x"}])).unwrap();
        assert!(program(Some(&bad)).is_err());
    }

    /// `ctr` says it in another order than the CRI, and both name devices that every container has.
    #[test]
    fn what_engines_ask_for_is_a_usual_program() {
        let rule = |major: i64, minor: Option<i64>| match minor {
            Some(minor) => {
                json!({"allow": true, "type": "c", "major": major, "minor": minor, "access": "rwm"})
            }
            None => json!({"allow": true, "type": "c", "major": major, "access": "rwm"}),
        };
        let nothing = json!({"allow": false, "access": "rwm"});
        let engines = [
            json!([nothing]),
            json!([nothing, rule(1, Some(8)), rule(1, Some(3)), rule(136, None)]),
            json!([
                nothing,
                rule(5, Some(0)),
                rule(5, Some(1)),
                rule(5, Some(2)),
                rule(136, None)
            ]),
        ];
        for engine in engines {
            let rules: Vec<LinuxDeviceCgroup> = serde_json::from_value(engine.clone()).unwrap();
            let program = program(Some(&rules)).unwrap().unwrap();
            assert!(usual().contains(&program), "{engine}");
        }
        let other = json!([nothing, rule(10, Some(229))]);
        let rules: Vec<LinuxDeviceCgroup> = serde_json::from_value(other).unwrap();
        assert!(!usual().contains(&program(Some(&rules)).unwrap().unwrap()));
    }

    proptest! {
        /// The program says what a plain reading of the rules says.
        #[test]
        fn the_program_is_the_rules(
            rules in proptest::collection::vec(
                (any::<bool>(), proptest::option::of(1u32..3), proptest::option::of(0u32..4), proptest::option::of(0u32..4),
                 1u32..8), 0..6),
            kind in 1u32..3, access in 1u32..8, major in 0u32..4, minor in 0u32..4,
        ) {
            let rules: Vec<Rule> = rules.into_iter()
                .map(|(allow, kind, major, minor, access)| Rule { allow, kind, major, minor, access }).collect();
            let expected = rules.iter().rev().find(|rule| {
                rule.kind.is_none_or(|k| k == kind) && rule.major.is_none_or(|m| m == major)
                    && rule.minor.is_none_or(|m| m == minor)
                    && if rule.allow { access & !rule.access == 0 } else { access & rule.access != 0 }
            }).is_some_and(|rule| rule.allow);
            prop_assert!(is_all_reachable(&assemble(&rules)));
            prop_assert_eq!(execute(&assemble(&rules), kind, access, major, minor), expected);
        }
    }
}
