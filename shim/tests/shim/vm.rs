//! A configuration with a virtual machine, of the parts that were built here.

use std::fs;
use std::path::{Path, PathBuf};

use crate::stand::Machine;

/// Writes a configuration with a virtual machine, if its parts are here. One that is missing fails the test, unless
/// `KATA_TEST_SKIP`, a comma list, names it.
pub fn configure(machine: &Machine) -> bool {
    let found = |variable: &str, default: &str| {
        let built = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../target")
            .join(default);
        std::env::var_os(variable).map_or(built, PathBuf::from)
    };
    let guest = found("KATA_GUEST_DIR", "guest");
    let parts = [
        ("path", "qemu", PathBuf::from("/usr/bin/qemu-system-x86_64")),
        ("kernel", "guest-image", guest.join("vmlinux")),
        ("initrd", "guest-image", guest.join("initrd.img")),
        (
            "virtio_fs_daemon",
            "virtiofsd",
            found("KATA_VIRTIOFSD", "tools/bin/virtiofsd"),
        ),
        (
            "vhost_user_vsock_daemon",
            "vhost-device-vsock",
            found("KATA_VHOST_VSOCK", "tools/bin/vhost-device-vsock"),
        ),
    ];
    let skip = std::env::var("KATA_TEST_SKIP").unwrap_or_default();
    let mut text = "[hypervisor.qemu]\ndefault_memory = 256\n".to_owned();
    for (key, part, path) in parts {
        if !path.exists() {
            let is_skipped = skip.split(',').any(|name| name.trim() == part);
            assert!(
                is_skipped,
                "this test needs {}; name {part:?} in KATA_TEST_SKIP to go without",
                path.display()
            );
            println!(
                "skipped, because KATA_TEST_SKIP says so: {} is missing",
                path.display()
            );
            return false;
        }
        text.push_str(&format!("{key} = {path:?}\n"));
    }
    text.push_str(&format!("[runtime]\nrun_dir = {:?}\n", machine.path("run")));
    fs::write(machine.configuration(), text).unwrap();
    true
}
