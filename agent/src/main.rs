//! `kata-agent`: the guest's init, or an ordinary process on a host for tests.

fn main() {}
