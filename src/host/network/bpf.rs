//! Programs for the kernel's BPF machine (Documentation/bpf/standardization/instruction-set.rst of Linux): the few instructions
//! that one program of ours needs, and its jumps by name. Pure.

/// A register. R0 is a call's answer, R1 to R3 its arguments, R6 and R7 survive it, R10 is the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Register {
    R0 = 0,
    R1 = 1,
    R2 = 2,
    R3 = 3,
    R6 = 6,
    R7 = 7,
    R10 = 10,
}

/// A place that jumps lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Label {
    Six,
    Find,
    Pass,
}

/// A program in the making.
#[derive(Debug, Default)]
pub(super) struct Code {
    instructions: Vec<u64>,
    jumps: Vec<(usize, Label)>,
    labels: Vec<(Label, usize)>,
}

impl Code {
    /// Operation, registers, offset and number: the layout of `struct bpf_insn` where bytes are in the order of x86.
    fn push(&mut self, operation: u8, to: Register, from: u8, offset: i16, number: i32) -> &mut Self {
        let registers = from << 4 | to as u8;
        let [low, high] = offset.to_ne_bytes();
        let [a, b, c, d] = number.to_ne_bytes();
        let bytes = [operation, registers, low, high, a, b, c, d];
        self.instructions.push(u64::from_ne_bytes(bytes));
        self
    }

    fn jump_with(&mut self, operation: u8, register: Register, number: i32, to: Label) -> &mut Self {
        self.jumps.push((self.instructions.len(), to));
        self.push(operation, register, 0, 0, number)
    }

    /// `to = from`.
    pub(super) fn copy(&mut self, to: Register, from: Register) -> &mut Self {
        self.push(0xbf, to, from as u8, 0, 0)
    }

    /// `to = number`.
    pub(super) fn set(&mut self, to: Register, number: i32) -> &mut Self {
        self.push(0xb7, to, 0, 0, number)
    }

    /// `to += number`.
    pub(super) fn add(&mut self, to: Register, number: i32) -> &mut Self {
        self.push(0x07, to, 0, 0, number)
    }

    /// `to &= number`.
    pub(super) fn and(&mut self, to: Register, number: i32) -> &mut Self {
        self.push(0x57, to, 0, 0, number)
    }

    /// The four bytes at `from + offset`.
    pub(super) fn load(&mut self, to: Register, from: Register, offset: i16) -> &mut Self {
        self.push(0x61, to, from as u8, offset, 0)
    }

    /// Four bytes to `to + offset`.
    pub(super) fn store(&mut self, to: Register, offset: i16, from: Register) -> &mut Self {
        self.push(0x63, to, from as u8, offset, 0)
    }

    /// `to =` the map behind this descriptor. It takes the room of two.
    pub(super) fn load_map(&mut self, to: Register, map: i32) -> &mut Self {
        const PSEUDO_MAP_FD: u8 = 1;
        self.push(0x18, to, PSEUDO_MAP_FD, 0, map)
            .push(0, Register::R0, 0, 0, 0)
    }

    /// Jumps if the lower half of a register is another number than this.
    pub(super) fn unless_equal(&mut self, register: Register, number: i32, to: Label) -> &mut Self {
        self.jump_with(0x56, register, number, to)
    }

    /// Jumps if a register is zero.
    pub(super) fn if_zero(&mut self, register: Register, to: Label) -> &mut Self {
        self.jump_with(0x15, register, 0, to)
    }

    /// Jumps if the lower half of a register is this number.
    pub(super) fn if_equal(&mut self, register: Register, number: i32, to: Label) -> &mut Self {
        self.jump_with(0x16, register, number, to)
    }

    /// Jumps.
    pub(super) fn jump(&mut self, to: Label) -> &mut Self {
        self.jump_with(0x05, Register::R0, 0, to)
    }

    /// Calls the kernel's function with this number (`enum bpf_func_id`).
    pub(super) fn call(&mut self, function: i32) -> &mut Self {
        self.push(0x85, Register::R0, 0, 0, function)
    }

    /// Ends; R0 is the answer.
    pub(super) fn exit(&mut self) -> &mut Self {
        self.push(0x95, Register::R0, 0, 0, 0)
    }

    /// Here is where jumps to this label lead.
    pub(super) fn label(&mut self, label: Label) -> &mut Self {
        self.labels.push((label, self.instructions.len()));
        self
    }

    /// The program. `None`: a jump leads nowhere, or backwards, which the kernel does not like.
    pub(super) fn finish(mut self) -> Option<Vec<u64>> {
        for (at, label) in self.jumps {
            let (_, place) = self.labels.iter().find(|(found, _)| *found == label)?;
            // Counted from the instruction after the jump.
            let distance = i16::try_from(place.checked_sub(at + 1)?).ok()?;
            let mut bytes = self.instructions.get(at)?.to_ne_bytes();
            bytes[2..4].copy_from_slice(&distance.to_ne_bytes());
            *self.instructions.get_mut(at)? = u64::from_ne_bytes(bytes);
        }
        Some(self.instructions)
    }
}

#[cfg(test)]
mod tests {
    use super::Register::{R0, R2, R6};
    use super::*;

    #[test]
    fn jumps_lead_to_their_labels() {
        let mut code = Code::default();
        code.load(R2, R6, 12)
            .unless_equal(R2, 6, Label::Pass)
            .set(R0, 7)
            .label(Label::Pass)
            .exit();
        let expected: Vec<u64> = [
            [0x61, 0x62, 12, 0, 0, 0, 0, 0],
            [0x56, 0x02, 1, 0, 6, 0, 0, 0],
            [0xb7, 0x00, 0, 0, 7, 0, 0, 0],
            [0x95, 0x00, 0, 0, 0, 0, 0, 0],
        ]
        .map(u64::from_ne_bytes)
        .into();
        assert_eq!(code.finish(), Some(expected));

        let mut nowhere = Code::default();
        nowhere.jump(Label::Six);
        assert_eq!(nowhere.finish(), None);
        let mut backwards = Code::default();
        backwards.label(Label::Find).jump(Label::Find);
        assert_eq!(backwards.finish(), None);
    }
}
