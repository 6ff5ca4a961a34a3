//! Seccomp profiles of the usual shape, assembled into BPF here.
//!
//! libseccomp needs about 10 ms for the default profile of a container engine on a fast machine, ten times that in an
//! emulated guest: it keeps snapshots of its rule lists. This assembles the same decisions as a binary search over ranges
//! of system call numbers in a fraction of a millisecond, which also is less to execute at each call. Numbers still come
//! from libseccomp, and whatever is not of the usual shape is left to it. Pure.

use std::collections::BTreeMap;

use libc::sock_filter;

/// The most instructions that the kernel takes (`BPF_MAXINSNS`).
const MAX_PROGRAM: usize = 4096;
/// `AUDIT_ARCH_X86_64` and `AUDIT_ARCH_I386` of linux/audit.h.
const ARCH_X86_64: u32 = 0xc000_003e;
const ARCH_I386: u32 = 0x4000_0003;
/// Set in the numbers of x32, whose calls carry the architecture of x86-64.
const X32_BIT: u32 = 0x4000_0000;
/// What a tracer leaves of a call that it skipped.
const SKIPPED: u32 = u32::MAX;
const KILL_THREAD: u32 = 0;

/// Offsets in `struct seccomp_data` of linux/seccomp.h.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const ABOVE: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
const NOT_BELOW: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// With the mask.
    MaskedEqual(u64),
}

/// One comparison of an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    /// 0 to 5.
    pub(super) argument: u32,
    pub(super) operator: Operator,
    pub(super) value: u64,
}

/// What happens at a call: the action if all conditions of an alternative hold; without alternatives, always.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    /// `SECCOMP_RET_*`.
    pub(super) action: u32,
    pub(super) alternatives: Vec<Vec<Condition>>,
}

/// Rules of one architecture by number.
pub(super) type Rules = BTreeMap<u32, Rule>;

/// A profile's rules, by the kernel's two architecture values.
#[derive(Debug, Default)]
pub(super) struct Profile {
    /// What happens at a call without a rule.
    pub(super) default: u32,
    /// Of x86-64; those of x32 are here too, with their bit.
    pub(super) native: Rules,
    pub(super) x32: bool,
    /// Of 32-bit x86, if its calls are let in at all.
    pub(super) i386: Option<Rules>,
}

/// Adds a rule; `false` when the two rules of one call can't be joined here.
pub(super) fn add(rules: &mut Rules, number: u32, rule: &Rule) -> bool {
    let Some(there) = rules.get_mut(&number) else {
        rules.insert(number, rule.clone());
        return true;
    };
    if there.action != rule.action {
        return false;
    }
    if there.alternatives.is_empty() || rule.alternatives.is_empty() {
        there.alternatives.clear();
    } else {
        there.alternatives.extend(rule.alternatives.iter().cloned());
    }
    true
}

/// The program; `None` when it is longer than the kernel takes.
pub(super) fn assemble(profile: &Profile) -> Option<Vec<sock_filter>> {
    let mut native = vec![load(NUMBER)];
    if !profile.x32 {
        // A number of x32 is as foreign as another architecture's; -1 is nobody's.
        native.push(branch(NOT_BELOW, X32_BIT, 0, 2));
        native.push(branch(EQUAL, SKIPPED, 1, 0));
        native.push(answer(KILL_THREAD));
    }
    native.extend(search(&segments(&profile.native), profile.default, true));
    let mut program = vec![
        load(ARCHITECTURE),
        branch(EQUAL, ARCH_X86_64, 1, 0),
        jump(native.len())?,
    ];
    program.extend(native);
    match &profile.i386 {
        Some(rules) => {
            program.push(branch(EQUAL, ARCH_I386, 1, 0));
            program.push(answer(KILL_THREAD));
            program.push(load(NUMBER));
            program.extend(search(&segments(rules), profile.default, false));
        }
        None => program.push(answer(KILL_THREAD)),
    }
    (program.len() <= MAX_PROGRAM).then_some(program)
}

/// A range of numbers from the given one to the next segment's, and its rule.
type Segment<'a> = (u32, Option<&'a Rule>);

fn segments(rules: &Rules) -> Vec<Segment<'_>> {
    let mut segments: Vec<Segment<'_>> = vec![(0, None)];
    let mut add = |start: u32, rule| match segments.last_mut() {
        Some(last) if last.0 == start => last.1 = rule,
        Some(last) if last.1 == rule => {}
        _ => segments.push((start, rule)),
    };
    for (&number, rule) in rules {
        add(number, Some(rule));
        if let Some(next) = number.checked_add(1)
            && !rules.contains_key(&next)
        {
            add(next, None);
        }
    }
    segments
}

/// Decides by the number in the accumulator. `wide`: arguments have 64 bits.
fn search(segments: &[Segment<'_>], default: u32, wide: bool) -> Vec<sock_filter> {
    let (left, right) = segments.split_at(segments.len() / 2);
    let Some((middle, _)) = right.first() else {
        return vec![answer(default)];
    };
    if left.is_empty() {
        return decide(right[0].1, default, *middle, wide);
    }
    let low = search(left, default, wide);
    let high = search(right, default, wide);
    let mut program = match u8::try_from(low.len()) {
        Ok(distance) => vec![branch(NOT_BELOW, *middle, distance, 0)],
        // Conditional jumps reach 255 instructions, others all.
        Err(_) => vec![
            branch(NOT_BELOW, *middle, 0, 1),
            raw(JUMP, 0, 0, low.len() as u32),
        ],
    };
    program.extend(low);
    program.extend(high);
    program
}

fn decide(rule: Option<&Rule>, default: u32, number: u32, wide: bool) -> Vec<sock_filter> {
    let Some(rule) = rule else {
        return vec![answer(default)];
    };
    if rule.alternatives.is_empty() {
        return vec![answer(rule.action)];
    }
    // Arguments of x32 are looked at as 32 bits, as libseccomp does.
    let wide = wide && number < X32_BIT;
    let mut program = Vec::new();
    for alternative in &rule.alternatives {
        program.extend(all(alternative, rule.action, wide));
    }
    program.push(answer(default));
    program
}

/// Where a comparison goes on.
#[derive(Clone, Copy)]
enum To {
    /// To the next instruction.
    Next,
    /// Over this many: the comparison holds.
    Over(u8),
    /// The alternative does not hold.
    Out,
}

/// Answers the action if all conditions hold, and goes on behind its own end if not.
fn all(conditions: &[Condition], action: u32, wide: bool) -> Vec<sock_filter> {
    let mut steps: Vec<(u16, u32, To, To)> = Vec::new();
    for condition in conditions {
        compare(condition, wide, &mut steps);
    }
    let length = steps.len();
    let mut program: Vec<sock_filter> = steps
        .into_iter()
        .enumerate()
        .map(|(at, (code, k, yes, no))| {
            let distance = |to| match to {
                To::Next => 0,
                To::Over(count) => count,
                // Over the rest and the answer. Six arguments take at most six times six steps.
                To::Out => (length - at) as u8,
            };
            raw(code, distance(yes), distance(no), k)
        })
        .collect();
    program.push(answer(action));
    program
}

fn compare(condition: &Condition, wide: bool, steps: &mut Vec<(u16, u32, To, To)>) {
    use Operator::*;
    use To::{Next, Out, Over};
    let at = ARGUMENTS + 8 * condition.argument;
    let (mask, value) = match condition.operator {
        MaskedEqual(mask) => (mask, condition.value & mask),
        _ => (u64::MAX, condition.value),
    };
    let (high, low) = ((value >> 32) as u32, value as u32);
    if wide {
        steps.push((LOAD, at + 4, Next, Next));
        match condition.operator {
            Equal => steps.push((EQUAL, high, Next, Out)),
            NotEqual => steps.push((EQUAL, high, Next, Over(2))),
            Greater | GreaterOrEqual => {
                steps.push((ABOVE, high, Over(3), Next));
                steps.push((EQUAL, high, Next, Out));
            }
            Less | LessOrEqual => {
                steps.push((ABOVE, high, Out, Next));
                steps.push((EQUAL, high, Next, Over(2)));
            }
            MaskedEqual(_) => {
                steps.push((AND, (mask >> 32) as u32, Next, Next));
                steps.push((EQUAL, high, Next, Out));
            }
        }
    }
    steps.push((LOAD, at, Next, Next));
    let last = match condition.operator {
        Equal => (EQUAL, low, Next, Out),
        NotEqual => (EQUAL, low, Out, Next),
        Greater => (ABOVE, low, Next, Out),
        GreaterOrEqual => (NOT_BELOW, low, Next, Out),
        Less => (NOT_BELOW, low, Out, Next),
        LessOrEqual => (ABOVE, low, Out, Next),
        MaskedEqual(_) => {
            steps.push((AND, mask as u32, Next, Next));
            (EQUAL, low, Next, Out)
        }
    };
    steps.push(last);
}

fn raw(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

fn load(offset: u32) -> sock_filter {
    raw(LOAD, 0, 0, offset)
}

fn answer(action: u32) -> sock_filter {
    raw(RETURN, 0, 0, action)
}

fn branch(code: u16, k: u32, yes: u8, no: u8) -> sock_filter {
    raw(code, yes, no, k)
}

fn jump(distance: usize) -> Option<sock_filter> {
    Some(raw(JUMP, 0, 0, u32::try_from(distance).ok()?))
}
