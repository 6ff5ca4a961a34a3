//! A tiny virtual machine that measures how fast KVM executes guest code.
//!
//! The guest runs in 64-bit mode with paging at privilege level 0, because that is where a KVM without hardware support
//! falls back to interpreting instructions; real mode would not tell (Intel CPUs without "unrestricted guest" have it
//! emulated on good hardware, too). It asks the host for a count (`in`), counts down, and asks again: every slice ends
//! in the host, which can look at the clock without any signal.

use std::ptr::{self, NonNull};
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use vmm_sys_util::errno;

/// Guest memory: one page of 2 MiB, mapped one to one. Only what is written takes memory.
const MEMORY: usize = 2 << 20;
const PML4: usize = 0x1000;
const PDPT: usize = 0x2000;
const PD: usize = 0x3000;
const CODE: usize = 0x4000;

/// Present and writable.
const TABLE: u64 = 0b11;
/// Present, writable, and a page of 2 MiB itself.
const LARGE_PAGE: u64 = 0b1000_0011;

/// ```text
/// 0: in  eax, 0x10
/// 2: mov ecx, eax
/// 4: dec ecx
/// 6: jnz 4
/// 8: jmp 0
/// ```
const PROGRAM: [u8; 10] = [0xe5, 0x10, 0x89, 0xc1, 0xff, 0xc9, 0x75, 0xfc, 0xeb, 0xf6];

/// Instructions of each turn of the inner loop.
const PER_TURN: u64 = 2;

/// Turns of the first slice: 1 ms for an emulator, too short to measure for hardware.
const FIRST_SLICE: u32 = 500;

/// A slice of this length is measured well; slices double until then.
const LONG_ENOUGH: Duration = Duration::from_millis(2);

/// Instructions per second that a guest executes on this host's KVM: the best of several slices, because whatever else
/// the host does only makes a slice slower. Ends with a well measured slice that reaches `enough`, else after `limit`
/// and one more slice.
pub fn instructions_per_second(enough: u64, limit: Duration) -> Result<u64, Problem> {
    let begun = Instant::now();
    let machine = Machine::new()?;
    let mut vcpu = machine.vcpu()?;
    let mut best = 0;
    let mut turns = FIRST_SLICE;
    next_request(&mut vcpu, turns)?;
    loop {
        let slice = Instant::now();
        next_request(&mut vcpu, turns)?;
        let taken = slice.elapsed();
        best = best.max(rate(u64::from(turns) * PER_TURN, taken));
        let long_enough = taken >= LONG_ENOUGH;
        if (long_enough && best >= enough) || begun.elapsed() >= limit {
            return Ok(best);
        }
        if !long_enough {
            turns = turns.saturating_mul(2);
            // The slice that has begun still has the old length; it is not measured.
            next_request(&mut vcpu, turns)?;
        }
    }
}

fn rate(instructions: u64, taken: Duration) -> u64 {
    let nanoseconds = taken.as_nanos().max(1);
    u64::try_from(u128::from(instructions) * 1_000_000_000 / nanoseconds).unwrap_or(u64::MAX)
}

/// Why KVM could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// A call failed.
    #[error("{0} failed: {1}")]
    Call(&'static str, errno::Error),
    /// The guest did not do as it should.
    #[error("the probe's guest ended with {0}")]
    Exit(String),
}

/// Names the call that failed.
fn of(call: &'static str) -> impl Fn(errno::Error) -> Problem {
    move |error| Problem::Call(call, error)
}

/// Lets the guest run until its next request for a count, and answers that.
fn next_request(vcpu: &mut VcpuFd, turns: u32) -> Result<(), Problem> {
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoIn(_, data)) if data.len() == 4 => {
                data.copy_from_slice(&turns.to_le_bytes());
                return Ok(());
            }
            Ok(other) => return Err(Problem::Exit(format!("{other:?}"))),
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(Problem::Call("KVM_RUN", error)),
        }
    }
}

struct Machine {
    // Before the memory, because it uses it.
    vm: kvm_ioctls::VmFd,
    kvm: Kvm,
    _memory: Memory,
}

impl Machine {
    fn new() -> Result<Self, Problem> {
        let kvm = Kvm::new().map_err(of("opening /dev/kvm"))?;
        let vm = kvm.create_vm().map_err(of("KVM_CREATE_VM"))?;
        let memory = Memory::new().map_err(of("mmap"))?;
        let entry = |address: usize, flags: u64| (address as u64 | flags).to_le_bytes();
        memory.write(PML4, &entry(PDPT, TABLE));
        memory.write(PDPT, &entry(PD, TABLE));
        memory.write(PD, &entry(0, LARGE_PAGE));
        memory.write(CODE, &PROGRAM);
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: memory.base.as_ptr() as u64,
        };
        // SAFETY: the region is ours, mapped, and lives as long as the VM, which is dropped first.
        unsafe { vm.set_user_memory_region(region) }.map_err(of("KVM_SET_USER_MEMORY_REGION"))?;
        Ok(Self {
            vm,
            kvm,
            _memory: memory,
        })
    }

    /// The only vCPU, about to execute the program.
    fn vcpu(&self) -> Result<VcpuFd, Problem> {
        let vcpu = self.vm.create_vcpu(0).map_err(of("KVM_CREATE_VCPU"))?;
        let cpuid = self
            .kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(of("KVM_GET_SUPPORTED_CPUID"))?;
        vcpu.set_cpuid2(&cpuid).map_err(of("KVM_SET_CPUID2"))?;
        let mut system = vcpu.get_sregs().map_err(of("KVM_GET_SREGS"))?;
        // Segment types: code that was executed, data that was written, both accessed (Intel SDM, volume 3, 3.4.5.1).
        let data = kvm_segment {
            base: 0,
            limit: u32::MAX,
            selector: 16,
            type_: 3,
            present: 1,
            db: 1,
            s: 1,
            g: 1,
            ..Default::default()
        };
        system.cs = kvm_segment {
            selector: 8,
            type_: 11,
            db: 0,
            l: 1,
            ..data
        };
        (system.ds, system.es, system.fs, system.gs, system.ss) = (data, data, data, data, data);
        system.cr3 = PML4 as u64;
        // PAE; protection, paging, and the bits that 64-bit systems set with them; long mode, enabled and active.
        system.cr4 = 1 << 5;
        system.cr0 = 0x8005_0033;
        system.efer = 1 << 8 | 1 << 10;
        vcpu.set_sregs(&system).map_err(of("KVM_SET_SREGS"))?;
        let registers = kvm_regs {
            rip: CODE as u64,
            rflags: 2,
            ..Default::default()
        };
        vcpu.set_regs(&registers).map_err(of("KVM_SET_REGS"))?;
        Ok(vcpu)
    }
}

/// An anonymous mapping.
struct Memory {
    base: NonNull<u8>,
}

impl Memory {
    fn new() -> Result<Self, errno::Error> {
        // SAFETY: a new private mapping at an address of the kernel's choice touches nothing that exists.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                MEMORY,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(errno::Error::last());
        }
        NonNull::new(base.cast())
            .map(|base| Self { base })
            .ok_or_else(errno::Error::last)
    }

    fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= MEMORY);
        // SAFETY: the range is inside the mapping (just checked), which nobody else uses yet; `bytes` is not in it.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.as_ptr().add(offset), bytes.len()) };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this address and size, and the VM that used it is gone.
        unsafe { libc::munmap(self.base.as_ptr().cast(), MEMORY) };
    }
}
