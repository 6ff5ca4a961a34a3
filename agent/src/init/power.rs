//! The end of a guest. PID 1 must never return to the kernel: that is a panic, which a host sees as a hang.

use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::Write as _;

use nix::sys::reboot::{RebootMode, reboot};

/// From here on a panic says one line and powers the guest off.
pub fn off_on_panic() {
    std::panic::set_hook(Box::new(|panic| off(&panic)));
}

/// Says why on the console and in the kernel's log, writes back what is dirty, and powers off.
pub fn off(why: &dyn Display) -> ! {
    let line = format!("kata-agent: {why}\n");
    // One of the two is the console, or neither: there is nobody else to tell.
    for path in ["/dev/kmsg", "/dev/console"] {
        if let Ok(mut file) = OpenOptions::new().write(true).open(path) {
            let _ = file.write_all(line.as_bytes());
        }
    }
    rustix::fs::sync();
    let _ = reboot(RebootMode::RB_POWER_OFF);
    // The kernel can refuse only a process that may not; then the panic of init's end is the last resort.
    std::process::exit(1)
}
