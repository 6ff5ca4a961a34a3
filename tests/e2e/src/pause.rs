//! The program of a pod's first container, which does nothing: it holds the pod's namespaces, and as the first process of a
//! shared process namespace it reaps orphans. A handful of instructions, so it is assembled here and needs no compiler.

/// Where the program is mapped.
const BASE: u64 = 0x40_0000;

/// Length of an ELF header and of one program header.
const HEADERS: u64 = 64 + 56;

/// Instructions of x86-64, and the `struct sigaction` that they point to.
#[rustfmt::skip]
const CODE: &[u8] = &[
    // Orphans that end are to be forgotten at once: rt_sigaction(SIGCHLD, {SIG_IGN}, NULL, 8)
    0xb8, 0x0d, 0x00, 0x00, 0x00,             // mov  eax, 13
    0xbf, 0x11, 0x00, 0x00, 0x00,             // mov  edi, 17
    0x48, 0x8d, 0x35, 0x13, 0x00, 0x00, 0x00, // lea  rsi, [rip + 19]: behind the last instruction
    0x31, 0xd2,                               // xor  edx, edx
    0x41, 0xba, 0x08, 0x00, 0x00, 0x00,       // mov  r10d, 8
    0x0f, 0x05,                               // syscall
    // for (;;) pause();
    0xb8, 0x22, 0x00, 0x00, 0x00,             // mov  eax, 34
    0x0f, 0x05,                               // syscall
    0xeb, 0xf7,                               // jmp  back by 9
    // { sa_handler = SIG_IGN, sa_flags = 0, sa_restorer = NULL, sa_mask = 0 }
    1, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0,
];

/// The program: an ELF executable that needs nothing.
pub fn program() -> Vec<u8> {
    let length = HEADERS + CODE.len() as u64;
    let mut elf = Vec::new();
    // Class 64, little endian, version 1, System V.
    elf.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    elf.extend(2_u16.to_le_bytes()); // an executable
    elf.extend(62_u16.to_le_bytes()); // for x86-64
    elf.extend(1_u32.to_le_bytes());
    elf.extend((BASE + HEADERS).to_le_bytes()); // where it begins
    elf.extend(64_u64.to_le_bytes()); // offset of the program header
    elf.extend(0_u64.to_le_bytes()); // there are no sections
    elf.extend(0_u32.to_le_bytes());
    for size in [64_u16, 56, 1, 64, 0, 0] {
        elf.extend(size.to_le_bytes());
    }
    // The program header: one segment, loaded for reading and execution.
    elf.extend(1_u32.to_le_bytes());
    elf.extend(5_u32.to_le_bytes());
    for word in [0, BASE, BASE, length, length, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(CODE);
    elf
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Command;
    use std::time::Duration;

    use super::*;
    use crate::wait;

    #[test]
    fn it_pauses_with_children_ignored_until_it_is_killed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pause");
        fs::write(&path, program()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let mut child = Command::new(&path).spawn().unwrap();
        let status = format!("/proc/{}/status", child.id());
        // Bit 16 is signal 17.
        wait::until("SIGCHLD is ignored", Duration::from_secs(10), || {
            let text = fs::read_to_string(&status)?;
            let mask = text.lines().find_map(|line| line.strip_prefix("SigIgn:"));
            // What our own parent ignores (nohup: SIGHUP) is inherited.
            let ignored = u64::from_str_radix(mask.unwrap_or_default().trim(), 16)?;
            Ok((ignored & 1 << 16 != 0).then_some(()))
        })
        .unwrap();
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }
}
