//! Machines that grow while they run. Whether a guest takes what is added into use is tried with the runtime above.

use hypervisor::{Boot, ErrorKind, MemoryBacking, Size, VmSpec};

use super::PROCESS;
use super::subject::{Place, Subject};

fn growing(place: &Place, max_vcpus: u32, max_mib: u64) -> VmSpec {
    let mut spec = place.spec();
    spec.max_vcpus = max_vcpus;
    spec.memory.max_mib = max_mib;
    spec.memory.backing = MemoryBacking::Shared;
    spec
}

pub async fn a_machine_grows_up_to_its_limit_and_not_beyond(subject: Subject) {
    let _shared = PROCESS.read().await;
    let place = Place::new(subject);
    let spec = growing(&place, 3, 700);
    let mut vm = place.driver.launch(spec, Boot::Cold).await.expect("a VM");
    let pid = vm.pid();
    let _agent = place.greeted().await;
    let resize = vm.resize().expect("a machine that can grow");
    let size = |vcpus, memory_mib| Size { vcpus, memory_mib };
    assert_eq!(resize.size(), size(1, 256));

    resize.grow_vcpus(2).await.expect("one more vCPU");
    resize.grow_memory(300).await.expect("some more memory");
    let grown = resize.size();
    assert_eq!(grown.vcpus, 2);
    assert!((300..=384).contains(&grown.memory_mib), "{grown:?}");

    // What is there already is not added once more.
    resize.grow_vcpus(1).await.expect("nothing to do");
    resize.grow_memory(10).await.expect("nothing to do");
    assert_eq!(resize.size(), grown);

    for error in [
        resize.grow_vcpus(4).await.expect_err("too many"),
        resize.grow_memory(701).await.expect_err("too much"),
    ] {
        assert_eq!(error.kind, ErrorKind::InvalidArgument);
        assert!(error.to_string().contains("with room for"), "{error}");
    }
    assert_eq!(resize.size(), grown, "a refusal changes nothing");

    resize.grow_vcpus(3).await.expect("the last vCPU");
    resize.grow_memory(700).await.expect("the last memory");
    let grown = resize.size();
    assert_eq!(grown.vcpus, 3);
    assert!((700..=768).contains(&grown.memory_mib), "{grown:?}");
    if subject == Subject::Q35 {
        assert_eq!(threads_of_vcpus(pid), 3, "each vCPU is a thread of the VMM");
    }
    vm.stop().await.expect("a stop");
}

/// Threads of a QEMU that execute guest code.
fn threads_of_vcpus(pid: u32) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("threads");
    tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok())
        .filter(|name| name.starts_with("CPU "))
        .count()
}
