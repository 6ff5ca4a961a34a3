//! The program of the practice: machine code, for a guest's processor. Nothing of it is ever executed here.
//!
//! It asks of the guest's kernel what shells and small programs ask: memory, files, directories, a pipe, a child that executes a
//! program, a signal, and what the C library asks before a program's first own instruction. What comes of that is not looked at.
//! Then it reads a byte, or finds the end of its input, writes a byte, and exits. A file is made of it by its headers, with some
//! data at a place that is written here as well (`practice::DATA`).

use std::arch::global_asm;

global_asm!(
    r#"
    .pushsection .rodata
    .globl kata_practice_begin
    .globl kata_practice_end
    .hidden kata_practice_begin
    .hidden kata_practice_end
kata_practice_begin:
    mov r14, [rsp + 8]              // its own path
    cmp qword ptr [rsp], 1
    ja 8f                           // executed by itself
    sub rsp, 8192
    mov rbp, rsp                    // room for answers

    mov eax, 12                     // brk
    xor edi, edi
    syscall
    lea rdi, [rax + 0x3000]
    mov eax, 12
    syscall
    mov byte ptr [rax - 1], 1
    mov eax, 158                    // arch_prctl: what a thread has for itself
    mov edi, 0x1002
    lea rsi, [rbp + 4096]           // where no answers are
    syscall
    mov eax, 218                    // set_tid_address
    lea rdi, [rbp + 4096]
    syscall
    lea rdi, [rbp + 4160]           // set_robust_list: an empty one
    mov [rdi], rdi
    mov qword ptr [rdi + 8], 0
    mov qword ptr [rdi + 16], 0
    mov esi, 24
    mov eax, 273
    syscall
    lea rdi, [rbp + 4320]           // rseq, with no sequence
    and rdi, -32
    xor eax, eax
    mov [rdi], rax
    mov [rdi + 8], rax
    mov [rdi + 16], rax
    mov [rdi + 24], rax
    mov esi, 32
    xor edx, edx
    mov r10d, 0x53053053
    mov eax, 334
    syscall
    mov eax, 302                    // prlimit64: of the stack
    xor edi, edi
    mov esi, 3
    xor edx, edx
    lea r10, [rbp + 1024]
    syscall
    mov eax, 89                     // readlink: its own path
    lea rdi, [rip + 24f]
    lea rsi, [rbp + 1024]
    mov edx, 1024
    syscall
    mov eax, 318                    // getrandom
    lea rdi, [rbp + 1024]
    mov esi, 8
    mov edx, 1
    syscall
    mov ecx, 0x800000               // data of the file, and of none
    mov byte ptr [rcx], 1
    mov byte ptr [rcx + 0x1800], 1
    mov eax, 10                     // mprotect: of one of its pages
    mov edi, 0x800000
    mov esi, 0x1000
    mov edx, 1
    syscall
    mov ecx, 0x4f0000               // a page of the file far away, and one that has been read with it
    mov cl, [rcx]
    mov ecx, 0x4e0000
    mov cl, [rcx]
    mov eax, 9                      // mmap: anonymous, private
    xor edi, edi
    mov esi, 0x8000
    mov edx, 3
    mov r10d, 0x22
    mov r8, -1
    xor r9d, r9d
    syscall
    mov byte ptr [rax], 1
    mov byte ptr [rax + 0x4000], 1
    mov rdi, rax
    mov eax, 11                     // munmap
    syscall

    mov eax, 257                    // openat: itself
    mov edi, -100
    mov rsi, r14
    xor edx, edx
    syscall
    test eax, eax
    js 2f
    mov r12d, eax
    mov edi, eax
    mov eax, 5                      // fstat
    mov rsi, rbp
    syscall
    mov edi, r12d
    xor eax, eax                    // read
    mov rsi, rbp
    mov edx, 256
    syscall
    mov eax, 9                      // mmap: of a file
    xor edi, edi
    mov esi, 0x1000
    mov edx, 1
    mov r10d, 2
    mov r8d, r12d
    xor r9d, r9d
    syscall
    test rax, rax
    js 1f
    mov cl, [rax]
    mov rdi, rax
    mov eax, 11
    mov esi, 0x1000
    syscall
1:  mov edi, r12d
    mov eax, 3                      // close
    syscall

2:  mov eax, 257                    // openat: the root directory
    mov edi, -100
    lea rsi, [rip + 20f]
    mov edx, 0x10000
    syscall
    mov r12d, eax
    mov edi, eax
    mov eax, 217                    // getdents64
    mov rsi, rbp
    mov edx, 1024
    syscall
    mov edi, r12d
    mov eax, 3
    syscall
    mov eax, 257                    // openat: a file of /proc
    mov edi, -100
    lea rsi, [rip + 21f]
    xor edx, edx
    syscall
    mov r12d, eax
    mov edi, eax
    xor eax, eax
    mov rsi, rbp
    mov edx, 1024
    syscall
    mov edi, r12d
    mov eax, 3
    syscall
    mov eax, 4                      // stat
    lea rdi, [rip + 22f]
    mov rsi, rbp
    syscall
    mov eax, 21                     // access
    lea rdi, [rip + 23f]
    xor esi, esi
    syscall
    mov eax, 63                     // uname
    mov rdi, rbp
    syscall
    mov eax, 79                     // getcwd
    mov rdi, rbp
    mov esi, 1024
    syscall
    mov eax, 102                    // getuid
    syscall
    mov eax, 110                    // getppid
    syscall
    mov eax, 228                    // clock_gettime
    xor edi, edi
    mov rsi, rbp
    syscall
    mov eax, 16                     // ioctl: is it a terminal?
    xor edi, edi
    mov esi, 0x5401
    mov rdx, rbp
    syscall
    mov eax, 72                     // fcntl: a copy of standard output
    mov edi, 1
    mov esi, 1030
    mov edx, 10
    syscall
    mov edi, eax
    mov eax, 3
    syscall
    mov eax, 293                    // pipe2, and a byte through it
    mov rdi, rbp
    xor esi, esi
    syscall
    mov eax, 1
    mov edi, [rbp + 4]
    mov rsi, rbp
    mov edx, 1
    syscall
    xor eax, eax
    mov edi, [rbp]
    lea rsi, [rbp + 16]
    mov edx, 1
    syscall
    mov eax, 3
    mov edi, [rbp]
    syscall
    mov eax, 3
    mov edi, [rbp + 4]
    syscall

    lea rax, [rip + 6f]             // rt_sigaction: a child's end is told
    mov [rbp], rax
    mov qword ptr [rbp + 8], 0x04000000
    lea rax, [rip + 7f]
    mov [rbp + 16], rax
    mov qword ptr [rbp + 24], 0
    mov eax, 13
    mov edi, 17
    mov rsi, rbp
    xor edx, edx
    mov r10d, 8
    syscall
    mov eax, 57                     // fork
    syscall
    test eax, eax
    jnz 3f
    mov [rbp], r14                  // execve: itself, with an argument
    mov [rbp + 8], r14
    mov qword ptr [rbp + 16], 0
    mov eax, 59
    mov rdi, r14
    mov rsi, rbp
    lea rdx, [rbp + 16]
    syscall
    jmp 8f
3:  mov eax, 61                     // wait4
    mov rdi, -1
    mov rsi, rbp
    xor edx, edx
    xor r10d, r10d
    syscall
    cmp eax, -4                     // interrupted by what it waits for
    je 3b

    xor eax, eax                    // read: a byte, or the end
    xor edi, edi
    push 10
    mov rsi, rsp
    mov edx, 1
    syscall
    mov eax, 1                      // write: the byte, or a line's end
    mov edi, 1
    mov rsi, rsp
    mov edx, 1
    syscall
8:  mov eax, 231                    // exit_group
    xor edi, edi
    syscall

6:  ret                             // what is told of the child
7:  mov eax, 15                     // rt_sigreturn
    syscall

20: .asciz "/"
21: .asciz "/proc/self/stat"
22: .asciz "/dev"
23: .asciz "/etc/profile"
24: .asciz "/proc/self/exe"
kata_practice_end:
    .popsection
    "#
);

unsafe extern "C" {
    static kata_practice_begin: u8;
    static kata_practice_end: u8;
}

/// The instructions, of which the first is the first to be executed.
pub(super) fn instructions() -> &'static [u8] {
    let (begin, end) = (&raw const kata_practice_begin, &raw const kata_practice_end);
    // SAFETY: both are labels of one piece of constant data, in this order, with nothing between them that is not part of it.
    unsafe { std::slice::from_raw_parts(begin, end.offset_from_unsigned(begin)) }
}
